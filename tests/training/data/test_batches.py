"""Batches of any source: every sample once an epoch over all processes and workers, and resumed as if never stopped."""

import io
import json
import os
import tarfile
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset, Features, Image, Value, load_dataset
from datasets.distributed import split_dataset_by_node
from PIL import Image as Pictures
from torch.testing import assert_close
from torch.utils.data import DataLoader

from tests.photographs import message_of, quick_datasets
from training.data import samples as data
from training.data.batches import TrainBatches
from training.data.samples import Collator, Samples
from training.data.sources import load_source
from training.data.streams import MAX_SHARDS, Place, Reader, shards_for
from training.settings.scripts import PretrainSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
COUNT = 50


def write_numbers(folder, files, count=COUNT, first=0, row_group_size=None):
    """Grey squares whose brightness is their number, in parquet files of as many rows, or one more or fewer."""
    folder.mkdir(parents=True)
    images = []
    for number in range(first, first + count):
        buffer = io.BytesIO()
        Pictures.fromarray(np.full((4, 4, 3), number, dtype=np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    table = Dataset.from_dict({"image": images}, features=Features({"image": Image()}))
    for file in range(files):
        part = table.shard(files, file)
        part.to_parquet(folder / f"train-{file:05d}-of-{files:05d}.parquet", batch_size=row_group_size or len(part))
    return str(folder)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """Folders of 50 numbered images in 1, 3 and 8 files."""
    root = tmp_path_factory.mktemp("numbers")
    return {files: write_numbers(root / str(files), files) for files in (1, 3, 8)}


class Numbered(Samples):
    """Samples that say which image and epoch they are of."""

    def __call__(self, row, name, *key):
        sample = super().__call__(row, name, *key)
        return {**sample, "number": sample["pixel_values"].flatten()[0], "epoch": key[0]}


def settings(folder, **fields):
    defaults = {"num_workers": 0, "per_device_train_batch_size": 4, "shuffle_buffer_size": 8, "output_dir": "out"}
    return PretrainSettings(dataset_name=str(folder), **{**defaults, **fields}).data


def batches_of(config, rank=0, world=1, states=(), folders=()):
    sources = [load_source(config, "train", None)]
    sources += [load_source(settings(folder, streaming=config.streaming), "train", None) for folder in folders]
    samples = Numbered(config.image_column, 3, None, lambda image: image.float(), config.seed, num_cells=4)
    weights = config.mixture_weights or [1]
    return TrainBatches(sources, samples, config, Collator(), rank, world, states, weights)


def keys_of(batches, count):
    """(epoch, number) of the samples of so many batches."""
    taken = list(islice(batches, count))
    return [(e, int(n)) for batch in taken for e, n in zip(batch["epoch"].tolist(), batch["number"], strict=True)]


# Exactly once


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("files", [1, 3, 8])
@pytest.mark.parametrize("streaming", [True, False])
def test_an_epoch_has_every_image_once_over_all_processes_and_workers(
    streaming, files, world, num_workers, numbers, tmp_path, monkeypatch
):
    config = settings(numbers[files], streaming=streaming, num_workers=num_workers)
    log = os.open(tmp_path / "decoded", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    decode_image = data.decode_image

    def counted(*arguments):
        image = decode_image(*arguments)
        os.write(log, bytes([int(image.pixels.flatten()[0])]))  # of workers too
        return image

    monkeypatch.setattr(data, "decode_image", counted)
    num_batches = 4 * COUNT // (4 * world)
    keys = [key for rank in range(world) for key in keys_of(batches_of(config, rank, world), num_batches)]
    os.close(log)
    for epoch in (0, 1):
        assert sorted(number for e, number in keys if e == epoch) == list(range(COUNT))
    decoded = len((tmp_path / "decoded").read_bytes())
    ahead = world * num_workers * 2 * 4  # the two batches that a worker has ready
    assert len(keys) <= decoded <= len(keys) + ahead


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("form", ["webdataset", "folder"])
@pytest.mark.parametrize("streaming", [True, False])
def test_an_epoch_of_any_form_of_data_has_every_image_once(streaming, form, num_workers, numbers, tmp_path):
    rows = list(load_dataset(numbers[1], split="train").cast_column("image", Image(decode=False))["image"])
    if form == "webdataset":
        write_tars(tmp_path / "tars", [row["bytes"] for row in rows], files=3)
        name, column = f"{tmp_path}/tars/*.tar", "png"
    else:
        (tmp_path / "folder/train").mkdir(parents=True)
        for number, row in enumerate(rows):
            (tmp_path / f"folder/train/{number}.png").write_bytes(row["bytes"])
        name, column = str(tmp_path / "folder"), "image"
    config = settings(name, streaming=streaming, num_workers=num_workers, image_column=column)
    keys = [key for rank in range(2) for key in keys_of(batches_of(config, rank, 2), COUNT // 2)]
    for epoch in (0, 1):
        assert sorted(number for e, number in keys if e == epoch) == list(range(COUNT))


def write_tars(folder, images, files):
    """Webdataset's form: in a tar file, everything of an example under one key."""
    folder.mkdir()
    for file in range(files):
        with tarfile.open(folder / f"{file:05d}.tar", "w") as archive:
            for number in range(file, len(images), files):
                for name, content in ((f"{number:04d}.png", images[number]), (f"{number:04d}.cls", b"%d" % number)):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("files", [1, 3, 8])
def test_split_by_hand_and_by_accelerate_an_epoch_loses_images(files, numbers):
    """The usual scripts' way: what the test above would not let pass."""
    seen = []
    for rank in range(2):
        source = load_dataset(numbers[files], split="train", streaming=True).shuffle(seed=0, buffer_size=8)
        collate = lambda rows: {"number": torch.tensor([row["image"].getpixel((0, 0))[0] for row in rows])}  # noqa: E731
        loader = DataLoader(split_dataset_by_node(source, rank, 2), batch_size=1, collate_fn=collate)
        prepared = prepare_data_loader(
            loader, num_processes=2, process_index=rank, dispatch_batches=False, put_on_device=False
        )
        seen += [int(batch["number"]) for batch in prepared]
    assert sorted(set(seen)) != list(range(COUNT))


def test_an_epoch_of_a_stream_has_an_order_of_its_own(numbers):
    keys = keys_of(batches_of(settings(numbers[3], streaming=True)), 25)
    orders = [[number for e, number in keys if e == epoch] for epoch in (0, 1)]
    assert orders[0] != orders[1] and all(order != sorted(order) for order in orders)
    again = keys_of(batches_of(settings(numbers[3], streaming=True)), 25)
    other_seed = keys_of(batches_of(settings(numbers[3], streaming=True, seed=1)), 25)
    assert again == keys != other_seed


def test_the_images_of_one_file_come_in_another_order_in_each_epoch(numbers):
    """Where there is one file, no order of files hides that its images would come as before."""
    keys = keys_of(batches_of(settings(numbers[1], streaming=True)), 3 * COUNT // 4)
    orders = [[number for e, number in keys if e == epoch][:32] for epoch in (0, 1, 2)]
    assert all(sorted(order) != order for order in orders) and len({tuple(order) for order in orders}) == 3


def test_a_process_reads_other_files_of_a_stream_in_another_epoch(numbers):
    keys = keys_of(batches_of(settings(numbers[8], streaming=True), 0, 2), 26)
    read = [frozenset(number for e, number in keys if e == epoch) for epoch in range(4)]
    assert len(set(read)) > 1 and all(20 < len(numbers) < 30 for numbers in read)


def test_crops_and_masks_do_not_depend_on_the_readers(numbers):
    noise = []
    for world, num_workers in ((1, 0), (2, 0), (1, 2)):
        config = settings(numbers[3], streaming=True, num_workers=num_workers)
        found = {}
        for rank in range(world):
            for batch in islice(batches_of(config, rank, world), 4 * COUNT // (4 * world)):
                rows = zip(batch["epoch"].tolist(), batch["number"].tolist(), batch["noise"].tolist(), strict=True)
                found |= {(epoch, number): row for epoch, number, row in rows if epoch == 0}
        noise.append(found)
    assert noise[0] == noise[1] == noise[2] and len(noise[0]) == COUNT


def test_the_readers_of_few_files_share_their_row_groups(tmp_path):
    folder = write_numbers(tmp_path / "groups", 1, row_group_size=10)
    source = load_source(settings(folder, streaming=True), "train", None)
    assert shards_for(source, 1).num_shards == 1 and shards_for(source, 3).num_shards == 5
    config = settings(folder, streaming=True)
    keys = [key for rank in range(3) for key in keys_of(batches_of(config, rank, 3), 16)]
    assert sorted(number for epoch, number in keys if epoch == 0) == list(range(COUNT))


def test_thousands_of_files_are_dealt_a_few_at_a_time(tmp_path):
    rows = [{"number": i} for i in range(3 * MAX_SHARDS)]
    source = Dataset.from_list(rows, features=Features({"number": Value("int64")}))
    stream = source.to_iterable_dataset(num_shards=3 * MAX_SHARDS)
    found = []
    for number in range(3):
        reader = Reader(stream, number, 3, 0, 10)
        assert len(reader.dealt(0)) == MAX_SHARDS // 3
        found += [example.row["number"] for example, _ in islice(reader.examples(Place()), MAX_SHARDS // 3 * 2)]
    assert len(set(found)) == len(found)


def test_streams_are_mixed_by_weight_and_keep_their_epochs(numbers, tmp_path):
    folder = write_numbers(tmp_path / "more", 2, count=10, first=100)
    for streaming in (True, False):
        fields = {"mixed_dataset_names": [folder], "mixture_weights": [0.75, 0.25], "streaming": streaming}
        keys = keys_of(batches_of(settings(numbers[3], **fields), folders=[folder]), 250)
        seconds = Counter(number for _, number in keys if number >= 100)
        assert seconds.total() == 250 and set(seconds) == set(range(100, 110)) and set(seconds.values()) == {25}
        assert sorted(number for epoch, number in keys if epoch == 0 and number < 100) == list(range(COUNT))


@pytest.mark.parametrize("streaming", [True, False])
def test_images_of_mixed_sources_have_masks_of_their_own(streaming, tmp_path):
    """Also those at the same place of sources that are stored alike."""
    folders = [write_numbers(tmp_path / f"{first}", 1, count=10, first=first) for first in (0, 100)]
    fields = {"mixed_dataset_names": folders[1:], "mixture_weights": [0.5, 0.5], "streaming": streaming}
    noise = {}
    for batch in islice(batches_of(settings(folders[0], **fields), folders=folders[1:]), 10):
        rows = zip(batch["epoch"].tolist(), batch["number"].tolist(), batch["noise"].tolist(), strict=True)
        noise |= {(epoch, number): tuple(row) for epoch, number, row in rows}
    assert {(0, number) for number in (*range(10), *range(100, 110))} <= set(noise)
    assert len(set(noise.values())) == len(noise)


# Resume


def resume_of(batches, count):
    """The states of all processes after so many batches, as a checkpoint keeps them."""
    for each in batches:
        list(islice(each, count))
    return json.loads(json.dumps([each.state_dict() for each in batches]))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("done", [1, 9])
def test_batches_after_a_resume_are_those_of_a_run_that_went_on(
    done, streaming, world, num_workers, mixed, numbers, tmp_path
):
    folders = [write_numbers(tmp_path / "more", 2, count=10, first=100)] if mixed else []
    fields = {"mixed_dataset_names": folders, "mixture_weights": [0.5, 0.5]} if mixed else {}
    config = settings(numbers[3], streaming=streaming, num_workers=num_workers, **fields)
    straight = [list(islice(batches_of(config, rank, world, folders=folders), 16)) for rank in range(world)]
    states = resume_of([batches_of(config, rank, world, folders=folders) for rank in range(world)], done)
    for rank in range(world):
        resumed = list(islice(batches_of(config, rank, world, states, folders), 16 - done))
        assert_close(resumed, straight[rank][done:], rtol=0, atol=0)
        assert not torch.equal(resumed[0]["noise"], straight[rank][0]["noise"])


def test_a_resume_reads_no_more_than_the_block_and_the_shard_under_way(numbers):
    source = load_source(settings(numbers[8], streaming=True), "train", None)
    reader = Reader(source, 0, 1, 0, 8)
    *_, (_, place) = islice(reader.examples(Place()), 130)  # in the third epoch
    assert place.epoch == 2 and place.taken <= 8
    assert next(reader.in_order(place)).epoch == 2
    following = [example for example, _ in islice(reader.examples(Place()), 140)][130:]
    assert [e[1:] for e, _ in islice(reader.examples(place), 10)] == [e[1:] for e in following]


@pytest.mark.parametrize(("world", "num_workers", "batch"), [(2, 0, 4), (1, 2, 4), (1, 0, 6), (3, 0, 2)])
def test_a_folder_is_taken_up_by_any_number_of_processes_and_workers(world, num_workers, batch, numbers):
    config = settings(numbers[3], per_device_train_batch_size=5)
    states = resume_of([batches_of(config, rank, 2) for rank in range(2)], 3)
    straight = [batches_of(config, rank, 2) for rank in range(2)]
    seen = [key for each in straight for key in keys_of(each, 3)]
    config = settings(numbers[3], per_device_train_batch_size=batch, num_workers=num_workers)
    count = -(-20 // (batch * world))
    seen += [key for rank in range(world) for key in keys_of(batches_of(config, rank, world, states), count)]
    assert sorted(number for epoch, number in seen if epoch == 0) == list(range(COUNT))


@pytest.mark.parametrize(
    ("world", "fields", "name"),
    [(2, {}, "num_processes"), (1, {"num_workers": 3}, "num_workers"), (1, {"dataset_name": 8}, "dataset_name")],
)
def test_a_stream_is_not_taken_up_by_other_readers(world, fields, name, numbers):
    states = resume_of([batches_of(settings(numbers[3], streaming=True, num_workers=2))], 3)
    folder = numbers[fields.pop("dataset_name", 3)]
    config = settings(folder, streaming=True, **{"num_workers": 2, **fields})
    assert message_of(lambda: batches_of(config, 0, world, states)).startswith(f"`{name}` (=")


@pytest.mark.parametrize("fields", [{"seed": 1}, {"shuffle_buffer_size": 9}, {"mixture_weights": [0.2, 0.8]}])
def test_what_the_order_follows_from_stays_as_it_was(fields, numbers):
    folders = [numbers[1]] if "mixture_weights" in fields else []
    mixture = {"mixed_dataset_names": folders, "mixture_weights": [0.5, 0.5]} if folders else {}
    config = settings(numbers[3], streaming=True, **mixture)
    states = resume_of([batches_of(config, folders=folders)], 2)
    other = settings(numbers[3], streaming=True, **{**mixture, **fields})
    ((name, value),) = fields.items()
    message = message_of(lambda: batches_of(other, states=states, folders=folders))
    assert message.startswith(f"`{name}` (={value}) must be ") and "the order of the images follows from it" in message


@pytest.mark.parametrize("streaming", [False, True])
def test_a_checkpoint_that_does_not_say_whether_it_is_of_a_stream_is_known_by_its_buffer(streaming, numbers):
    states = resume_of([batches_of(settings(numbers[3], streaming=streaming))], 2)
    del states[0]["order"]["streaming"]
    batches_of(settings(numbers[3], streaming=streaming), states=states)
    other = settings(numbers[3], streaming=not streaming)
    message = message_of(lambda: batches_of(other, states=states))
    assert message.startswith(f"`streaming` (={not streaming}) must be {streaming}, as in the checkpoint")


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("files", [1, 3, 8])
def test_the_first_examples_of_a_stream_are_as_many_as_asked_for(files, num_workers, numbers):
    """`take` of `datasets` alone is divided among the shards, and smaller shards fall short of their part."""
    config = settings(numbers[files], streaming=True, num_workers=num_workers, max_train_samples=20)
    samples = Numbered("image", 3, None, lambda image: image.float(), num_cells=4)
    source = load_source(config, "train", config.max_train_samples)
    first = [row["image"]["bytes"] for row in islice(load_source(config, "train", None), 20)]
    assert [row["image"]["bytes"] for row in source] == first
    batches = [TrainBatches([source], samples, config, Collator(), rank, 2) for rank in range(2)]
    seen = [key for each in batches for key in keys_of(each, 20)]
    expected = sorted(int(Pictures.open(io.BytesIO(content)).getpixel((0, 0))[0]) for content in first)
    for epoch in (0, 1):
        assert sorted(number for e, number in seen if e == epoch) == expected


# Bad images


def spoil(numbers, tmp_path, bad):
    """A file of the numbered images, of which some are no images."""
    rows = load_dataset(numbers[1], split="train").cast_column("image", Image(decode=False))
    cells = [row["image"] if i not in bad else {"bytes": b"no image", "path": None} for i, row in enumerate(rows)]
    (tmp_path / "spoilt").mkdir()
    file = tmp_path / "spoilt/train.parquet"
    Dataset.from_dict({"image": cells}, features=Features({"image": Image()})).to_parquet(file)
    return str(tmp_path / "spoilt")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_of_a_stream_are_left_out_counted_and_named_once(num_workers, numbers, tmp_path):
    folder = spoil(numbers, tmp_path, bad := {3, 17, 40})
    config = settings(folder, streaming=True, skip_bad_images=True, num_workers=num_workers)
    batches = batches_of(config)
    keys = keys_of(batches, 15)
    assert sorted(number for epoch, number in keys if epoch == 0) == sorted(set(range(COUNT)) - bad)
    assert {text for _, text in batches.problems} == {
        f"example {i} of shard 0 cannot be read as an image: its format is not known." for i in bad
    }
    assert batches.bad == {(0, 0, i) for i in bad}
    parts = batches_of(config)
    states = resume_of([parts], 7)
    again = batches_of(config, states=states)
    assert keys_of(again, 8) == keys[7 * 4 :]
    assert again.bad == batches.bad and again.problems == batches.problems


def test_the_same_bad_image_counts_once_however_many_epochs_there_are(numbers, tmp_path):
    folder = spoil(numbers, tmp_path, bad={3})
    config = settings(folder, streaming=True, skip_bad_images=True, max_bad_images=1)
    batches = batches_of(config)
    keys = keys_of(batches, 100)
    assert max(epoch for epoch, _ in keys) >= 7 and len(batches.bad) == len(batches.problems) == 1


def test_more_bad_images_than_allowed_stop_the_run(numbers, tmp_path):
    config = settings(spoil(numbers, tmp_path, set(range(50))), streaming=True, skip_bad_images=True, max_bad_images=20)
    assert message_of(lambda: next(batches_of(config))).startswith("`max_bad_images` (=20) is exceeded. example ")


def test_a_stream_of_bad_images_alone_is_an_error(numbers, tmp_path):
    config = settings(spoil(numbers, tmp_path, set(range(COUNT))), streaming=True, skip_bad_images=True)
    message = message_of(lambda: next(batches_of(config)))
    assert message.startswith("A stream must hold good images for every process and worker. example ")


class LosingLoader:
    """A loader that loses the connection to its only worker, whose end is that of a pipe."""

    def __init__(self):
        sentinel, self.end = os.pipe()
        self._workers = [SimpleNamespace(pid=4711, sentinel=sentinel, join=lambda: None)]

    def __next__(self):
        raise ConnectionResetError("Connection reset by peer")


def test_a_worker_that_dies_while_it_hands_a_batch_over_is_named(numbers):
    batches = batches_of(settings(numbers[1], streaming=True))
    batches.batches = LosingLoader()
    with pytest.raises(ConnectionResetError):  # an error of the source's is as it was
        next(batches)
    os.close(batches.batches.end)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid\(s\) 4711\) exited unexpectedly"):
        next(batches)


def test_a_stream_too_short_for_its_readers_is_an_error(tmp_path):
    config = settings(write_numbers(tmp_path / "one", 1, count=1), streaming=True)
    message = message_of(lambda: next(batches_of(config, 1, 20)))  # its turn comes in the 20th epoch
    assert message == "A stream must hold examples for every process and worker: use fewer of them."
