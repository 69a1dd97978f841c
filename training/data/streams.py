"""Reads a stream as an endless sequence of epochs; in each epoch, every example goes to exactly one reader.

A reader is one data loader worker of one training process. Each epoch distributes the shards to the readers, in an
order that depends on the seed and the epoch. A shard is a file; a row group of a parquet file if there are fewer files
than readers; or a group of files if there are thousands. If the shards cannot be divided evenly, the readers share the
remaining ones, so that all have the same amount of work: each reads two of them at most, and keeps its part of their
examples.

The examples are shuffled in blocks: while a reader gives one block in random order, it reads the next, also across the
end of an epoch. A `Place` is the position to resume from. A resume reads again at most the current block, and its shard
from the beginning.

This module does not use `shuffle`, `state_dict`, `split_dataset_by_node` and `interleave_datasets` of `datasets` 5.2:

- A resume loses the images in the shuffle buffer, and a shuffled stream with several workers cannot be resumed at all.
- The training processes get unequal numbers of batches, and each reads everything if the shards do not divide evenly.
- A repeated stream has the same order in every epoch.
- Mixed sources either end together, by losing or repeating images, or have no end and are read by only as many workers
  as the smallest source has files.

`tests/training/data/test_alternatives.py` shows these limits, and fails when one of them is gone.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from math import ceil, gcd
from typing import Any, NamedTuple

from datasets import IterableDataset

from training.data.retry import read_on
from training.data.sampling import Shares, epoch_order, permutation
from training.data.sources import rows_of

MAX_SHARDS = 1024  # `datasets` makes every image of a folder a shard
SHARDS_OF_A_READER = 16  # a group has a file more than another: with so many groups, a reader hardly has more to do
MAX_EMPTY_EPOCHS = 10
FANOUT = 16  # into how many parts a source is cut at a time
DEALING = 2  # the rule by which shards are dealt; a checkpoint holds positions in what it deals


class Place(NamedTuple):
    """The position of a reader: all examples before the block at `index` are given, and `taken` of the block."""

    epoch: int = 0
    turn: int = 0  # among the shards that the reader reads in this epoch
    index: int = 0
    taken: int = 0


class Example(NamedTuple):
    """A row of a source and the numbers that identify it."""

    row: dict[str, Any]
    epoch: int
    turn: int
    shard: int
    index: int  # in its shard


@dataclass(frozen=True)
class Reader:
    """One of the `num_readers` readers that share a stream."""

    source: IterableDataset
    number: int
    num_readers: int
    seed: int
    block_size: int

    @property
    def num_shards(self) -> int:
        """The number of shards to distribute; where there are more, groups of them that divide among the readers."""
        most = max(MAX_SHARDS, SHARDS_OF_A_READER * self.num_readers)
        return self.source.num_shards if self.source.num_shards <= most else most - most % self.num_readers

    def examples(self, start: Place) -> Iterator[tuple[Example, Place]]:
        """Yield examples without end, each with the place after it.

        Raises a `ValueError` after `MAX_EMPTY_EPOCHS` epochs without an example for this reader.
        """
        upcoming = self.all_in_order(start)
        block: list[Example] = []
        read_into(block, upcoming, self.block_size)
        seen = start.taken if block[0].epoch == start.epoch else 0
        while True:
            first, following, is_complete = block[0], list[Example](), False
            order = permutation(len(block), self.seed, first.epoch, first.shard, first.index)
            block = [block[index] for index in order.tolist()]
            for taken in range(1, len(block) + 1):
                if not is_complete:  # a short block has to read several examples for each that it gives
                    missing = self.block_size - len(following)
                    is_complete = read_into(following, upcoming, ceil(missing / len(block)))
                example = block.pop()
                if taken > seen:
                    yield example, Place(first.epoch, first.turn, first.index, taken)
            block, seen = following, 0

    def all_in_order(self, start: Place) -> Iterator[Example | None]:
        """The examples of all epochs from the block of a place on, in stored order, and None after each epoch's."""
        empty = 0
        for epoch in itertools.count(start.epoch):
            example = None
            for example in self.in_order(start if epoch == start.epoch else Place(epoch)):
                yield example
            if example is not None:
                yield None
            empty = 0 if example is not None else empty + 1
            if empty == MAX_EMPTY_EPOCHS:
                raise ValueError("A stream must hold examples for every process and worker: use fewer of them.")

    def in_order(self, place: Place) -> Iterator[Example]:
        """The examples of an epoch from the block of a place on, in stored order."""
        stride = spreading_stride(self.num_readers)
        for turn, (shard, parts) in enumerate(self.dealt(place.epoch)):
            skip = place.index if turn == place.turn else 0
            if turn < place.turn:
                continue
            stored = read_on(partial(self.rows, shard, skip), f"shard {shard} of the stream")
            for index, row in enumerate(stored, start=skip):
                if parts is None or index * stride % self.num_readers in parts:
                    yield Example(row, place.epoch, turn, shard, index)

    def rows(self, shard: int, skip: int, done: int) -> Iterator[dict[str, Any]]:
        """The rows of a shard from `skip + done` on."""
        return rows_of(shard_of(self.source, self.num_shards, shard).skip(skip + done))

    def dealt(self, epoch: int) -> list[tuple[int, range | None]]:
        """The shards that this reader reads in an epoch, each with the parts that it keeps; None: the whole shard.

        A shard that is left over has as many parts as there are readers. Each reader gets as many parts as there are
        such shards, one beside the other. Its place among them changes with the epoch.
        """
        order = epoch_order(self.num_shards, self.seed, epoch).tolist()
        whole = len(order) - len(order) % self.num_readers
        own = [(shard, None) for shard in order[self.number : whole : self.num_readers]]
        left = order[whole:]
        first = (self.number + epoch) % self.num_readers * len(left)
        end, shared = first + len(left), []
        for turn in range(first // self.num_readers, ceil(end / self.num_readers)):
            start = turn * self.num_readers  # the number of its first part
            parts = range(max(first - start, 0), min(end - start, self.num_readers))
            shared.append((left[turn], parts))
        return [*own, *shared]


def shard_of(source: IterableDataset, num_shards: int, index: int) -> IterableDataset:
    """One of `num_shards` parts of a source; if each is a file, it is cut out of larger parts that are kept.

    `shard` of `datasets` 5.2 goes through all files each time: among 65,536 of them, opening one would take 0.5 s.
    """
    while num_shards == source.num_shards > FANOUT:
        size, more = divmod(num_shards, FANOUT)  # the first `more` parts have one more
        part = index // (size + 1) if index < more * (size + 1) else (index - more) // size
        source, index = part_of(source, part), index - part * size - min(part, more)
        num_shards = size + (part < more)
    return source.shard(num_shards, index)


@lru_cache(maxsize=1024)
def part_of(source: IterableDataset, part: int) -> IterableDataset:
    return source.shard(FANOUT, part)


@cache
def spreading_stride(num_parts: int) -> int:
    """The stride that puts the examples of a shard, one after the other, into parts far from each other.

    Neighbouring parts then have the same number of examples, also if there are fewer examples than parts. A stride near
    the golden section spreads any number of them evenly; each part is met if the two numbers have no common divisor.
    """
    near = round(num_parts * (5**0.5 - 1) / 2)
    return next(stride for stride in itertools.count(max(near, 1)) if gcd(stride, num_parts) == 1)


def read_into(block: list[Example], upcoming: Iterator[Example | None], count: int) -> bool:
    """Read up to `count` more examples of one epoch into a block, and return whether the epoch ends after them."""
    while count > 0:
        example = next(upcoming)
        if example is not None:
            block.append(example)
            count -= 1
        elif block:  # otherwise an earlier block was the end of that epoch
            return True
    return False


def reads_of_an_epoch(num_shards: int, num_readers: int) -> int:
    """How many times shards are read in an epoch: once each, but for each of its readers if it is left over."""
    left = num_shards % num_readers
    return num_shards - left + (num_readers + left - gcd(num_readers, left) if left else 0)


def was_dealt_alike(num_shards: Sequence[int], num_readers: int) -> bool:
    """Whether the first rule of dealing gave each reader what the present one gives it."""
    if SHARDS_OF_A_READER * num_readers > MAX_SHARDS < max(num_shards):
        return False
    return all(count % num_readers == 0 for count in num_shards if count <= MAX_SHARDS)


def tell_of_reads(num_shards: int, num_readers: int) -> None:
    """Print a warning if so few shards are dealt to the readers that they are read more than twice in an epoch."""
    times = reads_of_an_epoch(num_shards, num_readers) / num_shards
    if times > 2:
        print(
            f"Warning: {num_readers:,} data loader workers of all processes share {num_shards:,} shards, and read each "
            f"{times:.1f} times in an epoch. Write at least {num_readers:,} files, or lower `--num_workers`.",
            flush=True,
        )


def mixed(
    readers: Sequence[Reader], shares: Shares, draws: int, places: Sequence[Place]
) -> Iterator[tuple[int, Example, int, list[Place]]]:
    """Yield examples of several streams by their shares: source, example, and the draws and places after it."""
    places = list(places)
    streams = [reader.examples(place) for reader, place in zip(readers, places, strict=True)]
    for draw in itertools.count(draws):
        source, _ = shares.source_of(draw)
        example, places[source] = next(streams[source])
        yield source, example, draw + 1, list(places)


def shards_for(source: IterableDataset, num_readers: int) -> IterableDataset:
    """Split the source into at least one shard for each reader, if parts of its files can be read on their own."""
    if source.num_shards >= num_readers:
        return source
    return next(read_on(lambda _: [source.reshard()], "the stream"))
