"""The order of the samples and the random seed of each sample.

Both depend only on the run's seed, not on the number of training processes or data loader workers.

This module does not use `StatefulDistributedSampler` of torchdata 0.11: it pads an epoch, and it loses or repeats
images when a run resumes with another number of processes. It does not use `interleave_datasets` of `datasets` 5.2
either: that draws each source at random, so that the shares of the sources vary.
`tests/training/data/test_alternatives.py` shows these limits, and fails when one of them is gone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


def sample_seed(*key: int) -> int:
    """A 63-bit seed derived from several numbers, e.g. (seed, epoch, index)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's CPU generator, and restore its state at the end. (`torch.manual_seed` would seed the GPUs too.)"""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@lru_cache(maxsize=8)
def epoch_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """The order of the samples in one epoch, `(num_samples,)`."""
    return permutation(num_samples, seed, epoch)


def permutation(count: int, *key: int) -> Tensor:
    """A random permutation `(count,)` that depends only on the key."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(sample_seed(*key)))


class Shares:
    """Assigns each draw to one of several sources: in every 1,000 draws, each source has its share, in random order."""

    PERIOD = 1000

    def __init__(self, weights: Sequence[float], *key: int) -> None:
        self.counts = apportion(weights, self.PERIOD)
        self.key = key

    def source_of(self, draw: int) -> tuple[int, int]:
        """The source of a draw (counted from 0), and the number of earlier draws from the same source."""
        period, offset = divmod(draw, self.PERIOD)
        sources, earlier = draw_order(self.counts, sample_seed(*self.key, period))
        source = int(sources[offset])
        return source, period * self.counts[source] + int(earlier[offset])


def apportion(weights: Sequence[float], total: int) -> tuple[int, ...]:
    """Split `total` into integers in proportion to the weights, by the method of the largest remainder."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return tuple(counts.tolist())


@lru_cache(maxsize=4)
def draw_order(counts: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The source of each draw, in random order with `counts` draws of each source.

    Also returns, for each draw, the number of earlier draws from the same source.
    """
    sources = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    earlier = np.empty_like(sources)
    for source, count in enumerate(counts):
        earlier[sources == source] = np.arange(count)
    return sources, earlier


def source_seed(seed: int, source: int) -> int:
    """The seed of a source's order; sources of the same size have different orders."""
    return sample_seed(seed, source) if source else seed


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) from an endless sequence of shuffled epochs, with several sources mixed by weight.

    The index counts through the concatenated sources, which have `sizes` samples. Each forward pass takes the next
    `num_processes * batch_size` positions of the sequence, from position `start` on, and splits them over the training
    processes. No batch is padded or dropped, and an epoch may end inside a batch. An optimizer step sees the same
    images with any number of training processes.
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
        """The sample at a position of the sequence: the epoch of its source, and its index."""
        source, place = self.shares.source_of(position)
        epoch, offset = divmod(place, self.sizes[source])
        order = epoch_order(self.sizes[source], source_seed(self.seed, source), epoch)
        return epoch, sum(self.sizes[:source]) + int(order[offset])
