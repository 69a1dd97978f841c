"""Images with masks as samples, and the check of the masks before training."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from torch import Tensor, nn

from training.data.checking.columns import Check, check_column
from training.data.checking.images import check_images, image_notes, refuse_bad_images
from training.data.folders.listing import show
from training.data.folders.masks import NAMES, names_in
from training.data.held_out import is_trained_on
from training.data.labels import unnamed_classes
from training.data.overview import print_overview
from training.data.samples import AnnotatedSamples, check_color_change, name_of, sample_fields
from training.data.segmentation.masks import (
    BadMaskError,
    MaskReader,
    class_numbers,
    decode_mask,
    mismatch,
    none_of,
    unknown_numbers,
)
from training.data.sources import Source, find_source, limit, num_examples
from training.settings.augmentation import ColorChange
from training.settings.checks import check
from training.settings.data import MaskedDataSettings, SegmentDataSettings

PairTransform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
MOST_CLASSES = 12  # that are printed
LEAST_SHARE = 0.1  # of the numbers up to the largest one that masks must hold, for their classes to be counted in them
# The record of a mask: its problem (empty: none), its size, and each number in it with its pixels.
RECORD = Features(
    {
        "problem": Value("string"),
        "height": Value("int64"),
        "width": Value("int64"),
        "stored": List(Value("int64")),
        "pixels": List(Value("int64")),
    }
)


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


def class_names_of(data: SegmentDataSettings, num_labels: int | None, num_channels: int) -> list[str]:
    """The names of the classes to train.

    They are those of id2label.json in a local folder, else `LABEL_0` and so on: `num_labels` of them, by default as
    many as `mask_values`, or as the training masks hold.

    Raises:
        ValueError: if there is only one class, which any model would predict without a loss.
    """
    names = names_in(data.dataset_name)
    if names is not None:
        fits = num_labels in (None, len(names))
        check("num_labels", num_labels, fits, f"be {len(names)}, the classes in id2label.json")
        rule = "name two classes or more, such as a background and an object: with one, every prediction is right"
        check(NAMES, Path(data.dataset_name) / NAMES, len(names) > 1, rule)
        return names
    count = num_labels or (len(data.mask_values) if data.mask_values else None) or largest_class(data, num_channels) + 1
    return unnamed_classes(count)


def largest_class(data: SegmentDataSettings, num_channels: int) -> int:
    """The largest class number in the masks of the training split; masks that are skipped do not count."""
    source = limit(find_source(data, data.train_split).source, data, data.max_train_samples)
    rule = "be given: a stream does not say how many classes it has"
    check("num_labels", None, isinstance(source, Dataset), rule)
    assert isinstance(source, Dataset)
    records = kept_records(source, data, num_channels) if data.skip_bad_images else mask_records(source, data)
    stored = numbers_in(records)
    problems = [] if stored else list(filter(None, mask_records(source, data)["problem"].to_pylist()))
    if problems:
        refuse_bad_images(problems, data)
        check("annotation_column", data.annotation_column, False, f"hold masks that can be used, but {problems[0]}")
    classes = several_classes(stored, data, data.train_split)
    refuse_gaps(classes, stored, data)
    return int(classes.max())


def refuse_gaps(classes: np.ndarray, stored: Sequence[int], data: SegmentDataSettings) -> None:
    """Raise if most numbers up to the largest class are in no mask: it is hardly one of so many classes.

    Such masks hold grey values or ids, as 0, 85 and 170, and a model would learn outputs that nothing shows.
    """
    count = int(classes.max()) + 1
    rule = (
        f"be given, as the masks in split `{data.train_split}` hold only {len(classes)} different numbers of the "
        f"{count:,} up to the largest: {', '.join(map(str, stored[:8]))}{', ...' if len(stored) > 8 else ''}. If each "
        "of them is a class, list them with `--mask_values`; if there are more classes, give their number with "
        "`--num_labels`"
    )
    check("num_labels", None, len(classes) >= LEAST_SHARE * count, rule)


def several_classes(stored: Sequence[int], data: MaskedDataSettings, split: str) -> np.ndarray:
    """The classes of the different numbers in the masks of a split to train on.

    Raises:
        ValueError: if they are fewer than two, with which every prediction is right.
    """
    classes = class_numbers(np.array(stored, np.int64), data.ignore_index, data.reduce_labels, data.mask_values)
    classes = classes[classes >= 0]
    rule = (
        f"hold two classes or more in split `{split}`, but the masks hold "
        f"{', '.join(map(str, stored[:8])) or 'nothing'}, of which `ignore_index` (={data.ignore_index}) is no class"
    )
    hint = "" if data.mask_values else ". For black and white masks give `--mask_values 0 255`"
    check("annotation_column", data.annotation_column, len(classes) > 1, rule + hint)
    return classes


def mask_records(source: Dataset, data: MaskedDataSettings) -> pa.Table:
    """The record of each mask of a source."""
    return check_column(source, data.annotation_column, Check("masks", RECORD, check_mask, {}), data)


def numbers_in(masks: pa.Table) -> list[int]:
    """The different numbers in masks, by their records."""
    return sorted({number for numbers in masks["stored"].to_pylist() for number in numbers or []})


def kept_records(source: Dataset, data: MaskedDataSettings, num_channels: int) -> pa.Table:
    """The records of the masks whose images can be read and have the same size; of all, if images are not checked."""
    if not data.check_images:
        return mask_records(source, data)
    checked = check_images(source, data, num_channels)
    records = mask_records(checked.source, data)
    sizes = np.stack([records[side].to_numpy() for side in ("height", "width")], axis=1)
    return records.filter(pa.array((sizes == checked.sizes).all(axis=1)))


def check_mask(value: Any, index: int) -> dict[str, Any]:
    """The record of a mask."""
    try:
        mask = decode_mask(value, f"example {index}")
    except BadMaskError as error:
        return {"problem": str(error), "height": 0, "width": 0, "stored": [], "pixels": []}
    numbers, pixels = np.unique(mask, return_counts=True)
    (height, width), found = mask.shape, {"stored": numbers.astype(int).tolist(), "pixels": pixels.tolist()}
    return {"problem": "", "height": height, "width": width, **found}


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
        counts = count_classes(masks.filter(pa.array(good)), data, len(names))
        check(
            "annotation_column", data.annotation_column, bool(counts.pixels.any()), f"hold classes in split `{split}`"
        )
        if is_trained_on(data, split):
            several_classes(numbers_in(masks.filter(pa.array(good))), data, split)
            check_color_change(color_change, checked, data)
        notes = [*notes, *class_notes(counts, names)]
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
