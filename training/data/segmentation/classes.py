"""The classes to train: by name, by the settings, or as the numbers in the masks show them."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from training.data.checking.images import refuse_bad_images
from training.data.folders.masks import NAMES, names_in
from training.data.labels import unnamed_classes
from training.data.retry import read_on
from training.data.segmentation.masks import BadMaskError, class_numbers, decode_mask
from training.data.segmentation.records import kept_records, mask_records, numbers_in
from training.data.sources import Source, find_source, limit
from training.settings.checks import check
from training.settings.data import MaskedDataSettings, SegmentDataSettings

LEAST_SHARE = 0.1  # of the numbers up to the largest one that masks must hold, for their classes to be counted in them
FEW = 16  # classes that are counted in masks without a doubt
MOST_OF_TWO = 0.95  # of the pixels: if the least and the largest number hold more, between them are smoothed edges
MANY_GREYS = 128  # numbers: of masks with more, half of the pixels are enough
COUNTED = 0.9  # of the masks: where so many hold all numbers up to their largest, these are counted in each image
NUM_LOOKED_AT = 64  # masks of a split that is not checked


def class_names_of(data: SegmentDataSettings, num_labels: int | None, num_channels: int) -> list[str]:
    """The names of the classes to train.

    They are those of id2label.json in a local folder, else `LABEL_0` and so on: `num_labels` of them, by default as
    many as `mask_values`, or as the training masks hold.

    Raises:
        ValueError: if there is only one class, which any model would predict without a loss.
    """
    names, values = names_in(data.dataset_name), data.mask_values
    if values is not None and num_labels is not None:
        check("num_labels", num_labels, num_labels == len(values), f"be {len(values)}, the number of `mask_values`")
    if names is not None:
        fits = num_labels in (None, len(names))
        check("num_labels", num_labels, fits, f"be {len(names)}, the classes in id2label.json")
        fits = values is None or len(values) == len(names)
        check(
            "mask_values", values, fits, f"be {len(names)} numbers, one for each class in id2label.json, in its order"
        )
        rule = "name two classes or more, such as a background and an object: with one, every prediction is right"
        check(NAMES, Path(data.dataset_name) / NAMES, len(names) > 1, rule)
        return names
    count = num_labels or (len(values) if values else None) or largest_class(data, num_channels) + 1
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
    if data.mask_values is None and classes.max() >= FEW:
        refuse_shades(records, data, int(classes.max()) + 1)
        refuse_object_ids(records, data, int(classes.max()) + 1)
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


def refuse_shades(records: pa.Table, data: SegmentDataSettings, count: int) -> None:
    """Raise if two numbers, the commonest or the least and the largest, hold nearly all pixels, or the latter half of
    them beside many greys.

    The others are hardly classes: black and white masks whose edges were smoothed, by a resize or by drawing with
    antialiasing, are such. A number without a class counts only where greys may lead up to it.
    """
    pixels: Counter[int] = Counter()
    for numbers, counts in zip(records["stored"].to_pylist(), records["pixels"].to_pylist(), strict=True):
        pixels.update(dict(zip(numbers, counts, strict=True)))
    greys_lead_to = {data.ignore_index} if count > MANY_GREYS and data.ignore_index >= count else set()
    for number in numbers_without_class(data) - greys_lead_to:
        pixels.pop(number, None)
    commonest = sorted(number for number, _ in pixels.most_common(2))
    ends, most = (min(pixels), max(pixels)), 0.5 if count > MANY_GREYS else MOST_OF_TWO
    for (first, last), most_of in ((commonest, MOST_OF_TWO), (ends, most)):
        share = (pixels[first] + pixels[last]) / pixels.total()
        rule = (
            f"be given, as {100 * share:.1f} % of the pixels of the masks in split `{data.train_split}` are {first} or "
            f"{last}, and few hold each of the others. If these are smoothed edges, save the masks without them and "
            f"give `--mask_values {first} {last}`; if they are classes, give `--num_labels {count}`"
        )
        check("num_labels", None, share <= most_of, rule)


def refuse_object_ids(records: pa.Table, data: SegmentDataSettings, count: int) -> None:
    """Raise if the masks count something in each image: the numbers are ids of its objects, and hardly classes."""
    found = [sorted(set(numbers) - {data.ignore_index, 0}) for numbers in records["stored"].to_pylist()]
    several = [numbers for numbers in found if len(numbers) > 1]
    counted = [len(numbers) for numbers in several if numbers[-1] == len(numbers)]  # 1, 2, ..., n
    rule = (
        f"be given, as {len(counted):,} of the {len(several):,} masks with several numbers in split "
        f"`{data.train_split}` hold all from 1 to their largest, up to {max(counted, default=0)}, as ids of objects do"
        ". If they are ids, write a class for each pixel, such as 1 for any object, or train detect.py; if they are "
        f"classes, give `--num_labels {count}`"
    )
    is_counted = len(counted) > COUNTED * len(several) and len(set(counted)) > 1
    check("num_labels", None, not is_counted, rule)


def numbers_without_class(data: MaskedDataSettings) -> set[int]:
    """The numbers in masks that are no class."""
    return {data.ignore_index, *([0] if data.reduce_labels else [])}


def refuse_lone_class(source: Source, data: MaskedDataSettings, split: str) -> None:
    """Raise if the first masks of a split that is not checked hold one class and pixels of none.

    Then every prediction would be right. With `mask_values`, the user has said what the numbers are.
    """
    if data.mask_values is not None:
        return
    column = source.select_columns([data.annotation_column])
    rows = read_on(lambda done: itertools.islice(column, done, NUM_LOOKED_AT), data.dataset_name)
    stored: set[int] = set()
    for row in rows:
        with contextlib.suppress(BadMaskError):  # named when it is read in training
            stored |= set(np.unique(decode_mask(row[data.annotation_column], "")).tolist())
    if numbers_without_class(data) & stored:
        example = "1 2 3 --ignore_index 0` without `--reduce_labels`" if data.reduce_labels else "0 1 2`"
        more = f"; if other classes come later, list the numbers of all, e.g. `--mask_values {example}"
        several_classes(sorted(stored), data, split, f"its first {NUM_LOOKED_AT} masks", more)


def several_classes(
    stored: Sequence[int], data: MaskedDataSettings, split: str, where: str = "the masks", more: str = ""
) -> np.ndarray:
    """The classes of the different numbers in the masks of a split to train on.

    Raises:
        ValueError: if they are fewer than two, with which every prediction is right.
    """
    classes = class_numbers(np.array(stored, np.int64), data.ignore_index, data.reduce_labels, data.mask_values)
    classes = classes[classes >= 0]
    rule = (
        f"hold two classes or more in split `{split}`, but {where} hold "
        f"{', '.join(map(str, stored[:8])) or 'nothing'}, of which `ignore_index` (={data.ignore_index}) is no class"
    )
    rule += ", nor 0 with `reduce_labels`" if data.reduce_labels else ""
    hint = "" if data.mask_values or data.reduce_labels else ". For black and white masks give `--mask_values 0 255`"
    check("annotation_column", data.annotation_column, len(classes) > 1, rule + hint + more)
    return classes
