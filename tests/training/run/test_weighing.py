"""Passes of a step weigh as much as they have of what their losses are means over."""

from types import SimpleNamespace

import pytest
import torch

from training.run.training_run import TrainingRun


def weighed(monkeypatch, counts, others=0, processes=1):
    """The weights of one process's passes; `others` is the count of the other processes."""
    run = object.__new__(TrainingRun)
    reduce = SimpleNamespace(reduce=lambda own: own + others, num_processes=processes, device="cpu")
    monkeypatch.setattr(run, "accelerator", reduce, raising=False)
    batches = [{"labels": torch.ones(count)} for count in counts]
    return [weight for _, weight in run.weigh(iter(batches), lambda batch: batch["labels"].sum())]


def test_the_step_has_the_mean_over_all_that_was_counted(monkeypatch):
    losses = [torch.tensor([3.0]), torch.tensor([1.0, 5.0, 9.0])]  # of the pixels of two passes
    weights = weighed(monkeypatch, [1, 3])
    step = sum(weight * loss.mean() for weight, loss in zip(weights, losses, strict=True)) / 2
    assert step == pytest.approx(torch.cat(losses).mean().item())
    assert sum(loss.mean() for loss in losses) / 2 != pytest.approx(step)  # the control


def test_other_processes_count_too(monkeypatch):
    assert weighed(monkeypatch, [1, 3], others=12, processes=2) == [1 / 4, 3 / 4]  # four a pass on average


def test_a_step_without_anything_to_count_has_no_loss_and_no_error(monkeypatch):
    assert weighed(monkeypatch, [0, 0]) == [0, 0]
    assert weighed(monkeypatch, []) == []  # after a stop
