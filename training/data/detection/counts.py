"""Counts the objects of a split for the overview at the start."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from training.data.detection.transforms import LEAST_SIDE
from training.data.folders.listing import show

MOST_CLASSES = 12  # that are printed
MOST_EVALUATED = 100  # detections of an image, by COCO's definition


class ObjectCounts(NamedTuple):
    """For each class, its objects and the images that show it; and sums over all images."""

    objects: np.ndarray
    images: np.ndarray
    without_objects: int
    crowds: int
    masks: int
    twice: int
    crowded: int  # images with more objects than are evaluated

    @property
    def total(self) -> int:
        return int(self.objects.sum())


def count_objects(records: pa.Table, num_labels: int) -> ObjectCounts:
    """Count the objects of a split."""
    objects, images, without, crowded = np.zeros(num_labels, np.int64), np.zeros(num_labels, np.int64), 0, 0
    for labels in records["labels"].to_pylist():
        of_image = np.bincount(np.array(labels, np.int64), minlength=num_labels)
        objects += of_image
        images += of_image > 0
        without += not labels
        crowded += len(labels) > MOST_EVALUATED
    crowds, masks, twice = (sum(records[name].to_pylist()) for name in ("num_crowds", "num_masks", "num_twice"))
    return ObjectCounts(objects, images, without, crowds, masks, twice, crowded)


def count_small(records: pa.Table, sizes: np.ndarray, longest_side: int | None) -> int:
    """The objects that are less than a pixel wide or high in their images, of sizes `(N, 2)`, once these are resized.

    longest_side: of the resized images; None if they do not keep their shapes, and none of them is counted.
    """
    if longest_side is None:
        return 0
    sides = records["shorter_sides"].to_pylist()
    factors = longest_side / sizes.max(axis=1)
    return sum(side * factor < LEAST_SIDE for found, factor in zip(sides, factors, strict=True) for side in found)


def small_notes(count: int, longest_side: int | None) -> list[str]:
    """A line on objects that are too small, if there are any."""
    hint = "a larger `--image_size`, or images that are cut into tiles, would show them"
    resized = f"in images that are resized to {longest_side} pixels"
    return [f"{count:,} objects are less than a pixel wide or high {resized}: {hint}"] if count else []


def object_notes(counts: ObjectCounts, names: Sequence[str], with_masks: bool) -> list[str]:
    """Lines on the objects of a split: those of each class, and what is missing or unused."""
    shares = [
        f"{show(name)} {objects:,} ({images:,})"
        for name, objects, images in zip(names, counts.objects, counts.images, strict=True)
        if objects
    ]
    more = f" and {len(shares) - MOST_CLASSES:,} more" if len(shares) > MOST_CLASSES else ""
    notes = [f"{counts.total:,} objects (images) of each class: {', '.join(shares[:MOST_CLASSES])}{more}"]
    missing = [show(name) for name, objects in zip(names, counts.objects, strict=True) if not objects]
    if missing:
        notes.append(f"classes without an object: {', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''}")
    if counts.without_objects:
        notes.append(f"{counts.without_objects:,} images have no object")
    if counts.crowds:
        notes.append(f"{counts.crowds:,} objects are crowds, which are neither trained on nor missed")
    if counts.twice:
        notes.append(f"{counts.twice:,} objects stand there twice, with the same box and class: each of them counts")
    if counts.crowded:
        limit = f"{MOST_EVALUATED} detections of an image at most are found and evaluated, as in COCO"
        notes.append(f"{counts.crowded:,} images have more than {MOST_EVALUATED} objects: {limit}")
    if not with_masks:
        unused = "are not used: `--architecture mask_rcnn` trains them"
        notes.append(f"masks of {counts.masks:,} objects {unused}" if counts.masks else "the objects have no masks")
    else:
        notes.append(f"all {counts.masks:,} objects have masks")
    return notes
