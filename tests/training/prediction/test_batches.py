"""Batches of several processes: taken in turn, they are all images once and in order, from any image on."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, Features, Image

from tests.photographs import cut, message_of
from training.data.samples import make_samples
from training.prediction.batches import ImageReader, batches, rounds
from training.prediction.images import Images
from training.settings.prediction import PredictDataSettings

COUNT = 11


@pytest.fixture(scope="module")
def source():
    features = Features({"image": Image()})
    rows = Dataset.from_dict({"image": cut("coffee", COUNT)}, features=features)
    return rows.cast_column("image", Image(decode=False))


def batches_of(source, rank, world, size, start, workers=0, streaming=False, bad=(), transform=torch.Tensor.float):
    data = PredictDataSettings(dataset_name="me/photos", per_device_eval_batch_size=size, num_workers=workers)
    source = source.to_iterable_dataset(num_shards=3) if streaming else source
    samples = make_samples(data, source, 3, transform)
    place = SimpleNamespace(process_index=rank, num_processes=world)
    reader = ImageReader(Images(source, None, None), samples, not bad)
    return batches(place, Images(source, None, None), reader, data, start, True)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("world", "size", "start"), [(1, 4, 0), (2, 3, 0), (3, 2, 5), (2, 20, 1), (3, 1, 10), (2, 4, 11)]
)
def test_all_processes_together_have_each_image_once_and_in_order(world, size, start, streaming, source):
    loaders = [rounds(batches_of(source, rank, world, size, start, streaming=streaming)) for rank in range(world)]
    found = []
    while turn := [sample for loader in loaders for sample in next(loader)["samples"]]:
        found += turn
    assert [sample["index"] for sample in found] == list(range(start, COUNT))


@pytest.mark.parametrize(("streaming", "workers"), [(False, 2), (True, 2)])
def test_data_loader_workers_keep_the_order(streaming, workers, source):
    found = list(batches_of(source, 0, 1, 2, 1, workers, streaming))
    assert [sample["index"] for batch in found for sample in batch["samples"]] == list(range(1, COUNT))
    assert [len(batch["pixel_values"]) for batch in found] == [2] * 5


def test_an_image_that_cannot_be_read_takes_no_place_among_the_pixels(source):
    stored = source.to_list()
    stored[1]["image"]["bytes"] = b"no image"
    source = Dataset.from_list(stored, features=source.features)
    (batch,) = batches_of(source, 0, 1, COUNT, 0)
    assert [("error" in sample) for sample in batch["samples"]] == [index == 1 for index in range(COUNT)]
    assert batch["samples"][1]["error"] == "cannot be read as an image: its format is not known."
    assert len(batch["pixel_values"]) == COUNT - 1
    message = message_of(lambda: list(batches_of(source, 0, 1, COUNT, 0, bad=(1,))))
    assert message.startswith("image 1 cannot be read") and "`--skip_bad_images true`" in message


def test_an_image_of_which_the_processor_makes_nothing_is_named_and_the_others_are_read(source):
    seen = []

    def transform(image):
        seen.append(image)
        if len(seen) == 2:
            raise ValueError("height and width must be > 0")
        return image.float()

    (batch,) = batches_of(source, 0, 1, COUNT, 0, transform=transform)
    assert [("error" in sample) for sample in batch["samples"]] == [index == 1 for index in range(COUNT)]
    error = batch["samples"][1]["error"]
    assert error.startswith("has 40 x 40 pixels, of which the model's image processor makes no input: height and width")


def test_images_that_keep_their_sizes_are_told_to_come_one_by_one(source):
    seen = []

    def transform(image):
        seen.append(image)
        return image.float()[:, : 10 + len(seen) % 2]

    message = message_of(lambda: list(batches_of(source, 0, 1, COUNT, 0, transform=transform)))
    assert message.startswith("`per_device_eval_batch_size` must be 1 with this model")
    assert len(list(batches_of(source, 0, 1, 1, 0, transform=transform))) == COUNT
