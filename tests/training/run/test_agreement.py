"""Flags that training processes share: the same in all after the same step, without a wait in the step."""

import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from training.run.stopping import agreement
from training.run.stopping.agreement import Agreement
from training.run.stopping.stop import StopSignal

pytestmark = pytest.mark.skipif(not hasattr(dist, "ProcessGroupGloo"), reason="PyTorch without gloo")
STEPS = 8


def run_processes(action: Callable[[int, Agreement], object], folder: Path, number: int = 2) -> list[object]:
    """What an action gives in each of so many processes, by rank."""
    context = get_context("fork")
    answers: SimpleQueue[tuple[int, object]] = context.SimpleQueue()

    def work(rank: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=number)
        answers.put((rank, action(rank, Agreement(number, timeout=60))))
        dist.destroy_process_group()

    processes = [context.Process(target=work, args=(rank,)) for rank in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * number
    return [answer for _, answer in sorted(answers.get() for _ in processes)]


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


def steps_of(agree, rank, flags, seconds=0.0):
    """What is known after each step, where rank 1 raises flags in some steps."""
    known = []
    for step in range(STEPS):
        time.sleep(seconds)
        known.append(agree(*(rank == 1 and step == raised for raised in flags)))
    agree.finish()
    return known


def test_a_flag_of_one_process_is_known_to_all_one_step_later_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "SLOW_STEP", 60)
    found = run_processes(lambda rank, agree: steps_of(agree, rank, (2, 4)), tmp_path)
    assert found[0] == found[1] == [(step == 3, step == 5) for step in range(STEPS)]


def test_where_steps_are_slow_it_is_known_after_the_step_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "SLOW_STEP", 0.02)
    found = run_processes(lambda rank, agree: steps_of(agree, rank, (4, 6), 0.05), tmp_path)
    assert found[0] == found[1] == [(step == 4, step == 6) for step in range(STEPS)]


def test_no_process_waits_for_another_that_is_within_the_same_step(tmp_path):
    """Rank 1 comes two seconds later to the end of the first step: rank 0 goes on into the second meanwhile."""

    def first_step(rank, agree):
        agree(False)
        start = time.monotonic()
        time.sleep(2 * rank)
        agree(False)
        seconds = [time.monotonic() - start]
        agree.finish()
        return [*seconds, time.monotonic() - start]

    (answered, finished), _ = run_processes(first_step, tmp_path)
    assert answered < 1 < finished  # the control: the answer itself comes later


def test_one_process_knows_at_once():
    agree = Agreement(1, timeout=1)
    assert agree(True, False) == (True, False) and agree(False, True) == (False, True)


def test_a_checkpoint_that_is_due_before_an_evaluation_is_made_after_it_and_once(tmp_path, monkeypatch):
    """The clock of the first process says so in step 1; the answer comes while both evaluate, in two batches."""
    monkeypatch.setattr(agreement, "SLOW_STEP", 60)

    def saved(rank, _):
        accelerator: Any = SimpleNamespace(num_processes=2, is_main_process=rank == 0)
        stop = StopSignal(accelerator, SimpleNamespace(), timeout=60)  # type: ignore[arg-type]
        steps = [stop.after_step(late=rank == 0)]
        assert not stop.is_asked() and not stop.is_asked()
        steps += [stop.after_step(late=False) for _ in range(2)]
        stop.close()
        return [save for _, save in steps]

    assert run_processes(saved, tmp_path) == [[False, True, False]] * 2
