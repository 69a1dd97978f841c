"""Which sample comes when, and the randomness of each: functions of the seed, whatever the processes and workers.

Why not `StatefulDistributedSampler` of torchdata 0.11: it pads an epoch, and loses or repeats images where another
number of processes goes on. Why not `interleave_datasets` of `datasets` 5.2: the sources have their shares by chance.
`tests/training/data/test_alternatives.py` shows it, and fails once it is no longer so.
"""

from collections.abc import Iterator, Sequence
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
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@lru_cache(maxsize=8)
def epoch_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """The order `(num_samples,)` of one epoch."""
    return permutation(num_samples, seed, epoch)


def permutation(count: int, *key: int) -> Tensor:
    """A random order `(count,)` that depends on the key alone."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(sample_seed(*key)))


class Shares:
    """Which of several sources each draw is from: of every 1,000 draws, each has its share, in a random order."""

    PERIOD = 1000

    def __init__(self, weights: Sequence[float], *key: int) -> None:
        self.counts = apportion(weights, self.PERIOD)
        self.key = key

    def source_of(self, draw: int) -> tuple[int, int]:
        """The source of a draw (from 0), and the number of earlier draws from the same one."""
        period, offset = divmod(draw, self.PERIOD)
        sources, earlier = draw_order(self.counts, sample_seed(*self.key, period))
        source = int(sources[offset])
        return source, period * self.counts[source] + int(earlier[offset])


def apportion(weights: Sequence[float], total: int) -> tuple[int, ...]:
    """`total` shared out in whole numbers by weight, what is left to the largest remainders."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return tuple(counts.tolist())


@lru_cache(maxsize=4)
def draw_order(counts: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """So many draws of each source in a random order; and for each draw, how many before it are of its source."""
    sources = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    earlier = np.empty_like(sources)
    for source, count in enumerate(counts):
        earlier[sources == source] = np.arange(count)
    return sources, earlier


def source_seed(seed: int, source: int) -> int:
    """The seed of a source's order; sources of the same size have different orders."""
    return sample_seed(seed, source) if source else seed


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) out of an endless chain of epoch permutations, or of several that are mixed by weight.

    Sources of `sizes` lie one behind the other, which the index counts. From position `start` on, each forward pass
    takes the next `num_processes * batch_size` positions, split over the processes: nothing is padded or dropped, an
    epoch may end inside a batch, and any number of processes trains on the same images in an optimizer step.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        rank: int,
        num_processes: int,
        seed: int,
        start: int,
    ) -> None:
        self.sizes = sizes
        self.shares = Shares(weights, seed)
        self.batch_size = batch_size
        self.rank = rank
        self.num_processes = num_processes
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield [self.sample_at(position) for position in range(first, first + self.batch_size)]
            first += self.num_processes * self.batch_size

    def sample_at(self, position: int) -> tuple[int, int]:
        """Epoch of its source and index of the sample at a position of the chain."""
        source, place = self.shares.source_of(position)
        epoch, offset = divmod(place, self.sizes[source])
        order = epoch_order(self.sizes[source], source_seed(self.seed, source), epoch)
        return epoch, sum(self.sizes[:source]) + int(order[offset])
