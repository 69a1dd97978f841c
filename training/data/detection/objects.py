"""The objects of an image."""

from typing import NamedTuple

from torch import Tensor


class Objects(NamedTuple):
    """The N objects of an image, in its pixels, after the rotation by its EXIF data.

    boxes: `(N, 4)` float32: left, top, right, bottom, within the image.
    labels: `(N,)` int64, classes from 0 on.
    areas: `(N,)` float32, of the mask if the data have masks, else of the box (or as the data state it).
    crowds: `(N,)` bool: groups of objects that nobody has separated; they are neither trained on nor missed.
    masks: `(N, H, W)` uint8, 1 where the object is; None if the data have no masks.
    """

    boxes: Tensor
    labels: Tensor
    areas: Tensor
    crowds: Tensor
    masks: Tensor | None
