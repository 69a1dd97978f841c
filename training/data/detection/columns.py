"""The objects of an image as lists, one for each kind of value, whatever the keys of the data set are called."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeGuard

import numpy as np

from training.data.decoding import BadImageError

# The names under which data sets store each kind of value; the first one that an image has is read.
KEYS = {
    "bbox": ("bbox", "bboxes", "box", "boxes"),
    "category": ("category", "categories", "label", "labels", "category_id", "category_ids", "class_labels"),
    "area": ("area", "areas"),
    "iscrowd": ("iscrowd", "is_crowd"),
    "segmentation": ("segmentation", "segmentations", "mask", "masks"),
}
IMAGE_SIZE = "image_size"  # height and width of the image that the objects belong to, if the data set states them


class BadObjectsError(BadImageError):
    """The objects of an image cannot be used; the message names the image."""


def columns_of(value: Any, name: str) -> dict[str, list[Any]]:
    """The values of an image's objects by the keys of `KEYS`, each a list with an entry for each object.

    `value` is a dict of lists, a list of dicts, or None. Keys that it lacks are left out; without objects all are.

    Raises:
        BadObjectsError: if it has another form, no boxes or no classes, or lists of different lengths.
    """
    columns = {key: listed(entries, key, name) for key, entries in dict_of_lists(value, name).items()}
    found: dict[str, list[Any]] = {}
    stored: dict[str, str] = {}
    for kind, keys in KEYS.items():
        key = next((key for key in keys if key in columns), None)
        if key is not None:
            found[kind], stored[kind] = columns[key], key
    if not any(found.values()) and not any(columns.values()):
        return {}
    for kind, what in (("bbox", "boxes"), ("category", "classes")):
        if kind not in found:
            raise BadObjectsError(
                f"the objects of {name} must have {what} by the key `{'` or `'.join(KEYS[kind])}`, but have "
                f"{', '.join(f'`{key}`' for key in columns)}."
            )
    if len({len(entries) for entries in found.values()}) > 1:
        lengths = ", ".join(f"{len(entries)} of `{stored[kind]}`" for kind, entries in found.items())
        raise BadObjectsError(f"{name} must have one entry for each object in every list, but has {lengths}.")
    return found


def dict_of_lists(value: Any, name: str) -> dict[str, Any]:
    """The objects as a dict of lists without the keys that hold nothing."""
    if isinstance(value, list | tuple) and all(isinstance(each, Mapping) for each in value):
        keys = dict.fromkeys(key for each in value for key in each)
        value = {key: [each.get(key) for each in value] for key in keys}
        return {key: entries for key, entries in value.items() if any(entry is not None for entry in entries)}
    if value is not None and not isinstance(value, Mapping):
        raise BadObjectsError(
            f"the objects of {name} must be a dict of lists or a list of dicts, but are {shown(value)}."
        )
    return {key: entries for key, entries in (value or {}).items() if entries is not None and key != IMAGE_SIZE}


def listed(entries: Any, key: str, name: str) -> list[Any]:
    """The entries of a key as a list."""
    if not isinstance(entries, list | tuple | np.ndarray):
        raise BadObjectsError(
            f"`{key}` of the objects of {name} must be a list with an entry for each object, but is {shown(entries)}."
        )
    return list(entries)


def stated_size(value: Any) -> tuple[int, int] | None:
    """The height and width of the image that the objects belong to, if they are stated."""
    size = value.get(IMAGE_SIZE) if isinstance(value, Mapping) else None
    return None if size is None or None in size else (int(size[0]), int(size[1]))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number, of Python or NumPy; it may be NaN or infinite."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return is_number(value) and math.isfinite(value)


def shown(value: Any) -> str:
    """A value as text that is not too long."""
    text = repr(value.tolist() if isinstance(value, np.ndarray | np.generic) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
