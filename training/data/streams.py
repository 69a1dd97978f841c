"""A stream as an endless chain of epochs for each of its readers: every example of an epoch comes once, to one of them.

A reader is one worker of one training process. Each epoch deals the shards to the readers in an order drawn from seed
and epoch: files; row groups of parquet where there are fewer files than readers; many files at a time where there are
thousands. Of the shards that are left over, every reader reads all and keeps its share of the examples, so that readers
have as much to do as each other.

The examples are shuffled in blocks: while one is handed out in a random order, the next one is read. A `Place` tells
where to start reading again, which is never further back than the block under way and the beginning of a shard.

Why not `shuffle`, `state_dict`, `split_dataset_by_node` and `interleave_datasets` of `datasets` 5.2: a resume loses
images that the shuffle buffer held, and a shuffled stream of several workers cannot be resumed at all; the processes
get unequal numbers of batches, and each reads everything where the shards cannot be shared evenly; a repeated stream
has the same order in every epoch; mixed sources end together by losing or repeating images, or have no end and are read
by as many workers as the smallest has files. `tests/training/data/test_alternatives.py` shows it, and fails once it is
no longer so.
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

MAX_SHARDS = 1024  # of a folder, `datasets` takes every image for a shard
MAX_EMPTY_EPOCHS = 10


class Place(NamedTuple):
    """What a reader has handed out: all before the block that begins at `index` of a shard, and `taken` of that."""

    epoch: int = 0
    turn: int = 0  # among the shards that the reader reads in this epoch
    index: int = 0
    taken: int = 0


class Example(NamedTuple):
    """A row of a source and the numbers that name it for good."""

    row: dict[str, Any]
    epoch: int
    turn: int
    shard: int
    index: int  # in its shard


@dataclass(frozen=True)
class Reader:
    """One of `num_readers` that share a stream."""

    source: IterableDataset
    number: int
    num_readers: int
    seed: int
    block_size: int

    @property
    def num_shards(self) -> int:
        """Shards that are dealt, as many for each reader where there are too many of them."""
        most = max(MAX_SHARDS - MAX_SHARDS % self.num_readers, self.num_readers)
        return self.source.num_shards if self.source.num_shards <= MAX_SHARDS else most

    def examples(self, start: Place) -> Iterator[tuple[Example, Place]]:
        """Examples without end, each with the place after it; a `ValueError` where there are none."""
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
        """What is left of an epoch, in a random order."""
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
        """What is left of an epoch from the block of a place on, as it is stored."""
        for turn, (shard, share) in enumerate(self.dealt(place.epoch)):
            skip = place.index if turn == place.turn else 0
            if turn < place.turn:
                continue
            stored = read_on(partial(self.rows, shard, skip), f"shard {shard} of the stream")
            for index, row in enumerate(stored, start=skip):
                if share is None or index % self.num_readers == share:
                    yield Example(row, place.epoch, turn, shard, index)

    def rows(self, shard: int, skip: int, done: int) -> Iterator[dict[str, Any]]:
        """A shard's rows from `skip + done` on."""
        return rows_of(self.source.shard(self.num_shards, shard).skip(skip + done))

    def dealt(self, epoch: int) -> list[tuple[int, int | None]]:
        """The shards that this reader reads, with its share of those that all of them read."""
        order = epoch_order(self.num_shards, self.seed, epoch).tolist()
        whole = len(order) - len(order) % self.num_readers
        own = [(shard, None) for shard in order[self.number : whole : self.num_readers]]
        shared = enumerate(order[whole:], start=self.number)
        return [*own, *((shard, share % self.num_readers) for share, shard in shared)]


def mixed(
    readers: Sequence[Reader], shares: Shares, draws: int, places: Sequence[Place]
) -> Iterator[tuple[int, Example, int, list[Place]]]:
    """Examples of several streams by their shares: the source's number, and after it the draws and places."""
    places = list(places)
    streams = [reader.examples(place) for reader, place in zip(readers, places, strict=True)]
    for draw in itertools.count(draws):
        source, _ = shares.source_of(draw)
        example, places[source] = next(streams[source])
        yield source, example, draw + 1, list(places)


def shards_for(source: IterableDataset, num_readers: int) -> IterableDataset:
    """The source with a shard for every reader, if its files have parts that can be read on their own."""
    if source.num_shards >= num_readers:
        return source
    return next(read_on(lambda _: [source.reshard()], "the stream"))
