"""Batches of images for each process, in the order of the images; those of all processes together are all images."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset

from training.data.decoding import BadImageError, WrongChannelsError
from training.data.retry import read_on
from training.data.samples import Samples, make_samples, name_of
from training.data.sources import rows_of
from training.data.transforms import Transform
from training.data.workers import can_pin_memory, worker_options
from training.prediction.images import Images
from training.settings.prediction import PredictDataSettings

Sample = dict[str, Any]  # `index`, `image` (its name), then `pixel_values` and `size` (height, width), or `error`
Batch = dict[str, Any]  # `samples` without pixels, and `pixel_values` of those without an error


@dataclass
class ImageReader:
    """Turns a row into a sample; an image that cannot be read gets an error, or raises one if it is not skipped."""

    images: Images
    samples: Samples
    skips_bad_images: bool

    def __call__(self, row: dict[str, Any], index: int) -> Sample:
        value = row[self.samples.image_column]
        sample: Sample = {"index": index, "image": self.images.name(value, index)}
        try:
            image = self.samples.decode(row, f"image {index}").pixels
            pixel_values = self.prepared(image, name_of(value, f"image {index}"))
            return {**sample, "pixel_values": pixel_values, "size": tuple(image.shape[-2:])}
        except (BadImageError, WrongChannelsError) as error:
            if not self.skips_bad_images:
                raise ValueError(f"{error} `--skip_bad_images true` goes on after such images.") from error
            return {**sample, "error": str(error).removeprefix(f"{name_of(value, f'image {index}')} ")}

    def prepared(self, image: Tensor, name: str) -> Tensor:
        """What the transform makes of an image `(C, H, W)`; raises a `BadImageError` if it makes nothing of it."""
        try:
            return self.samples.transform(image)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            size = f"{image.shape[-1]} x {image.shape[-2]} pixels"
            told = " ".join(str(error).split())
            raise BadImageError(
                f"{name} has {size}, of which the model's image processor makes no input: {told}"
            ) from error


def create_reader(images: Images, data: PredictDataSettings, num_channels: int, transform: Transform) -> ImageReader:
    """A reader of images with `num_channels` channels, whose samples hold what the transform makes of them."""
    samples = make_samples(data, images.source, num_channels, transform)
    return ImageReader(images, samples, data.skip_bad_images)


class StoredImages(TorchDataset[Sample]):
    """The images from one on, by their place after it."""

    def __init__(self, source: Dataset, reader: ImageReader, start: int) -> None:
        self.source, self.reader, self.start = source, reader, start

    def __len__(self) -> int:
        return len(self.source) - self.start

    def __getitem__(self, place: int) -> Sample:
        index = self.start + place
        return self.reader(self.source[index], index)


class StreamedImages(TorchIterableDataset[Sample]):
    """The images of a stream from one on that are in the batches of a process; the others are not decoded."""

    def __init__(
        self, source: IterableDataset, reader: ImageReader, start: int, batch_size: int, rank: int, num_processes: int
    ) -> None:
        self.source, self.reader, self.start, self.batch_size = source, reader, start, batch_size
        self.rank, self.num_processes = rank, num_processes

    def __iter__(self) -> Iterator[Sample]:
        rows = read_on(lambda done: rows_of(self.source.skip(self.start + done)), "the stream")
        for place, row in enumerate(rows):
            if place // self.batch_size % self.num_processes == self.rank:
                yield self.reader(row, self.start + place)


def batches(
    accelerator: Accelerator, images: Images, reader: ImageReader, data: PredictDataSettings, start: int, stacks: bool
) -> Iterator[Batch]:
    """The batches of this process from the image `start` on: the first, then every `num_processes`-th after it.

    `stacks`: whether the images of a batch are one tensor, else they are a list of images of different sizes.
    """
    size, rank, world = data.per_device_eval_batch_size, accelerator.process_index, accelerator.num_processes
    options: dict[str, Any] = {"collate_fn": partial(collate, stacks=stacks), "pin_memory": can_pin_memory()}
    if isinstance(images.source, Dataset):
        stored = StoredImages(images.source, reader, start)
        sampler = BatchSampler(SequentialSampler(stored), size, drop_last=False)
        share = BatchSamplerShard(sampler, world, rank, even_batches=False)
        return iter(DataLoader(stored, batch_sampler=share, **options, **worker_options(data.num_workers)))
    streamed = StreamedImages(images.source, reader, start, size, rank, world)
    # Each data loader worker of a stream would read all of it: more than one would keep no order, or read in vain.
    return iter(DataLoader(streamed, size, **options, **worker_options(min(data.num_workers, 1))))


def collate(samples: list[Sample], stacks: bool) -> Batch:
    """A batch of samples."""
    pixels = [sample.pop("pixel_values") for sample in samples if "error" not in sample]
    shapes = sorted({tuple(each.shape[-2:]) for each in pixels})
    if stacks and len(shapes) > 1:
        raise ValueError(
            f"`per_device_eval_batch_size` must be 1 with this model, whose image processor leaves images in sizes of "
            f"their own: {', '.join(f'{width} x {height}' for height, width in shapes[:3])} pixels."
        )
    stacked = torch.stack(pixels) if stacks and pixels else pixels
    return {"samples": samples, "pixel_values": stacked}


def rounds(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, and then empty ones: a process without images left goes on while another has some."""
    return itertools.chain(batches, itertools.repeat({"samples": [], "pixel_values": []}))
