"""Masks of objects, as COCO has them: polygons, run lengths, or an image of the mask; all become run lengths."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor

from training.data.detection.boxes import most_outside
from training.data.detection.columns import BadObjectsError, is_finite, is_number, shown
from training.data.detection.extents import refuse_contradictions
from training.data.segmentation.masks import BadMaskError, decode_mask

coco: Any = pycocotools.mask  # its type stubs know single masks alone
RunLengths = dict[str, Any]  # of pycocotools: "size" (height, width) and compressed "counts"


def read_masks(
    values: Sequence[Any], boxes: np.ndarray, crowds: Sequence[bool], box_format: str, size: tuple[int, int], name: str
) -> list[RunLengths]:
    """The run lengths of the masks of all objects of an image.

    Raises:
        BadObjectsError: if one cannot be used, or does not lie where its box is.
    """
    values = [parsed(value, f"object {i} of {name}") for i, value in enumerate(values)]
    masks = [run_lengths(value, size, f"object {i} of {name}") for i, value in enumerate(values)]
    extents = [extent_of(value, mask, size) for value, mask in zip(values, masks, strict=True)]
    refuse_contradictions(boxes, np.reshape(extents, (-1, 4)), crowds, box_format, name)
    return masks


def is_missing(value: Any) -> bool:
    """Whether an object has no mask."""
    if isinstance(value, Mapping):
        return all(entry is None for entry in value.values())
    return value is None or (isinstance(value, str | bytes | list | tuple) and not value)


def parsed(value: Any, name: str) -> Any:
    """A mask that is JSON text as what it means, any other as it is."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise BadObjectsError(f"the mask {shown(value)} of {name} must be JSON: {error}.") from error


def run_lengths(value: Any, size: tuple[int, int], name: str) -> RunLengths:
    """The run lengths of a mask: polygons, COCO's run lengths, or an image or array."""
    if is_missing(value):
        raise BadObjectsError(
            f"{name} has no mask. Every object needs one; without masks train `--architecture faster_rcnn`."
        )
    if isinstance(value, Mapping) and "counts" in value:
        found = of_counts(value, size, f"the mask of {name}")
    elif are_polygons(value, size):
        found = of_polygons(value, size, name)
    else:
        found = of_pixels(value, size, name)
    if not coco.area(found):
        raise BadObjectsError(f"the mask of {name} is empty: no pixel belongs to it.")
    return found


def extent_of(value: Any, mask: RunLengths, size: tuple[int, int]) -> np.ndarray:
    """Left, top, right and bottom of a mask; of polygons by their points, as thin parts of them cover no pixel."""
    if not are_polygons(value, size):
        left, top, width, height = coco.toBbox(mask)
        return np.array([left, top, left + width, top + height])
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in as_list(value)])
    return np.concatenate([points.min(axis=0), points.max(axis=0)]).clip(0, [*size[::-1], *size[::-1]])


def of_polygons(polygons: Sequence[Any], size: tuple[int, int], name: str) -> RunLengths:
    """The run lengths of one or more polygons, each a list x1, y1, x2, y2, ..."""
    polygons = as_list(polygons)
    for polygon in polygons:
        each = f"the polygon {shown(polygon)} of {name}"
        is_list = isinstance(polygon, list | tuple | np.ndarray)
        if not is_list or not all(map(is_finite, polygon)):
            raise BadObjectsError(f"{each} must hold finite numbers x1, y1, x2, y2, ... in one list.")
        if len(polygon) % 2:
            raise BadObjectsError(
                f"{each} must have two coordinates for each point, but has {len(polygon)} in all, an odd number."
            )
        if len(polygon) < 6:
            raise BadObjectsError(f"{each} must have 3 points or more, but has {len(polygon) // 2}.")
    refuse_elsewhere([np.reshape(polygon, (-1, 2)) for polygon in polygons], size, name)
    return coco.merge(coco.frPyObjects([[float(number) for number in polygon] for polygon in polygons], *size))


def as_list(polygons: Sequence[Any]) -> Sequence[Any]:
    """Polygons as a list of them, also a single one that is in no list of its own."""
    return [polygons] if is_number(polygons[0]) else polygons


def refuse_elsewhere(polygons: list[np.ndarray], size: tuple[int, int], name: str) -> None:
    """Raise if the polygons `(points, 2)` of an object are in shares of the image, or reach out of it as no box may."""
    points = np.concatenate(polygons).astype(np.float64)
    height, width = size
    if min(size) > 2 and points.min() >= 0 and points.max() <= 1:
        raise BadObjectsError(
            f"the polygons of {name} must be in pixels, but its numbers are shares of the image: multiply them."
        )
    least, most = points.min(axis=0), points.max(axis=0)
    if (np.maximum(-least, most - (width, height)) > (most_outside(width), most_outside(height))).any():
        raise BadObjectsError(
            f"the polygons of {name} must lie in the image of {width} x {height} pixels after the rotation by its EXIF "
            f"data, but span {least[0]:g}, {least[1]:g} to {most[0]:g}, {most[1]:g}; only 1 pixel or 1 % is clipped."
        )


def of_counts(value: Mapping[str, Any], size: tuple[int, int], mask: str) -> RunLengths:
    """COCO's run lengths, compressed (text) or not (a list), after a check.

    pycocotools reads any counts, and leaves the pixels after the last run as they were in memory.
    """
    stated, counts = value.get("size"), value["counts"]
    if (
        not isinstance(stated, list | tuple | np.ndarray)
        or len(stated) != 2
        or not isinstance(counts, str | bytes | list | tuple)
    ):
        raise BadObjectsError(f"{mask} must have a `size` (height, width) and `counts`, but is {shown(value)}.")
    if tuple(stated) != tuple(size):
        refuse_size(mask, list(stated), size)
    height, width = size
    if isinstance(counts, str | bytes):
        counts = uncompressed(counts.encode() if isinstance(counts, str) else counts)
    is_whole = all(is_finite(count) and count >= 0 and count == int(count) for count in counts)
    if not is_whole or sum(counts) != height * width:
        raise BadObjectsError(f"{mask} must have run lengths that add up to {height * width} pixels.")
    return coco.frPyObjects({"size": [height, width], "counts": [int(count) for count in counts]}, height, width)


def uncompressed(counts: bytes) -> list[int]:
    """The run lengths in COCO's compressed text: 5 bits a character, and from the fourth on differences.

    A text that is cut off gives a number that does not fit.
    """
    found: list[int] = []
    number, shift = 0, 0
    for character in counts:
        bits = character - 48
        number |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                number -= 1 << shift
            found.append(number + (found[-2] if len(found) > 2 else 0))
            number, shift = 0, 0
    return found if not shift else [-1]


def are_polygons(value: Any, size: tuple[int, int]) -> TypeGuard[Sequence[Any]]:
    """Whether a mask is one or more polygons."""
    return isinstance(value, list | tuple) and not is_array(value, size)


def is_array(value: Sequence[Any], size: tuple[int, int]) -> bool:
    """Whether nested lists are the pixels of a mask and not polygons: rows of one length of zeros and ones."""
    if not all(isinstance(row, list | tuple) and len(row) == len(value[0]) for row in value):
        return False
    is_whole = len(value) == size[0] and len(value[0]) == size[1]
    return is_whole or (len(value) > 1 and all(pixel in (0, 1) for row in value for pixel in row))


def of_pixels(value: Any, size: tuple[int, int], name: str) -> RunLengths:
    """The run lengths of an image or array `(H, W)` that is 0 where the object is not."""
    path = path_of(value)
    if path is not None and is_relative(path):
        raise BadObjectsError(
            f"the mask {shown(path)} of {name} must be a whole path: the folder that it begins in is not known. It is "
            "that of metadata.jsonl, if just one such file lies above the image."
        )
    try:
        pixels = decode_mask(value, name)
    except BadMaskError as error:
        raise BadObjectsError(str(error)) from error
    if pixels.shape != tuple(size):
        refuse_size(f"the mask of {name}", pixels.shape, size)
    return coco.encode(np.asfortranarray(pixels != 0, dtype=np.uint8))


def path_of(value: Any) -> str | None:
    """The path of a mask that is stored in a file; None for any other, also for JSON text."""
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else None
    return value if isinstance(value, str) and value[:1] not in ("[", "{") else None


def is_relative(path: str) -> bool:
    """Whether a path does not begin at the root of a file system, and is no address."""
    return not os.path.isabs(path) and "://" not in path


def refuse_size(mask: str, found: Sequence[int], size: tuple[int, int]) -> None:
    """Raise a `BadObjectsError`: a mask has another size than its image."""
    raise BadObjectsError(
        f"{mask} has {found[1]} x {found[0]} pixels and its image {size[1]} x {size[0]}: both must have one size, the "
        "image after the rotation by its EXIF data."
    )


def decode_masks(masks: list[RunLengths], size: tuple[int, int]) -> Tensor:
    """Masks `(N, H, W)` uint8."""
    if not masks:
        return torch.zeros((0, *size), dtype=torch.uint8)
    return torch.from_numpy(np.ascontiguousarray(coco.decode(masks).transpose(2, 0, 1)))


def areas_of(masks: list[RunLengths]) -> np.ndarray:
    """The number of pixels of each mask, `(N,)` float64."""
    return coco.area(masks).astype(np.float64) if masks else np.zeros(0)
