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


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 8), ("350000 100000", 3), ("50000 100000", 1), ("6400000 100000", 8)]
)
def test_a_container_has_the_cores_of_its_quota(quota, expected, monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    assert usable_cores() == expected


def test_without_a_quota_the_cores_are_those_that_the_process_may_run_on(monkeypatch, tmp_path):
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "absent")
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
