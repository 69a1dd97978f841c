"""Cores that a run may use are counted as the machine gives them, and a run that leaves them idle says so."""

import os
from types import SimpleNamespace

import pytest
import torch

from training.machine import cores, threads
from training.machine.cores import usable_cores
from training.machine.threads import fit_threads

ON_A_CPU = SimpleNamespace(device=torch.device("cpu"), num_processes=1)
ON_A_GPU = SimpleNamespace(device=torch.device("cuda"), num_processes=1)


@pytest.fixture(autouse=True)
def restored_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def root(monkeypatch, tmp_path):
    """A folder in place of /, on a machine of eight cores."""
    monkeypatch.setattr(cores, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    return tmp_path


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


QUOTAS = {"max 100000": 8, "350000 100000": 3, "50000 100000": 1, "6400000 100000": 8, "100000 25000": 4}


@pytest.mark.parametrize("quota", QUOTAS)
def test_a_container_has_the_cores_of_its_quota(quota, root):
    write(root, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": quota})
    assert usable_cores() == QUOTAS[quota]


# Of the first version of control groups; the path is that on the host, unless the container sees the host's folders.
@pytest.mark.parametrize("folder", ["cpu", "cpu/docker/1f", "cpu/docker"])
@pytest.mark.parametrize("quota", QUOTAS)
def test_a_container_of_the_first_version_has_the_cores_of_its_quota(quota, folder, root):
    allowed, period = quota.replace("max", "-1").split()
    files = {f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us": allowed, f"sys/fs/cgroup/{folder}/cpu.cfs_period_us": period}
    write(root, {"proc/self/cgroup": "11:cpuset:/\n4:cpu,cpuacct:/docker/1f\n0::/docker/1f", **files})
    assert usable_cores() == QUOTAS[quota]


@pytest.mark.parametrize(
    ("own", "slice_", "expected"), [("max", "200000", 2), ("300000", "max", 3), ("300000", "200000", 2)]
)
def test_the_least_quota_of_a_group_and_those_around_it_counts(own, slice_, expected, root):
    write(
        root,
        {
            "proc/self/cgroup": "0::/batch.slice/job.scope",
            "sys/fs/cgroup/batch.slice/cpu.max": f"{slice_} 100000",
            "sys/fs/cgroup/batch.slice/job.scope/cpu.max": f"{own} 100000",
            "sys/fs/cgroup/other.slice/cpu.max": "100000 100000",
        },
    )
    assert usable_cores() == expected


@pytest.mark.parametrize("groups", [{}, {"proc/self/cgroup": "3:cpuset:/\n0::/../outside"}])
def test_without_a_quota_the_cores_are_those_that_the_process_may_run_on(groups, monkeypatch, root):
    write(root, {**groups, "sys/fs/cgroup/cpuset/cpu.max": "100000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 7}, raising=False)
    assert usable_cores() == 3


def test_threads_are_no_more_than_the_cores_of_a_process(monkeypatch, capsys):
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    torch.set_num_threads(8)
    fit_threads(ON_A_CPU)
    assert torch.get_num_threads() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    fit_threads(ON_A_CPU)
    assert torch.get_num_threads() == 2
    assert capsys.readouterr() == ("", "")


def test_threads_that_somebody_has_chosen_are_kept(monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    torch.set_num_threads(8)
    fit_threads(ON_A_CPU)
    assert torch.get_num_threads() == 8


def test_one_thread_on_several_cores_is_told_with_the_flag_that_uses_them(monkeypatch, capsys):
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    torch.set_num_threads(1)
    fit_threads(ON_A_CPU)
    told = capsys.readouterr().err
    assert "One of 4 cores" in told
    assert "--num_cpu_threads_per_process 4" in told
    assert told.count("\n") == 1


def test_nothing_is_told_where_no_core_is_idle(monkeypatch, capsys):
    torch.set_num_threads(1)
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    fit_threads(ON_A_CPU)
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    fit_threads(ON_A_GPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    fit_threads(ON_A_CPU)
    assert capsys.readouterr() == ("", "")
