"""Turns the stored objects of an image into `Objects`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from training.data.detection.boxes import read_boxes
from training.data.detection.columns import BadObjectsError, columns_of, is_finite, shown, stated_size
from training.data.detection.masks import RunLengths, areas_of, decode_masks, is_missing, read_masks
from training.data.detection.objects import Objects

MOST_NAMES = 8  # that an error lists


class Stored(NamedTuple):
    """Checked objects as NumPy arrays, and the run lengths of their masks; None if the masks are not read."""

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    masks: list[RunLengths] | None
    num_masks: int  # that the data set has, read or not


@dataclass
class ObjectReader:
    """Turns a value of the objects column into `Objects`.

    names: the names of the classes.
    box_format: `xywh` or `xyxy`.
    with_masks: decode the masks, which every object must then have.
    """

    names: Sequence[str]
    box_format: str = "xywh"
    with_masks: bool = False

    def __call__(self, value: Any, size: tuple[int, int], name: str) -> Objects:
        """The objects of an image of a size `(H, W)`; raises a `BadObjectsError` that calls the image `name`."""
        boxes, labels, areas, crowds, masks, _ = self.read(value, size, name)
        return Objects(
            torch.from_numpy(boxes).float(),
            torch.from_numpy(labels),
            torch.from_numpy(areas).float(),
            torch.from_numpy(crowds),
            decode_masks(masks or [], size) if self.with_masks else None,
        )

    def read(self, value: Any, size: tuple[int, int], name: str) -> Stored:
        """The checked objects, without decoding their masks."""
        size = (int(size[0]), int(size[1]))
        columns = columns_of(value, name)
        stated = stated_size(value)
        if stated not in (None, size):
            assert stated is not None
            raise BadObjectsError(
                f"the objects of {name} are stated for an image of {stated[1]} x {stated[0]} pixels, but it has "
                f"{size[1]} x {size[0]} after the rotation by its EXIF data."
            )
        boxes = read_boxes(columns.get("bbox", []), self.box_format, size, name)
        nothing = [None] * len(boxes)
        labels = [self.label(each, f"object {i} of {name}") for i, each in enumerate(columns.get("category", []))]
        crowds = [is_crowd(each, f"object {i} of {name}") for i, each in enumerate(columns.get("iscrowd", nothing))]
        segments = columns.get("segmentation", nothing)
        num_masks = sum(not is_missing(each) for each in segments)
        areas = [area_of(each, f"object {i} of {name}") for i, each in enumerate(columns.get("area", nothing))]
        masks = None
        if self.with_masks or (0 in areas and num_masks == len(boxes)):
            masks = read_masks(segments, boxes, crowds, self.box_format, size, name)
        sides = boxes[:, 2:] - boxes[:, :2]
        measured = sides[:, 0] * sides[:, 1] if masks is None else areas_of(masks)
        filled = np.where(np.array(areas) > 0, areas, measured)
        return Stored(boxes, np.array(labels, np.int64), filled, np.array(crowds, bool), masks, num_masks)

    def label(self, value: Any, name: str) -> int:
        """The class of an object, from its number or its name."""
        names = list(self.names)
        listed = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
        if isinstance(value, str):
            if value not in names:
                raise BadObjectsError(f"the class {shown(value)} of {name} is none of {listed}.")
            return names.index(value)
        if not is_finite(value) or int(value) != value:
            raise BadObjectsError(f"the class {shown(value)} of {name} must be a whole number or a name.")
        if not 0 <= value < len(names):
            raise BadObjectsError(
                f"the class {int(value)} of {name} must be in [0, {len(names)}), for the classes {listed}."
            )
        return int(value)


def is_crowd(value: Any, name: str) -> bool:
    """Whether an object is a crowd, by a value of `iscrowd`; not stated: no."""
    if value not in (None, 0, 1):
        raise BadObjectsError(f"`iscrowd` of {name} must be 0 or 1, but is {shown(value)}.")
    return bool(value)


def area_of(value: Any, name: str) -> float:
    """The stated area of an object; 0 if it is not stated."""
    if value is None:
        return 0.0
    if not is_finite(value) or value < 0:
        raise BadObjectsError(f"the area {shown(value)} of {name} must be a number of pixels.")
    return float(value)
