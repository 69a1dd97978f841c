"""Which sample comes when, and the randomness of each: functions of the seed, whatever the processes and workers."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


def sample_seed(*key: int) -> int:
    """A seed of 63 bits from several numbers, e.g. (seed, epoch, index)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's CPU generator seeded inside, as it was outside. (`torch.manual_seed` would reseed the GPUs too.)"""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


@lru_cache(maxsize=2)
def epoch_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """The order `(num_samples,)` of one epoch."""
    return torch.randperm(num_samples, generator=torch.Generator().manual_seed(sample_seed(seed, epoch)))


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) out of an endless chain of epoch permutations.

    Optimizer step s (from 0) takes positions [s * G, (s + 1) * G) of the chain, G the total batch, split over the
    processes and the accumulated forward passes: nothing is padded or dropped, an epoch may end inside a batch, and any
    number of processes trains on the same G images in step s.
    """

    def __init__(
        self, num_samples: int, batch_size: int, accumulation: int, rank: int, num_processes: int, seed: int, start: int
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.rank = rank
        self.num_processes = num_processes
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = (self.start * self.accumulation * self.num_processes + self.rank) * self.batch_size
        while True:
            yield [self.sample_at(position) for position in range(first, first + self.batch_size)]
            first += self.num_processes * self.batch_size

    def sample_at(self, position: int) -> tuple[int, int]:
        """Epoch and index of the sample at a position of the chain."""
        epoch, offset = divmod(position, self.num_samples)
        return epoch, int(epoch_order(self.num_samples, self.seed, epoch)[offset])
