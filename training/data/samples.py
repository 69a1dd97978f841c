"""Turns the rows of a source into samples and batches."""

import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset, concatenate_datasets
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset

from hf_convnextv2.images import DEFAULT_BACKGROUND
from training.data.checking.images import CheckedImages, check_images, image_notes, refuse_bad_images
from training.data.decoding import (
    BadImageError,
    Decoded,
    Enough,
    decode_image,
    fate_of_transparency,
    is_path,
    value_range,
)
from training.data.held_out import is_trained_on
from training.data.label_readers import LabelReader
from training.data.overview import print_overview
from training.data.retry import read_on
from training.data.sampling import sample_seed, seeded
from training.data.sources import Source, array_dtype, find_source, limit, num_examples
from training.data.transforms import BatchMixer, Transform
from training.data.workers import worker_options
from training.settings.augmentation import ColorChange
from training.settings.checks import check
from training.settings.data import DataSettings, EvaluatedDataSettings, PretrainDataSettings

Batch = dict[str, Any]  # tensors; from a stream, also its reader's state, problems and transparent images


@dataclass
class Samples:
    """Turns a row of a source into a sample; holds everything that a data loader worker needs for it."""

    image_column: str
    num_channels: int
    dtype: str | None  # of images that come as arrays
    transform: Transform
    seed: int = 0
    num_cells: int | None = None  # pre-training: draw mask noise (num_cells,)
    num_crops: int = 1  # of more than one, pixels and noise have an axis for the crop in front
    label_reader: LabelReader | None = None
    enough: Enough | None = None  # larger images may be decoded smaller
    background: str = DEFAULT_BACKGROUND  # of transparent pixels
    color_change: ColorChange | None = None  # by the transform, for which values must be in [0, 1]

    def __call__(self, row: dict[str, Any], name: str, *key: int) -> dict[str, Any]:
        """Return `pixel_values`, with `noise` or `labels`, and the sample's seed.

        Crop, flip and noise depend only on the seed and the key. Errors call an image without a path `name`.
        """
        image, is_transparent, _ = self.decode(row, name)
        sample: dict[str, Any] = {"seed": sample_seed(self.seed, *key), "is_transparent": is_transparent}
        with seeded(sample["seed"]):
            crops = [self.crop(image) for _ in range(self.num_crops)]
        sample |= crops[0] if self.num_crops == 1 else default_collate(crops)
        if self.label_reader is not None:
            sample["labels"] = self.label_reader(row)
        return sample

    def crop(self, image: Tensor) -> dict[str, Tensor]:
        """What the transform makes of an image, with noise for its mask in pre-training."""
        crop = {"pixel_values": self.transform(image)}
        return crop if self.num_cells is None else {**crop, "noise": torch.rand(self.num_cells)}

    def decode(self, row: dict[str, Any], name: str) -> Decoded:
        """The image of a row."""
        value, background = row[self.image_column], self.background
        decoded = decode_image(value, self.num_channels, name, self.dtype, self.enough, background)
        if self.color_change is not None:
            self.color_change.check_values(*value_range(decoded.pixels), name_of(value, name))
        return decoded

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return [self.image_column, *(self.label_reader.columns if self.label_reader is not None else [])]


@dataclass
class AnnotatedSamples(Samples):
    """Turns a row of a source into an image and what an annotation says of it, a mask or objects.

    reader: makes labels of a stored annotation, the size `(H, W)` of the image and its name.
    transform_both: transforms an image and its labels alike, into the entries of a sample.
    """

    annotation_column: str = ""
    reader: Callable[[Any, tuple[int, int], str], Any] | None = None
    transform_both: Callable[[Tensor, Any], dict[str, Any]] | None = None

    @property
    def columns(self) -> list[str]:
        return [self.image_column, self.annotation_column]

    def __call__(self, row: dict[str, Any], name: str, *key: int) -> dict[str, Any]:
        """Return what the transform makes of the image and its labels, and the sample's seed.

        The transform depends only on the seed and the key. Errors call an image without a path `name`.
        """
        assert self.reader is not None and self.transform_both is not None
        image, is_transparent, _ = self.decode(row, name)
        height, width = image.shape[-2:]
        name = name_of(row[self.image_column], name)
        labels = self.reader(row[self.annotation_column], (height, width), name)
        seed = sample_seed(self.seed, *key)
        with seeded(seed):
            try:
                transformed = self.transform_both(image, labels)
            except BadImageError as error:
                raise BadImageError(f"{name}: {error}") from error
        return {"seed": seed, "is_transparent": is_transparent, **transformed}


def name_of(value: Any, name: str) -> str:
    """The path of an image if it has one, else `name`."""
    path = value.get("path") if isinstance(value, dict) else value
    return path if isinstance(path, str) and path and is_path(path) else name


def check_color_change(change: ColorChange | None, checked: CheckedImages, data: DataSettings) -> None:
    """Raise if colours are changed and an image has values outside [0, 1]."""
    outside = np.flatnonzero((checked.ranges[:, 0] < 0) | (checked.ranges[:, 1] > 1))
    if change is not None and len(outside):
        index = int(outside[0])
        name = name_of(checked.source[index][data.image_column], f"example {index}")
        lowest, highest = checked.ranges[index].tolist()
        change.check_values(lowest, highest, name)


class MapSamples(TorchDataset[dict[str, Any]]):
    """Concatenated map-style sources, indexed by (epoch, index) in training and by index in evaluation."""

    def __init__(self, sources: Sequence[Dataset], samples: Samples) -> None:
        self.source = concatenate_datasets([source.select_columns(list(samples.columns)) for source in sources])
        self.samples = samples

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        epoch, index = (0, key) if isinstance(key, int) else key
        return self.samples(self.source[index], f"example {index}", epoch, index)


class StreamSamples(TorchIterableDataset[dict[str, Any]]):
    """One pass over a streamed source, in order."""

    def __init__(self, source: IterableDataset, samples: Samples, data: DataSettings) -> None:
        self.source = source
        self.samples = samples
        self.data = data
        self.told = multiprocessing.Value("b", False)  # shared with the data loader workers

    def __iter__(self) -> Iterator[dict[str, Any]]:
        bad: list[str] = []
        rows = read_on(lambda done: itertools.islice(self.source, done, None), self.data.dataset_name)
        for position, row in enumerate(rows):
            try:
                sample = self.samples(row, f"example {position} of this worker's stream", 0, position)
                self.tell_once(sample["is_transparent"])
                yield sample
            except BadImageError as error:
                bad.append(refuse_or_skip(error, self.data, len(bad) + 1))
                print(f"Skipping bad image {len(bad)}. {bad[-1]}", flush=True)

    def tell_once(self, is_transparent: bool) -> None:
        """Print at the first transparent image what happens to transparent images."""
        if not is_transparent or self.told.value:
            return
        with self.told:
            if not self.told.value:
                print(f"The stream holds transparent images: {fate_of_transparency(self.data)}.", flush=True)
            self.told.value = True


def refuse_or_skip(error: BadImageError, data: DataSettings, count: int) -> str:
    """Return the message for a bad image that is skipped, the `count`-th of its reader.

    Raises a `ValueError` if bad images are not skipped, or if there are more than `max_bad_images`.
    """
    if not data.skip_bad_images:
        raise ValueError(f"{error} `--skip_bad_images` skips such images.") from error
    if count > data.max_bad_images:
        raise ValueError(f"`max_bad_images` (={data.max_bad_images}) is exceeded. {error}") from error
    return str(error)


class Collator:
    """Collates samples to a batch; a batch of a stream also gets its reader's state, problems and transparent images.

    The seed of the first sample determines mixup and cutmix.
    """

    def __init__(self, mixer: BatchMixer | None = None) -> None:
        self.mixer = mixer

    def __call__(self, samples: list[dict[str, Any]]) -> Batch:
        others = ("seed", "reader", "problems", "is_transparent")
        batch: Batch = self.stack([{k: v for k, v in sample.items() if k not in others} for sample in samples])
        if self.mixer is not None:
            with seeded(sample_seed(samples[0]["seed"], len(samples))):
                batch = self.mixer(batch)
        if "reader" in samples[-1]:
            batch["reader"] = samples[-1]["reader"]
            batch["problems"] = [problem for sample in samples for problem in sample["problems"]]
            batch["num_transparent"] = sum(sample["is_transparent"] for sample in samples)
        return batch

    def stack(self, samples: list[dict[str, Any]]) -> Batch:
        """The samples as tensors with an axis for the batch."""
        return default_collate(samples)


class CropsCollator(Collator):
    """Collates samples of several crops to a batch of crops: the first ones of all images, then the second ones."""

    def stack(self, samples: list[dict[str, Any]]) -> Batch:
        return {name: value.transpose(0, 1).flatten(0, 1) for name, value in super().stack(samples).items()}


def load_images(
    data: DataSettings, split: str, max_samples: int | None, num_channels: int, color_change: ColorChange | None = None
) -> Source:
    """Load a split, check its images (map-style only), and print an overview.

    Values outside [0, 1] are refused in the split to train on if colours are changed.
    Unreadable images are left out if the settings allow it; otherwise a `ValueError` is raised.
    """
    whole, problems, notes = find_source(data, split)
    refuse_bad_images(problems, data)
    source = limit(whole, data, max_samples)
    if isinstance(source, Dataset):
        check("dataset_name", data.dataset_name, len(source) > 0, f"hold examples in its split `{split}`")
        checked = None
        if data.check_images:
            checked = check_images(source, data, num_channels)
            source, problems = checked.source, problems + checked.problems
            refuse_bad_images(problems, data)
            if is_trained_on(data, split):
                check_color_change(color_change, checked, data)
        check("dataset_name", data.dataset_name, len(source) > 0, f"hold images that can be read in split `{split}`")
        notes = [*notes, *image_notes(checked, data, num_channels)]
    print_overview(data, split, source, num_examples([whole], split, None), notes, problems)
    return source


def load_mixture(data: PretrainDataSettings, num_channels: int) -> list[Source]:
    """Load the sources to pre-train on. Several data sets without `mixture_weights` are concatenated to one source."""
    names = [data.dataset_name, *(data.mixed_dataset_names or [])]
    settings = [replace(data, dataset_name=name) for name in names]
    sources = [load_images(each, data.train_split, data.max_train_samples, num_channels) for each in settings]
    dtypes = [array_dtype(source, data.image_column) for source in sources]
    rule = f"hold images of one kind, but their number types are {dtypes}"
    check("mixed_dataset_names", data.mixed_dataset_names, len(set(dtypes)) == 1, rule)
    if len(sources) > 1 and data.mixture_weights is None:  # each epoch has every image once
        columns = [source.select_columns(data.image_column) for source in sources]
        return [concatenate_datasets(columns)]  # type: ignore[list-item,arg-type]
    return sources


def make_samples(data: DataSettings, source: Source, num_channels: int, transform: Transform, **fields: Any) -> Samples:
    """Create the `Samples` that turn the rows of this source into samples."""
    return Samples(**sample_fields(data, source, num_channels), transform=transform, **fields)


def sample_fields(data: DataSettings, source: Source, num_channels: int) -> dict[str, Any]:
    """The fields of `Samples` that follow from the settings and the source."""
    return {
        "image_column": data.image_column,
        "num_channels": num_channels,
        "dtype": array_dtype(source, data.image_column),
        "seed": data.seed,
        "background": data.background or DEFAULT_BACKGROUND,
    }


def first_samples(source: Source, samples: Samples, data: DataSettings, count: int) -> Batch:
    """A batch of the first samples of a source, as the first epoch transforms them; it is shown in a picture.

    Of several crops of an image, it holds the first.
    """
    samples = replace(samples, num_crops=1)
    if isinstance(source, Dataset):
        dataset = MapSamples([source], samples)
        return Collator()([dataset[index] for index in range(min(count, len(dataset)))])
    first = list(itertools.islice(StreamSamples(source, samples, data), count))
    check("dataset_name", data.dataset_name, bool(first), "hold images that can be read")
    return Collator()(first)


def first_labels(source: Source, samples: Samples, names: Sequence[str]) -> str | None:
    """The first image of a source and its labels as text; None if the samples have none. No image is decoded."""
    if samples.label_reader is None:
        return None
    row = source.select_columns(samples.columns)
    row = row[0] if isinstance(row, Dataset) else next(iter(row))
    return f"{name_of(row[samples.image_column], 'example 0')}: {samples.label_reader.in_words(row, names)}"


def eval_loader(
    source: Source, samples: Samples, data: EvaluatedDataSettings, collate: Callable[..., Batch] | None = None
) -> DataLoader[Any]:
    """A loader of one pass over a split, in order, for `accelerator.prepare` and `gather_for_metrics`."""
    batch_size = data.per_device_eval_batch_size
    options: dict[str, Any] = {"collate_fn": collate or Collator(), "generator": torch.Generator()}
    if isinstance(source, Dataset):
        options |= worker_options(data.num_workers)
        return DataLoader(MapSamples([source], samples), batch_size, **options)
    stream = StreamSamples(source, samples, data)
    options |= worker_options(min(data.num_workers, source.num_shards))
    return DataLoader(stream, batch_size, **options)
