"""Trying out a few steps of a run: how long one takes, what it waits for and how much memory it holds."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from math import ceil
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from training.data.batches import TrainBatches
from training.run.memory import peak_memory
from training.run.plan import Plan
from training.settings.config import TrainingConfig

WARM_UP, MEASURED = 2, 5  # forward passes, at least
PREFETCHED = 2  # batches that a data loader worker has ready


class Rehearsal:
    """Optimizer steps as training takes them, on real batches; the weights are not those of a run then.

    `prepared` are the `batches` as the model takes them, on its device; `update_averages` is what follows each step.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        trained: nn.Module,
        optimizer: Any,
        batches: TrainBatches,
        prepared: Iterator[dict[str, Any]],
        config: TrainingConfig,
        update_averages: Callable[[int], None],
    ) -> None:
        self.accelerator, self.trained, self.optimizer = accelerator, trained, optimizer
        self.batches, self.prepared, self.config = batches, prepared, config
        self.update_averages = update_averages
        self.step = 0

    def take_steps(self, least_passes: int) -> int:
        """As many steps as make so many forward passes; how many that were, when the device is done with them."""
        passes = self.config.gradient_accumulation_steps
        steps = ceil(least_passes / passes)
        for _ in range(steps):
            for inputs in islice(self.prepared, passes):
                with self.accelerator.accumulate(self.trained):
                    self.accelerator.backward(self.trained(**inputs).loss)
                    if self.accelerator.sync_gradients:
                        limit = self.config.max_grad_norm or torch.inf
                        self.accelerator.clip_grad_norm_(self.trained.parameters(), limit)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
            self.step += 1
            self.update_averages(self.step)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return steps

    def drain(self) -> None:
        """Throw away as many batches as are loaded ahead: a step that finds them ready does not wait for data."""
        for _ in range(PREFETCHED * self.config.num_workers):
            next(self.batches)


def rehearse(rehearsal: Rehearsal, plan: Plan, teacher: nn.Module | None = None) -> dict[str, Any]:
    """Time of a step, images per second, share of the time that waits for data, hours of the run, and memory."""
    rehearsal.trained.train()
    batches, num_workers = rehearsal.batches, max(rehearsal.config.num_workers, 1)
    rehearsal.take_steps(WARM_UP)
    rehearsal.drain()
    rehearsal.take_steps(num_workers)  # until the workers load ahead again, if they are fast enough
    start, waited_before = time.perf_counter(), batches.seconds_waited
    steps = rehearsal.take_steps(num_workers * ceil(MEASURED / num_workers))  # they may deliver in turns
    seconds = time.perf_counter() - start
    return {
        "memory": memory(rehearsal, teacher),
        "seconds_per_step": seconds / steps,
        "images_per_second": plan.total_batch_size * steps / seconds,
        "data_wait": (batches.seconds_waited - waited_before) / seconds,
        "hours": seconds / steps * plan.max_steps / 3600,
    }


def memory(rehearsal: Rehearsal, teacher: nn.Module | None = None) -> dict[str, float]:
    """MiB of one process: what weights, gradients, optimizer, average and teacher take, and the most held so far."""
    weights = sum(parameter.nbytes for parameter in rehearsal.trained.parameters())
    states = rehearsal.optimizer.state.values()
    moments = sum(value.nbytes for state in states for value in state.values() if hasattr(value, "nbytes"))
    held = 2 * weights + moments + weights * bool(rehearsal.config.ema_decay)
    held += sum(parameter.nbytes for parameter in teacher.parameters()) if teacher is not None else 0
    return {"weights_gradients_and_optimizer_MiB": held / 2**20, "peak_MiB": peak_memory() / 2**20}
