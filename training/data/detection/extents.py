"""Where the masks of objects lie, against their boxes."""

from collections.abc import Sequence

import numpy as np

from training.data.detection.columns import BadObjectsError

LEAST_OVERLAP = 0.5  # intersection over union of a box and of what its mask spans
FEW_PIXELS = 2.0  # by which each side may differ in any case: tools round boxes and masks differently
MEANING = {"xywh": "left, top, width and height", "xyxy": "left, top, right and bottom"}
OTHER = {"xywh": "xyxy", "xyxy": "xywh"}


def refuse_contradictions(
    boxes: np.ndarray, extents: np.ndarray, crowds: Sequence[bool], box_format: str, name: str
) -> None:
    """Raise a `BadObjectsError` if a mask spans another part of the image than its box.

    `boxes` and `extents` are `(N, 4)`: left, top, right and bottom. The mask of a crowd has to touch its box alone.
    """
    for i, (box, extent, is_crowd) in enumerate(zip(boxes, extents, crowds, strict=True)):
        if touch(box, extent) if is_crowd else agree(box, extent):
            continue
        fits = agree(read_otherwise(box, box_format), extent)
        hint = f" As {MEANING[OTHER[box_format]]} it would fit: `--box_format {OTHER[box_format]}`?" if fits else ""
        raise BadObjectsError(
            f"the mask of object {i} of {name} must lie where its box is, but it spans {corners(extent)}, and its box, "
            f"read as {MEANING[box_format]}, spans {corners(box)}.{hint}"
        )


def agree(box: np.ndarray, extent: np.ndarray) -> bool:
    """Whether a box and a mask's extent are about the same rectangle."""
    if (np.abs(box - extent) <= FEW_PIXELS).all():
        return True
    shared = (np.minimum(box[2:], extent[2:]) - np.maximum(box[:2], extent[:2])).clip(0).prod()
    union = (box[2:] - box[:2]).clip(0).prod() + (extent[2:] - extent[:2]).prod() - shared
    return bool(shared >= LEAST_OVERLAP * union)


def touch(box: np.ndarray, extent: np.ndarray) -> bool:
    """Whether a box and a mask's extent have a point in common; a pixel may lie between them by rounding."""
    return bool((np.maximum(box[:2], extent[:2]) <= np.minimum(box[2:], extent[2:]) + 1).all())


def read_otherwise(box: np.ndarray, box_format: str) -> np.ndarray:
    """The corners of the box if its numbers were meant in the other format; they may be swapped."""
    start, stop = box[:2], box[2:]
    return np.concatenate([start, stop - start if box_format == "xywh" else start + stop])


def corners(rectangle: np.ndarray) -> str:
    """Left, top, right and bottom, as text."""
    left, top, right, bottom = (f"{side:g}" for side in rectangle)
    return f"{left}, {top} to {right}, {bottom}"
