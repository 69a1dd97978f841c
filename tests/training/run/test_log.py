"""The log of a run, in one process and as if there were several."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from tests.photographs import forget_accelerate
from training.evaluation.pictures import read_metrics
from training.run import log as run_log
from training.run.checkpoints import Resumed
from training.run.log import TrainingLog, resumed_losses
from training.run.plan import make_plan
from training.settings.scripts import PretrainSettings


@pytest.fixture
def log(tmp_path):
    forget_accelerate()
    fields = {"per_device_train_batch_size": 4, "max_train_steps": 4, "logging_steps": 2, "with_tracking": False}
    config = PretrainSettings(dataset_name="x", output_dir=str(tmp_path), **fields)
    plan = make_plan(config.schedule, config.data.per_device_train_batch_size, 100, 1)
    batches = SimpleNamespace(seconds_waited=0.0, readers=[], problems=[])
    yield TrainingLog(Accelerator(cpu=True), config.run, config.data, plan, Resumed(0, []), batches)  # type: ignore[arg-type]
    forget_accelerate()


def test_a_line_has_the_mean_of_the_losses_since_the_last_one_and_the_results_that_of_all(log, tmp_path):
    for losses in ([1.0, 2.0], [3.0], [5.0], [7.0, 9.0, 11.0]):  # a step may have any number of forward passes
        for loss in losses:
            log.add(torch.tensor(loss))
        log.end_step(0.1, None)
    lines = [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert lines == [(2, pytest.approx((1 + 2 + 3) / 3)), (4, pytest.approx((5 + 7 + 9 + 11) / 4))]
    assert log.results()["train_loss"] == pytest.approx((1 + 2 + 3 + 5 + 7 + 9 + 11) / 7)


def test_the_time_of_an_evaluation_or_a_checkpoint_is_no_part_of_the_images_per_second(log, tmp_path, monkeypatch):
    """Four images a step, of two seconds each, with a pause of a hundred in the middle."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(run_log, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    log.started = log.window_started = 0.0
    for step in (1, 2, 3, 4):
        clock.now += 2
        log.add(torch.tensor(1.0))
        log.end_step(0.1, None)
        if step in (1, 3):
            with log.paused():
                clock.now += 100
    rates = [line["images_per_second"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert rates == [pytest.approx(4 / 2)] * 2 and log.results()["images_per_second"] == pytest.approx(4 / 2)


@pytest.mark.parametrize(("own", "others", "first"), [(3, None, 3), (None, 5, 5), (3, 5, 3), (5, 3, 3)])
def test_a_loss_that_is_not_finite_is_seen_in_whatever_process_it_was(log, monkeypatch, own, others, first):
    """Each process stops at the first bad step of all."""
    never = log.first_bad.clone()
    elsewhere = never if others is None else torch.full_like(never, others)
    monkeypatch.setattr(log.accelerator, "gather", lambda value: torch.cat([value, elsewhere]))
    for step in range(1, 7):
        log.note_if_bad(torch.tensor(torch.nan if step == own else 1.0), step)
    with pytest.raises(FloatingPointError, match=f"of step {first} must be finite"):
        log.check_finite()
    monkeypatch.setattr(log.accelerator, "gather", lambda value: torch.cat([never, never]))
    log.check_finite()


@pytest.mark.parametrize("num_processes", [1, 2, 3, 5])
def test_no_loss_is_lost_or_counted_twice_where_a_run_goes_on_with_other_processes(num_processes):
    """The sums of processes are added up when a line is due; what was logged is everybody's."""
    states = [{"window": [10.0 * rank, rank + 1.0], "total": [50.0, 20.0]} for rank in range(3)]
    resumed = [resumed_losses(states, rank, num_processes) for rank in range(num_processes)]
    windows = [window for window, _ in resumed if window]
    assert [sum(column) for column in zip(*windows, strict=True)] == [0 + 10 + 20, 1 + 2 + 3]
    assert all(total == [50.0, 20.0] for _, total in resumed)
    assert resumed_losses([], 0, num_processes) == ([], [])
