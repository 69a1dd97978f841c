"""Loads images with objects, and checks the objects before training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value

from training.data.checking.columns import Check, check_rows
from training.data.checking.images import check_images, image_notes, refuse_bad_images
from training.data.checking.store import Stamps, stamps_of
from training.data.decoding import BadImageError
from training.data.detection.columns import BadObjectsError, columns_of
from training.data.detection.counts import count_objects, count_small, object_notes, small_notes
from training.data.detection.mask_files import mask_files
from training.data.detection.masks import is_missing
from training.data.detection.reader import ObjectReader
from training.data.detection.transforms import too_thin_for, vanishes
from training.data.held_out import is_trained_on
from training.data.overview import print_overview
from training.data.samples import check_color_change, name_of
from training.data.sources import Source, find_source, limit, num_examples
from training.settings.augmentation import ColorChange
from training.settings.checks import check
from training.settings.data import ObjectsDataSettings

# The record of an image's objects: its problem (empty: none), the class of each object, the shorter side in pixels of
# the box of each that is no crowd, and the crowds and masks.
RECORD = Features(
    {
        "problem": Value("string"),
        "labels": List(Value("int64")),
        "shorter_sides": List(Value("float32")),
        "num_crowds": Value("int64"),
        "num_masks": Value("int64"),
        "num_twice": Value("int64"),
    }
)


def object_reader(data: ObjectsDataSettings, names: Sequence[str], with_masks: bool) -> ObjectReader:
    """The reader of the objects of a data set."""
    return ObjectReader(names, data.box_format, with_masks)


def load_objects(
    data: ObjectsDataSettings,
    split: str,
    max_samples: int | None,
    num_channels: int,
    names: Sequence[str],
    with_masks: bool,
    longest_side: int | None = None,
    color_change: ColorChange | None = None,
) -> Source:
    """Load a split, check its images and objects (map-style only, with `check_images`), and print an overview.

    Images of which nothing would be left at this `longest_side` in pixels cannot be used. Values outside [0, 1] are
    refused in the split to train on if colours are changed.
    Images of which an object cannot be used are left out if the settings allow it; otherwise a `ValueError` is raised.
    """
    whole, problems, notes = find_source(data, split)
    refuse_bad_images(problems, data)
    source = limit(whole, data, max_samples)
    if isinstance(source, Dataset):
        rule = f"hold masks in split `{split}`: for boxes alone train `--architecture faster_rcnn`"
        check("objects_column", data.objects_column, not with_masks or has_masks(source, data), rule)
    if isinstance(source, Dataset) and data.check_images:
        checked = check_images(source, data, num_channels)
        reader = object_reader(data, names, with_masks)
        records = object_records(checked.source, data, reader, checked.sizes)
        wrong = records["problem"].to_pylist()
        thin = thin_images(checked.source, data, checked.sizes, longest_side)
        wrong = [problem or other for problem, other in zip(wrong, thin, strict=True)]
        problems = [*problems, *checked.problems, *(problem for problem in wrong if problem)]
        refuse_bad_images(problems, data)
        good = np.array([not problem for problem in wrong], dtype=bool)
        source = checked.source if good.all() else checked.source.select(np.flatnonzero(good))
        kept = records.filter(pa.array(good))
        counts = count_objects(kept, len(names))
        check("dataset_name", data.dataset_name, counts.total > 0, f"hold images with objects in split `{split}`")
        rule = f"hold other objects than crowds in split `{split}`: nothing can be trained or evaluated on crowds alone"
        check("dataset_name", data.dataset_name, counts.total > counts.crowds, rule)
        small = count_small(kept, checked.sizes[good], longest_side)
        if is_trained_on(data, split):
            rule = f"hold objects in split `{split}` that are a pixel wide and high at `image_size` (={longest_side})"
            fits = small < counts.total - counts.crowds
            check("dataset_name", data.dataset_name, fits, f"{rule}: raise it, or cut the images into tiles")
            check_color_change(color_change, checked, data)
        notes = [*notes, *image_notes(checked, data, num_channels, "boxes and masks")]
        notes = [*notes, *object_notes(counts, names, with_masks), *small_notes(small, longest_side)]
    print_overview(data, split, source, num_examples([whole], split, None), notes, problems)
    return source


def has_masks(source: Dataset, data: ObjectsDataSettings) -> bool:
    """Whether any object of a source has a mask. Objects that cannot be read count: the check names what is wrong."""
    for row in source.select_columns([data.objects_column]):
        try:
            segments = columns_of(row[data.objects_column], "").get("segmentation", [])  # type: ignore[call-overload]
        except BadObjectsError:
            return True
        if not all(map(is_missing, segments)):
            return True
    return False


def object_records(source: Dataset, data: ObjectsDataSettings, reader: ObjectReader, sizes: np.ndarray) -> pa.Table:
    """The record of the objects of each image; `sizes` are the heights and widths of the images, `(N, 2)`.

    Problems name the image. An image that had one is checked again: as with images, a problem can be solved without a
    change of the file, e.g. by a permission.
    """
    rows = source.select_columns([data.objects_column])
    arguments = {"reader": reader, "sizes": sizes, "stamps": stamps_of(mask_files(rows, data.objects_column))}
    checked = check_rows(rows, data.objects_column, Check("objects", RECORD, check_objects, arguments), data)
    wrong = [index for index, problem in enumerate(checked["problem"].to_pylist()) if problem]
    if not wrong:
        return checked
    records = checked.to_pylist()
    for index in wrong:
        row = source[index]  # is read for problems alone: it may hold the bytes of the image
        name = name_of(row[data.image_column], f"example {index}")
        records[index] = record_of(row[data.objects_column], sizes[index], name, reader)
    return pa.Table.from_pylist(records, schema=RECORD.arrow_schema)


def check_objects(value: Any, index: int, reader: ObjectReader, sizes: np.ndarray, stamps: Stamps) -> dict[str, Any]:
    """The record of the objects of an image.

    `stamps` of the files of masks are not read: `datasets` uses a stored record if the arguments are the same, so that
    they tell a file that has changed.
    """
    return record_of(value, sizes[index], f"example {index}", reader)


def record_of(value: Any, size: Any, name: str, reader: ObjectReader) -> dict[str, Any]:
    """The record of the objects of an image of a size `(H, W)`, which a problem calls `name`."""
    try:
        found = reader.read(value, size, name)
    except BadImageError as error:
        nothing = {"labels": [], "shorter_sides": [], "num_crowds": 0, "num_masks": 0, "num_twice": 0}
        return {"problem": str(error), **nothing}
    different = np.unique(np.column_stack([found.boxes, found.labels, found.crowds]), axis=0)
    counts = {"num_crowds": int(found.crowds.sum()), "num_masks": found.num_masks}
    counts["num_twice"] = len(found.labels) - len(different)
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).min(1)[~found.crowds]
    return {"problem": "", "labels": found.labels.tolist(), "shorter_sides": sides.tolist(), **counts}


def thin_images(source: Dataset, data: ObjectsDataSettings, sizes: np.ndarray, longest_side: int | None) -> list[str]:
    """For each row, whether its image is too long and thin, in words; empty if it is not."""
    problems = [""] * len(source)
    for index, (height, width) in enumerate(sizes.tolist()):
        if vanishes(height, width, longest_side):
            name = name_of(source[index][data.image_column], f"example {index}")
            problems[index] = f"{name} ({width} x {height} pixels) {too_thin_for(longest_side)}."
    return problems
