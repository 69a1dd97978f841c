"""Why streams, batches, sampling and retry are our own: what the libraries' ways break, beside ours that keeps it.

Each test fails on the day when the library keeps the promise: then call it, and delete ours with the test. Of the
retrying in `datasets` see `test_retry.py::test_without_it_a_short_absence_ends_the_stream`.
"""

import json
from collections import Counter
from itertools import islice

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset, interleave_datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data._utils import worker
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from tests.photographs import forget_accelerate, quick_datasets
from training.data.batches import TrainBatches
from training.data.samples import Collator
from training.data.sampling import Shares, StepSampler, sample_seed, seeded
from training.data.streams import Place, Reader
from training.settings.data import PretrainDataSettings

__all__ = ["quick_datasets"]
pytestmark = [
    pytest.mark.usefixtures("quick_datasets"),
    # Of torchdata 0.11, at every loader that it makes under PyTorch 2.14.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]
COUNT = 50
NUMBERS = list(range(COUNT))


def stored(count=COUNT, first=0):
    return Dataset.from_dict({"number": list(range(first, first + count))})


def stream(num_shards, count=COUNT, first=0):
    return stored(count, first).to_iterable_dataset(num_shards=num_shards)


def collate(rows):
    return torch.tensor([row["number"] for row in rows])


def stateful(dataset, num_workers=0, **options):
    return StatefulDataLoader(dataset, 4, num_workers=num_workers, collate_fn=collate, **options)


def flat(batches):
    return [number for batch in batches for number in batch.tolist()]


class Numbers:
    """Samples of numbers instead of images, with something drawn for each."""

    columns = ("number",)

    def __call__(self, row, name, *key):
        with seeded(sample_seed(0, *key)):
            return {"number": row["number"], "draw": torch.rand(()), "seed": 0, "is_transparent": False}


def ours(source, rank=0, num_processes=1, states=(), num_workers=0, batch_size=4):
    fields = {"num_workers": num_workers, "per_device_train_batch_size": batch_size, "shuffle_buffer_size": 20}
    config = PretrainDataSettings(dataset_name="owner/numbers", **fields)
    return TrainBatches([source], Numbers(), config, Collator(), rank, num_processes, states)


def numbers_of(batches, count):
    return flat(batch["number"] for batch in islice(batches, count))


def as_stored(state):
    return json.loads(json.dumps(state))


# Resumed as if never stopped


def shuffled(num_shards=3):
    return stream(num_shards).shuffle(seed=0, buffer_size=20)


def by_datasets(state=None):
    source = shuffled()
    if state is not None:
        source.load_state_dict(state)
    return source, (collate([row]) for row in source)


def by_torchdata(state=None):
    loader = stateful(shuffled())
    if state is not None:
        loader.load_state_dict(state)
    return loader, iter(loader)


def by_accelerate(state=None):
    loader = prepare_data_loader(stateful(shuffled()), put_on_device=False, use_stateful_dataloader=True)
    if state is not None:
        loader.load_state_dict(state)
    return loader, iter(loader)


@pytest.fixture
def fresh_accelerate():
    forget_accelerate()
    yield
    forget_accelerate()


@pytest.mark.parametrize("library", [by_datasets, by_torchdata, by_accelerate])
def test_a_resume_loses_what_the_shuffle_buffer_holds(library, fresh_accelerate):
    (loader, batches), seen = library(), []
    while len(seen) < 24:
        seen += next(batches).tolist()
    rest = flat(library(as_stored(loader.state_dict()))[1])
    assert sorted(seen + flat(batches)) == NUMBERS and len(set(seen + rest)) < COUNT


def test_ours_goes_on_inside_the_shuffled_block():
    batches = ours(stream(3))
    seen = numbers_of(batches, 6)
    resumed = ours(stream(3), states=[as_stored(batches.state_dict())])
    rest = numbers_of(resumed, 20)
    assert rest == numbers_of(batches, 20) and sorted((seen + rest)[:COUNT]) == NUMBERS


def test_a_shuffled_stream_of_several_workers_cannot_be_resumed(monkeypatch):
    """A worker's state is of its own shards, and `datasets` loads it into the reader of all of them."""
    monkeypatch.setattr(worker, "_worker_info", worker.WorkerInfo(id=0, num_workers=2, seed=0, dataset=None))
    source = shuffled(8)
    next(iter(source))
    again = shuffled(8)
    again.load_state_dict(source.state_dict())
    with pytest.raises(IndexError):
        next(iter(again))


class Signal(BaseException):
    """What ends a wait."""


def waits_once(armed):
    """A stream that a signal interrupts, once, while number 46 is waited for."""

    def read(row):
        if row["number"] == 46 and armed:
            armed.clear()
            raise Signal
        return row

    return stream(5).map(read)


def test_an_interrupted_wait_loses_the_images_of_its_batch():
    """The loader asks the stream for its state when it is asked itself, and finds it in the middle of a batch."""
    loader, seen = stateful(waits_once([True])), []
    with pytest.raises(Signal):
        for batch in loader:
            seen += batch.tolist()
    again = stateful(waits_once([]))
    again.load_state_dict(loader.state_dict())
    assert seen == NUMBERS[:44] and not {44, 45} & set(flat(again))


def test_an_interrupted_wait_of_ours_loses_nothing():
    batches, seen = ours(waits_once([True])), []
    with pytest.raises(Signal):
        for batch in batches:
            seen += batch["number"].tolist()
    resumed = ours(waits_once([]), states=[as_stored(batches.state_dict())])
    assert 0 < len(seen) < COUNT and sorted((seen + numbers_of(resumed, 20))[:COUNT]) == NUMBERS


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0), (2, 1)])
def test_a_stateful_loader_goes_on_with_as_many_workers_alone(before, after):
    options = {"sampler": NUMBERS}
    loader = stateful(stored(), before, **options)
    seen = flat(islice(loader, 3))
    again = stateful(stored(), after, **options)
    again.load_state_dict(loader.state_dict())
    with pytest.raises(AssertionError):
        iter(again)
    batches = ours(stored(), num_workers=before)
    seen = numbers_of(batches, 3)
    seen += numbers_of(ours(stored(), states=[as_stored(batches.state_dict())], num_workers=after), 10)
    assert sorted(seen[:COUNT]) == NUMBERS


def test_a_stateful_sampler_goes_on_with_as_many_processes_alone():
    def ranks(world, states=None):
        samplers = [StatefulDistributedSampler(stored(), world, rank, seed=0) for rank in range(world)]
        for rank, sampler in enumerate(samplers if states else []):
            sampler.load_state_dict(states[min(rank, len(states) - 1)])
        return samplers

    before = ranks(2)
    seen = [number for sampler in before for number in islice(sampler, 12)]
    for world, is_lost in ((1, False), (3, True)):
        after = seen + [
            number for sampler in ranks(world, [each.state_dict() for each in before]) for number in sampler
        ]
        assert (len(set(after)) < COUNT) == is_lost and max(Counter(after).values()) > 1
    assert len([number for sampler in ranks(3) for number in sampler]) == COUNT + 1  # padded
    seen = [number for rank in range(2) for number in chain_of(rank, 2, 0, 12)]
    for world in (1, 3):
        after = seen + [number for rank in range(world) for number in chain_of(rank, world, 24, 26 // world + 1)]
        assert sorted(after) == NUMBERS


def chain_of(rank, world, start, count):
    """So many numbers of the first epoch in a process's share of our chain."""
    sampler = StepSampler([COUNT], [1], 1, rank, world, 0, start)
    return [index for ((epoch, index),) in islice(sampler, count) if epoch == 0]


class Draws(TorchDataset):
    """What a transform draws for each sample."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return {"number": torch.rand(())}


def test_the_randomness_of_workers_begins_again_at_a_resume():
    loader = stateful(Draws(), num_workers=1)
    batches = iter(loader)
    first = flat(islice(batches, 3))
    again = stateful(Draws(), num_workers=1)
    again.load_state_dict(loader.state_dict())
    assert flat(again)[:12] == first != flat(batches)[:12]
    mine = ours(stored(), num_workers=1)
    numbers_of(mine, 3)
    resumed = ours(stored(), states=[as_stored(mine.state_dict())])
    assert flat(batch["draw"] for batch in islice(resumed, 3)) == flat(batch["draw"] for batch in islice(mine, 3))


def test_the_state_of_a_shuffling_loader_is_no_json():
    loader = stateful(stored(), shuffle=True)
    next(iter(loader))
    with pytest.raises(TypeError, match="Tensor is not JSON"):
        json.dumps(loader.state_dict())
    batches = ours(stored())
    next(batches)
    assert len(json.dumps(batches.state_dict())) < 200


# Every image of an epoch once, to processes and workers that have as much to do as each other


@pytest.mark.parametrize(("num_shards", "world"), [(3, 3), (8, 3)])
def test_split_by_node_the_processes_have_unequal_numbers_of_batches(num_shards, world):
    parts = [split_dataset_by_node(shuffled(num_shards), rank, world) for rank in range(world)]
    assert len({len(list(stateful(part))) for part in parts}) > 1  # one waits for ever for the others' gradients
    batches = [ours(stream(num_shards), rank, world) for rank in range(world)]
    sizes = {len(batch["number"]) for each in batches for batch in islice(each, 30)}
    assert sizes == {4}


def test_split_by_node_every_process_reads_everything():
    """Unless the shards can be shared evenly. Of ours, some read the same shard if it is left over, and no other."""
    read = []
    source = stream(9, 90).map(lambda row: read.append(row["number"]) or row)
    for rank in range(2):
        list(split_dataset_by_node(source, rank, 2))
    assert len(read) == 2 * 90
    read.clear()
    for rank in range(2):
        list(Reader(source, rank, 2, 0, 20).in_order(Place()))
    assert len(read) == 90 + 10


def test_a_repeated_stream_has_the_same_order_in_every_epoch():
    twice = [row["number"] for row in shuffled().repeat(2)]
    assert twice[:COUNT] == twice[COUNT:]
    twice = [
        example.row["number"] for example, _ in islice(Reader(stream(3), 0, 1, 0, 20).examples(Place()), 2 * COUNT)
    ]
    assert sorted(twice[:COUNT]) == sorted(twice[COUNT:]) == NUMBERS and twice[:COUNT] != twice[COUNT:]


# Mixed by weight


@pytest.mark.parametrize(
    ("strategy", "lost", "repeated"),
    [("first_exhausted", True, False), ("all_exhausted", False, True)],
)
def test_interleaved_sources_end_together_by_losing_or_repeating_images(strategy, lost, repeated):
    sources = [stream(3), stream(2, 10, first=100)]
    mixed = interleave_datasets(sources, probabilities=[0.75, 0.25], seed=0, stopping_strategy=strategy)
    times = Counter(row["number"] for row in mixed)
    assert (len(times) < COUNT + 10, max(times.values()) > 1) == (lost, repeated)


def test_interleaved_sources_without_end_have_their_shares_by_chance_and_the_workers_of_the_smallest():
    sources = [stream(8).repeat(None), stream(1, 10, first=100).repeat(None)]
    mixed = interleave_datasets(sources, probabilities=[0.75, 0.25], seed=0)
    drawn = [row["number"] >= 100 for row in islice(mixed, 2000)]
    assert not sum(drawn[:1000]) == sum(drawn[1000:]) == 250
    assert mixed.num_shards == 1  # one worker reads, the others end
    shares = Shares([0.75, 0.25], 0)
    drawn = [shares.source_of(draw)[0] for draw in range(2000)]
    assert sum(drawn[:1000]) == sum(drawn[1000:]) == 250
