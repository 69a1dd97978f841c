"""Boxes: four numbers that are checked against the image and turned into corners."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.data.detection.columns import BadObjectsError, is_number, shown

# A box may reach out of its image by rounding: by this many pixels, or by this share of the side.
PIXELS_OUTSIDE, SHARE_OUTSIDE = 1.0, 0.01


def read_boxes(values: Sequence[Any], box_format: str, size: tuple[int, int], name: str) -> np.ndarray:
    """Boxes `(N, 4)` float64 as left, top, right, bottom; what reaches a little out of the image is clipped.

    Raises:
        BadObjectsError: if a box is no box, is empty, or lies outside the image.
    """
    boxes = [f"the box {shown(value)} of object {i} of {name}" for i, value in enumerate(values)]
    numbers = [four_numbers(value, box) for value, box in zip(values, boxes, strict=True)]
    most = max(map(max, numbers), default=0.0)
    corners = [corners_of(four, box_format, size, most, box) for four, box in zip(numbers, boxes, strict=True)]
    return np.array(corners, np.float64).reshape(-1, 4)


def corners_of(numbers: list[float], box_format: str, size: tuple[int, int], most: float, box: str) -> list[float]:
    """The left, top, right and bottom of a box within an image of a size `(H, W)`, from its four numbers.

    `most` is the largest number in all boxes of the image.
    """
    first, second, third, fourth = numbers
    right, bottom = (first + third, second + fourth) if box_format == "xywh" else (third, fourth)
    refuse_empty(right - first, bottom - second, box_format, box)
    is_corner = most > 1 and all(map(float.is_integer, numbers))  # one of the first pixels
    if max(numbers) <= 1 < min(size) and not is_corner:
        raise BadObjectsError(f"{box} must be in pixels, but its numbers are shares of the image: multiply them.")
    refuse_outside((first, second, right, bottom), numbers, box_format, size, box)
    height, width = size
    clipped = [max(first, 0.0), max(second, 0.0), min(right, width), min(bottom, height)]
    left, top, right, bottom = np.array(clipped, np.float32)  # as the model gets them
    if right <= left or bottom <= top:
        raise BadObjectsError(f"{box} must have an area in the image, which has {width} x {height} pixels.")
    return clipped


def four_numbers(value: Any, box: str) -> list[float]:
    """The numbers of a box."""
    numbers = list(value) if isinstance(value, list | tuple | np.ndarray) else None
    if numbers is None or len(numbers) != 4:
        has = "none" if numbers is None else len(numbers)
        raise BadObjectsError(f"{box} must have 4 numbers, but has {has}.")
    wrong = [number for number in numbers if not is_number(number)]
    if wrong:
        raise BadObjectsError(f"{box} must hold numbers, but holds {shown(wrong[0])}.")
    if not all(math.isfinite(number) for number in numbers):
        raise BadObjectsError(f"{box} must hold finite numbers.")
    return [float(number) for number in numbers]


def refuse_empty(width: float, height: float, box_format: str, box: str) -> None:
    """Raise if a box has no area, or its corners are swapped."""
    if width < 0 or height < 0:
        if box_format == "xyxy":
            raise BadObjectsError(
                f"{box} has its corners swapped: its right must be more than its left, and its bottom more than its "
                "top. If its numbers are left, top, width and height, give `--box_format xywh`."
            )
        raise BadObjectsError(
            f"{box} has a negative width or height. If its numbers are corners, give `--box_format xyxy`."
        )
    if width == 0 or height == 0:
        raise BadObjectsError(f"{box} is empty: its width and height are {width:g} x {height:g}.")


def refuse_outside(
    corners: tuple[float, float, float, float], numbers: list[float], box_format: str, size: tuple[int, int], box: str
) -> None:
    """Raise if a box reaches further out of the image than by rounding."""
    (left, top, right, bottom), (height, width) = corners, size
    across, down = max(-left, right - width), max(-top, bottom - height)
    if across <= most_outside(width) and down <= most_outside(height):
        return
    fits = box_format == "xywh" and left < numbers[2] <= width and top < numbers[3] <= height
    hint = " As corners it would lie inside: `--box_format xyxy`?" if fits else ""
    raise BadObjectsError(
        f"{box} reaches {max(across, down):g} pixels out of the image, which has {width} x {height} pixels after "
        f"the rotation by its EXIF data; only 1 pixel or 1 % is clipped.{hint}"
    )


def most_outside(side: int) -> float:
    """The number of pixels by which a box may reach out of an image over this side of it."""
    return max(PIXELS_OUTSIDE, SHARE_OUTSIDE * side)
