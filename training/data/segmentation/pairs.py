"""Images with masks as samples, and the check of the masks before training."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset
from torch import Tensor, nn

from training.data.checking.images import check_images, image_notes, refuse_bad_images
from training.data.folders.listing import show
from training.data.held_out import is_trained_on
from training.data.overview import print_overview
from training.data.samples import AnnotatedSamples, check_color_change, name_of, sample_fields
from training.data.segmentation.classes import refuse_lone_class, several_classes
from training.data.segmentation.masks import MaskReader, class_numbers, mismatch, none_of, unknown_numbers
from training.data.segmentation.palettes import refuse_other_palettes
from training.data.segmentation.records import mask_records, numbers_in
from training.data.sources import Source, find_source, limit, num_examples
from training.settings.augmentation import ColorChange
from training.settings.checks import check
from training.settings.data import MaskedDataSettings

PairTransform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
MOST_CLASSES = 12  # that are printed


def segmentation_samples(
    data: MaskedDataSettings,
    source: Source,
    num_channels: int,
    reader: MaskReader,
    transform: PairTransform,
    color_change: ColorChange | None = None,
) -> AnnotatedSamples:
    """Create the samples of a source of images with masks: `pixel_values` and `labels`."""
    fields = sample_fields(data, source, num_channels)
    pair: dict[str, Any] = {"annotation_column": data.annotation_column, "reader": reader, "color_change": color_change}
    return AnnotatedSamples(**fields, **pair, transform=nn.Identity(), transform_both=partial(as_sample, transform))


def as_sample(transform: PairTransform, image: Tensor, labels: Tensor) -> dict[str, Any]:
    """The entries of a sample."""
    return dict(zip(("pixel_values", "labels"), transform(image, labels), strict=True))


class ClassCounts(NamedTuple):
    """For each class, its pixels and the images that show it; the pixels without a class, and all pixels."""

    pixels: np.ndarray
    images: np.ndarray
    ignored: int
    total: int


def load_pairs(
    data: MaskedDataSettings,
    split: str,
    max_samples: int | None,
    num_channels: int,
    names: Sequence[str],
    color_change: ColorChange | None = None,
) -> Source:
    """Load a split, check its images and masks (map-style only, with `check_images`), and print an overview.

    Values outside [0, 1] are refused in the split to train on if colours are changed.
    Pairs of which one cannot be used are left out if the settings allow it; otherwise a `ValueError` is raised.
    """
    whole, problems, notes = find_source(data, split)
    refuse_bad_images(problems, data)
    source = limit(whole, data, max_samples)
    if isinstance(source, Dataset) and data.check_images:
        checked = check_images(source, data, num_channels)
        masks = mask_records(checked.source, data)
        wrong = mask_problems(checked.source, masks, checked.sizes, data, len(names))
        problems = [*problems, *checked.problems, *(problem for problem in wrong if problem)]
        refuse_bad_images(problems, data)
        good = np.array([not problem for problem in wrong], dtype=bool)
        source = checked.source if good.all() else checked.source.select(np.flatnonzero(good))
        check("dataset_name", data.dataset_name, len(source) > 0, f"hold images with masks in split `{split}`")
        notes = [*notes, *image_notes(checked, data, num_channels, "the masks")]
        masks = masks.filter(pa.array(good))
        refuse_other_palettes(masks, source, data)
        counts = count_classes(masks, data, len(names))
        check(
            "annotation_column", data.annotation_column, bool(counts.pixels.any()), f"hold classes in split `{split}`"
        )
        if is_trained_on(data, split):
            several_classes(numbers_in(masks), data, split)
            check_color_change(color_change, checked, data)
        notes = [*notes, *class_notes(counts, names)]
    elif is_trained_on(data, split):
        refuse_lone_class(source, data, split)
    notes = [*notes, *meaning_notes(data, names)]
    print_overview(data, split, source, num_examples([whole], split, None), notes, problems)
    return source


def mask_problems(
    source: Dataset, masks: pa.Table, sizes: np.ndarray, data: MaskedDataSettings, num_labels: int
) -> list[str]:
    """For each row, what is wrong with its mask: itself, its size, or its classes; empty if nothing is."""
    found = []
    known = ("problem", "height", "width", "stored")
    columns = [masks[name].to_pylist() for name in known]

    def name(row: int) -> str:  # reads the row, so it is called for problems alone
        return name_of(source[row][data.image_column], f"example {row}")

    for row, (problem, height, width, numbers) in enumerate(zip(*columns, strict=True)):
        if not problem and (height, width) != tuple(sizes[row]):
            problem = mismatch(name(row), sizes[row].tolist(), (height, width))
        if not problem:
            stored = np.array(numbers, np.int64)
            classes = class_numbers(stored, data.ignore_index, data.reduce_labels, data.mask_values)
            outside = unknown_numbers(stored, classes, num_labels)
            if outside.size:
                problem = none_of(name(row), outside, num_labels, data.mask_values)
        found.append(problem)
    return found


def count_classes(masks: pa.Table, data: MaskedDataSettings, num_labels: int) -> ClassCounts:
    """Pixels and images of each class."""
    pixels, images, ignored = np.zeros(num_labels, np.int64), np.zeros(num_labels, np.int64), 0
    for numbers, counts in zip(masks["stored"].to_pylist(), masks["pixels"].to_pylist(), strict=True):
        classes = class_numbers(np.array(numbers, np.int64), data.ignore_index, data.reduce_labels, data.mask_values)
        count, is_class = np.array(counts), classes >= 0
        pixels[classes[is_class]] += count[is_class]
        images[classes[is_class]] += 1
        ignored += int(count[~is_class].sum())
    return ClassCounts(pixels, images, ignored, int(pixels.sum()) + ignored)


def meaning_notes(data: MaskedDataSettings, names: Sequence[str]) -> list[str]:
    """A line on which number in the masks is which class, if they are not the numbers of the classes."""
    if not data.reduce_labels and data.mask_values is None:
        return []
    values = data.mask_values or range(1, len(names) + 1)
    pairs = [f"{value} is {show(name)}" for value, name in zip(values, names, strict=False)]
    return [f"in the masks: {', '.join(pairs[:MOST_CLASSES])}{', ...' if len(pairs) > MOST_CLASSES else ''}"]


def class_notes(counts: ClassCounts, names: Sequence[str]) -> list[str]:
    """Lines on the classes of a split: the share of the pixels and the images of each, and those that are missing."""
    total = max(counts.total, 1)
    shares = [
        f"{show(name)} {100 * pixels / total:.1f} % ({images:,})"
        for name, pixels, images in zip(names, counts.pixels, counts.images, strict=True)
        if images
    ]
    more = f" and {len(shares) - MOST_CLASSES:,} more" if len(shares) > MOST_CLASSES else ""
    notes = [f"share of the pixels (images) of each class: {', '.join(shares[:MOST_CLASSES])}{more}"]
    if counts.ignored:
        notes.append(f"ignored: {100 * counts.ignored / total:.1f} % of the pixels, which have no class")
    missing = [show(name) for name, images in zip(names, counts.images, strict=True) if not images]
    if missing:
        notes.append(f"classes without a pixel: {', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''}")
    return notes
