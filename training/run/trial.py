"""Measurement of a few steps for a dry run: time per step, time spent waiting for data, and memory."""

import time
from collections.abc import Generator, Iterable, Iterator
from math import ceil
from typing import Any

import torch
from torch import nn

from training.data.batches import TrainBatches
from training.machine.memory import peak_memory
from training.run.plan import Plan

WARM_UP, MEASURED = 2, 5  # forward passes, at least
PREFETCHED = 2  # batches that a data loader worker loads ahead


class Trial:
    """Gives the numbers of the steps to take, and measures the last ones. The steps change the weights."""

    def __init__(self, batches: TrainBatches, plan: Plan, passes_per_step: int, num_workers: int) -> None:
        self.batches, self.plan = batches, plan
        self.passes_per_step, self.num_workers = passes_per_step, num_workers
        self.step = 0
        self.measured: dict[str, float] = {}

    def steps(self) -> Iterator[int]:
        """Yield the steps to take. After the last one, `measured` holds the results:

        seconds per step, images per second, share of the time spent waiting for data, and hours of the whole run.
        """
        at_a_time = max(self.num_workers, 1)
        yield from self.take(WARM_UP)
        self.drain()
        yield from self.take(at_a_time)  # until the workers have loaded ahead again, if they can
        start, waited_before = time.perf_counter(), self.batches.seconds_waited
        steps = yield from self.take(at_a_time * ceil(MEASURED / at_a_time))  # one from each worker
        seconds = time.perf_counter() - start
        self.measured = {
            "seconds_per_step": seconds / steps,
            "images_per_second": self.plan.total_batch_size * steps / seconds,
            "data_wait": (self.batches.seconds_waited - waited_before) / seconds,
            "hours": seconds / steps * self.plan.max_steps / 3600,
        }

    def take(self, least_passes: int) -> Generator[int, None, int]:
        """Yield the steps that make at least `least_passes` forward passes.

        Returns the number of these steps, once the device has finished them.
        """
        steps = ceil(least_passes / self.passes_per_step)
        for _ in range(steps):
            self.step += 1
            yield self.step
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return steps

    def drain(self) -> None:
        """Discard the batches that were loaded ahead: steps that use them would not wait for data."""
        for _ in range(PREFETCHED * self.num_workers):
            next(self.batches)


def memory(trained: nn.Module, optimizer: Any, others: Iterable[nn.Module]) -> dict[str, float]:
    """Memory of one process in MiB: the sum of weights, gradients, optimizer and `others`, and the peak so far.

    `others` are the moving average and the teacher.
    """
    weights = sum(parameter.nbytes for parameter in trained.parameters())
    states = optimizer.state.values()
    moments = sum(value.nbytes for state in states for value in state.values() if hasattr(value, "nbytes"))
    beside = sum(parameter.nbytes for module in others for parameter in module.parameters())
    held = 2 * weights + moments + beside
    return {"weights_gradients_and_optimizer_MiB": held / 2**20, "peak_MiB": peak_memory() / 2**20}
