"""Streams with many readers: few shards or many, each example once, equal work, no stop at the end of an epoch."""

import time
from itertools import islice

import pytest
from datasets import Dataset

from benchmarks.at_scale.resuming import each_once, resume_many
from tests.photographs import message_of, quick_datasets
from training.data import streams
from training.data.batches import resumed_readers
from training.data.sampling import permutation
from training.data.streams import (
    MAX_SHARDS,
    Place,
    Reader,
    reads_of_an_epoch,
    shard_of,
    spreading_stride,
    tell_of_reads,
)

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")


class Stored:
    """Shards of numbered rows, cut as `datasets` cuts a stream, with a record of the rows that were read."""

    def __init__(self, shards, read=None):
        self.shards, self.read = shards, [] if read is None else read
        self.num_shards = len(shards)

    def shard(self, num_shards, index):
        size, more = divmod(len(self.shards), num_shards)
        first = index * size + min(index, more)
        return Stored(self.shards[first : first + size + (index < more)], self.read)

    def skip(self, count):
        return Stored([[row for shard in self.shards for row in shard][count:]], self.read)

    def iter(self, batch_size):
        for shard in self.shards:
            for row in shard:
                self.read.append(row)
                yield {"number": [row]}


def stored(num_shards, each):
    return Stored([list(range(shard * each, (shard + 1) * each)) for shard in range(num_shards)])


def readers_of(source, num_readers, block_size=8):
    return [Reader(source, number, num_readers, 0, block_size) for number in range(num_readers)]


CASES = [(8, 4), (10, 4), (3, 4), (1, 5), (7, 64), (100, 64), (63, 64), (64, 64), (24, 36)]


@pytest.mark.parametrize(("num_shards", "num_readers"), CASES)
@pytest.mark.parametrize("each", [1, 7, 50])
def test_any_number_of_readers_gets_every_example_once_an_epoch(num_shards, num_readers, each):
    source = stored(num_shards, each)
    for epoch in (0, 5):
        found = [reader.in_order(Place(epoch)) for reader in readers_of(source, num_readers)]
        assert sorted(row.row["number"] for rows in found for row in rows) == list(range(num_shards * each))


@pytest.mark.parametrize(("num_shards", "num_readers"), CASES)
def test_a_reader_opens_two_of_the_shards_left_over_at_most(num_shards, num_readers):
    dealt = [reader.dealt(3) for reader in readers_of(stored(num_shards, 1), num_readers)]
    whole = [[shard for shard, parts in each if parts is None] for each in dealt]
    assert {len(each) for each in whole} == {num_shards // num_readers}
    assert max(len(each) for each in dealt) <= num_shards // num_readers + 2
    assert sum(len(each) for each in dealt) == reads_of_an_epoch(num_shards, num_readers)


def shares_of(source, num_readers, epochs=1):
    readers = readers_of(source, num_readers)
    return [sum(1 for epoch in range(epochs) for _ in reader.in_order(Place(epoch))) for reader in readers]


@pytest.mark.parametrize(("num_shards", "num_readers"), [(3, 4), (7, 64), (24, 36), (100, 64), (63, 64)])
def test_readers_have_as_much_to_do_as_each_other(num_shards, num_readers):
    """Also where a shard has fewer examples than it has parts."""
    each = 40
    shares = shares_of(stored(num_shards, each), num_readers)
    assert max(abs(share - num_shards * each / num_readers) for share in shares) <= 2
    over_epochs = shares_of(stored(num_shards, each), num_readers, num_readers)
    assert len(set(over_epochs)) == 1  # each has had every place among the parts


def test_without_spreading_some_readers_have_nothing_to_do(monkeypatch):
    """The control: examples into the parts one after the other, fewer than parts."""
    monkeypatch.setattr(streams, "spreading_stride", lambda num_parts: 1)
    assert min(shares_of(stored(7, 40), 64)) == 0


@pytest.mark.parametrize("num_parts", [1, 2, 3, 4, 6, 64, 100, 4096, 8192])
def test_the_stride_meets_every_part(num_parts):
    stride = spreading_stride(num_parts)
    assert sorted(index * stride % num_parts for index in range(num_parts)) == list(range(num_parts))


def test_more_readers_than_files_of_which_there_are_thousands():
    """Such files were put into more groups than there were files."""
    files = MAX_SHARDS + 26
    source = Dataset.from_dict({"number": list(range(2 * files))}).to_iterable_dataset(num_shards=files)
    assert len(list(Reader(source, 1099, 1100, 0, 8).in_order(Place()))) in (1, 2)
    source = stored(files, 2)
    given = [row.row["number"] for reader in readers_of(source, 1100) for row in reader.in_order(Place())]
    assert sorted(given) == list(range(2 * files))


@pytest.mark.parametrize(("files", "num_readers"), [(3000, 64), (3000, 512), (70_000, 4096)])
def test_readers_of_thousands_of_files_get_about_as_many(files, num_readers):
    reader = Reader(stored(files, 1), 0, num_readers, 0, 8)
    groups = reader.num_shards
    largest, smallest = -(-files // groups), files // groups
    own = len([shard for shard, parts in reader.dealt(0) if parts is None])
    assert largest == smallest or own >= 16


@pytest.mark.parametrize(("files", "groups"), [(5, 5), (17, 17), (1000, 1000), (1000, 40), (997, 320)])
def test_a_shard_that_is_cut_out_of_larger_parts_is_that_of_datasets(files, groups):
    source = Dataset.from_dict({"number": list(range(files))}).to_iterable_dataset(num_shards=files)
    for index in {*range(0, groups, 37), groups - 1}:
        assert list(shard_of(source, groups, index)) == list(source.shard(groups, index))


def test_opening_a_shard_does_not_go_through_all_of_them_each_time():
    source = Dataset.from_dict({"number": list(range(2048))}).to_iterable_dataset(num_shards=2048)
    seconds = {}
    for name, opened in (
        ("ours", lambda index: shard_of(source, 2048, index)),
        ("datasets", lambda i: source.shard(2048, i)),
    ):
        opened(5)
        start = time.perf_counter()
        for index in range(5):
            opened(index)
        seconds[name] = time.perf_counter() - start
    assert seconds["ours"] < seconds["datasets"] / 4


def in_blocks(reader, epochs):
    """The order as it is defined: blocks of an epoch's rows, one after the other, each in its own order."""
    given = []
    for epoch in range(epochs):
        rows = list(reader.in_order(Place(epoch)))
        for start in range(0, len(rows), reader.block_size):
            block = rows[start : start + reader.block_size]
            order = permutation(len(block), reader.seed, epoch, block[0].shard, block[0].index).tolist()
            given += [block[index] for index in reversed(order)]
    return given


@pytest.mark.parametrize("each", [1, 5, 8, 11, 16, 19])
def test_reading_ahead_of_the_end_of_an_epoch_changes_no_order(each):
    reader = Reader(stored(3, each), 0, 1, 0, 8)
    expected = in_blocks(reader, 5)
    found = list(islice(reader.examples(Place()), len(expected)))
    assert [example for example, _ in found] == expected
    for done in range(1, len(expected)):
        resumed = islice(reader.examples(found[done - 1][1]), len(expected) - done)
        assert [example for example, _ in resumed] == expected[done:]


@pytest.mark.parametrize(("each", "most"), [(6, 2), (12, 2), (304, 1)])
def test_a_reader_never_stops_to_fill_its_block(each, most):
    """At the end of an epoch too: the rows of the next one are read while the last of this one are given."""
    read = (source := stored(1, each)).read
    examples = Reader(source, 0, 1, 0, 8).examples(Place())
    next(examples)
    between = []
    for _ in range(5 * each):
        before = len(read)
        next(examples)
        between.append(len(read) - before)
    assert max(between) <= most
    assert len(between) < sum(between) + 8  # it does read on


def test_few_shards_for_many_readers_are_told_of(capsys):
    tell_of_reads(100, 64)
    assert capsys.readouterr().out == ""
    tell_of_reads(100, 4096)
    assert capsys.readouterr().out == (
        "Warning: 4,096 data loader workers of all processes share 100 shards, and read each 41.9 times in an epoch. "
        "Write at least 4,096 files, or lower `--num_workers`.\n"
    )


@pytest.mark.parametrize(("num_shards", "is_alike"), [([8], True), ([3], False), ([8, 3], False), ([3000], True)])
def test_a_checkpoint_that_other_dealing_gave_its_places_is_refused(num_shards, is_alike):
    readers = [[number, [Place()] * len(num_shards), 0, ()] for number in range(2)]
    states = [{"num_shards": num_shards, "readers": [reader]} for reader in readers]
    message = message_of(lambda: resumed_readers(states, 0, 2, 1, num_shards)) if not is_alike else ""
    assert is_alike or message.startswith("`resume_from_checkpoint` (=of an earlier version) must be of this version")
    dealt = [{**state, "dealing": streams.DEALING} for state in states]
    for known in (states, dealt) if is_alike else (dealt,):
        assert [reader.number for reader in resumed_readers(known, 1, 2, 1, num_shards)] == [1]


@pytest.mark.parametrize(("num_shards", "reads"), [(6, 1), (8, 1.5), (4, 2)])
def test_simulated_readers_stopped_and_resumed_give_every_image_once_in_the_same_order(num_shards, reads, tmp_path):
    """As many shards as readers, a number that they do not divide, and fewer; `benchmarks.scale` has 64 readers."""
    row = resume_many(tmp_path, 6, num_shards, 18)
    assert row["every image once"] and row["resumed as if not stopped"]
    assert row["reads of a shard in an epoch"] == reads


@pytest.mark.slow
@pytest.mark.parametrize("num_shards", [64, 100, 24])
def test_64_readers_stopped_and_resumed_give_every_image_once_in_the_same_order(num_shards, tmp_path):
    row = resume_many(tmp_path, 64, num_shards, 40)
    assert row["every image once"] and row["resumed as if not stopped"]


def test_an_image_that_is_lost_or_comes_twice_is_found():
    """The control of what the two tests above ask."""
    assert each_once([[(0, 0), (0, 1)], [(0, 2), (1, 0)]], 3)
    assert not each_once([[(0, 0), (0, 1)]], 3)
    assert not each_once([[(0, 0), (0, 1)], [(0, 2), (0, 1)]], 3)
