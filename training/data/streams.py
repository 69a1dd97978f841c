"""Reads a stream as an endless sequence of epochs; in each epoch, every example goes to exactly one reader.

A reader is one data loader worker of one training process. Each epoch distributes the shards to the readers, in an
order that depends on the seed and the epoch. A shard is a file; a row group of a parquet file if there are fewer files
than readers; or a group of files if there are thousands. If the shards cannot be divided evenly, every reader reads all
of the remaining shards and keeps its share of their examples, so that all readers have the same amount of work.

The examples are shuffled in blocks: while a reader gives one block in random order, it reads the next. A `Place` is the
position to resume from. A resume reads again at most the current block, and its shard from the beginning.

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
from functools import partial
from typing import Any, NamedTuple

from datasets import IterableDataset

from training.data.retry import read_on
from training.data.sampling import Shares, epoch_order, permutation
from training.data.sources import rows_of

MAX_SHARDS = 1024  # `datasets` makes every image of a folder a shard
MAX_EMPTY_EPOCHS = 10


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
        """The number of shards to distribute; above `MAX_SHARDS`, a smaller number that divides among the readers."""
        most = max(MAX_SHARDS - MAX_SHARDS % self.num_readers, self.num_readers)
        return self.source.num_shards if self.source.num_shards <= MAX_SHARDS else most

    def examples(self, start: Place) -> Iterator[tuple[Example, Place]]:
        """Yield examples without end, each with the place after it.

        Raises a `ValueError` after `MAX_EMPTY_EPOCHS` epochs without an example for this reader.
        """
        empty = 0
        for epoch in itertools.count(start.epoch):
            place = start if epoch == start.epoch else Place(epoch)
            found = None
            for found in self.shuffled(place):
                yield found
            empty = 0 if found is not None else empty + 1
            if empty == MAX_EMPTY_EPOCHS:
                raise ValueError("A stream must hold examples for every process and worker: use fewer of them.")

    def shuffled(self, place: Place) -> Iterator[tuple[Example, Place]]:
        """The examples that are left of an epoch, in random order, each with the place after it."""
        examples, seen = self.in_order(place), place.taken
        block = list(itertools.islice(examples, self.block_size))
        while block:
            first, following = block[0], []
            order = permutation(len(block), self.seed, first.epoch, first.shard, first.index)
            block = [block[index] for index in order.tolist()]
            for taken in range(1, len(block) + 1):
                following += itertools.islice(examples, 1)
                example = block.pop()
                if taken > seen:
                    yield example, Place(first.epoch, first.turn, first.index, taken)
            block, seen = following, 0

    def in_order(self, place: Place) -> Iterator[Example]:
        """The examples of an epoch from the block of a place on, in stored order."""
        for turn, (shard, share) in enumerate(self.dealt(place.epoch)):
            skip = place.index if turn == place.turn else 0
            if turn < place.turn:
                continue
            stored = read_on(partial(self.rows, shard, skip), f"shard {shard} of the stream")
            for index, row in enumerate(stored, start=skip):
                if share is None or index % self.num_readers == share:
                    yield Example(row, place.epoch, turn, shard, index)

    def rows(self, shard: int, skip: int, done: int) -> Iterator[dict[str, Any]]:
        """The rows of a shard from `skip + done` on."""
        return rows_of(self.source.shard(self.num_shards, shard).skip(skip + done))

    def dealt(self, epoch: int) -> list[tuple[int, int | None]]:
        """The shards that this reader reads in an epoch, each with the reader's share; None: it has the whole shard."""
        order = epoch_order(self.num_shards, self.seed, epoch).tolist()
        whole = len(order) - len(order) % self.num_readers
        own = [(shard, None) for shard in order[self.number : whole : self.num_readers]]
        shared = enumerate(order[whole:], start=self.number)
        return [*own, *((shard, share % self.num_readers) for share, shard in shared)]


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
