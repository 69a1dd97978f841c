"""Masks: images that hold a class number for each pixel."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from training.data.decoding import BadImageError, file_of
from training.data.retry import read_file
from training.settings.data import MaskedDataSettings

MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # of Pillow: one number for each pixel
LOSSY = ("JPEG", "MPO", "JPEG2000")
LOSSY_IN_TIFF = ("jpeg", "tiff_jpeg")
NO_CLASS = -2
IGNORED, IGNORED_OF_MANY = 255, -100  # the label of pixels without a class; the latter if 255 is a class


# By Pillow's name of it: what Pillow multiplies grey numbers of 2 or 4 bits by, to span 0 to 255.
SCALES = {"L;2": 85, "L;4": 17}
WHITE_IS_ZERO = re.compile(r"[1L];\d?I")


class BadMaskError(BadImageError):
    """A mask cannot be used; the message names it."""


def decode_mask(value: Any, name: str) -> np.ndarray:
    """The numbers `(H, W)` in a mask: `{"path", "bytes"}`, a path, bytes, or an array `(H, W)` or `(H, W, 1)`.

    A file is turned as its EXIF data say, as images are. Errors call a mask without a path `name`.

    Raises:
        BadMaskError: if it is no image, has colours or several pages, or if its numbers are not sure: stored with loss,
            or as a TIFF in which 0 is white.
    """
    path, content = file_of(value)
    name = f"the mask {path or f'of {name}'}"
    if content is None and path is None:
        raise BadMaskError(f"{name} is empty.")
    if not isinstance(content, bytes | None):
        return checked_array(array_of(content, name), name)
    try:
        picture = open_file(path, content)
        mode, pages = picture.mode, getattr(picture, "n_frames", 1)
        packing, is_tiff = packing_of(picture), picture.format == "TIFF"
        is_lossy = picture.format in LOSSY or (is_tiff and picture.info.get("compression") in LOSSY_IN_TIFF)
        array = np.asarray(ImageOps.exif_transpose(picture)) if mode in MODES else np.empty((0, 0))
        array = as_stored(array, packing, picture.format)
    except (ConnectionError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadMaskError(f"{name} cannot be read as an image: its format is not known.") from error
    except Exception as error:  # the readers of Pillow raise errors of any kind for damaged files
        raise BadMaskError(f"{name} cannot be read as an image: {str(error) or type(error).__name__}") from error
    if is_lossy:
        kind = "TIFF file with JPEG compression, which" if is_tiff else f"{picture.format} file, whose compression"
        raise BadMaskError(f"{name} is a {kind} changes class numbers: use PNG.")
    if is_tiff and WHITE_IS_ZERO.match(packing[0]):
        raise BadMaskError(f"{name} is a TIFF file in which 0 is white. Programs disagree on its numbers: use PNG.")
    if pages > 1:
        raise BadMaskError(f"{name} must be one picture, but has {pages} pages.")
    if mode not in MODES:
        raise BadMaskError(
            f"{name} must hold one class number for each pixel (mode L, P or I), but its mode is {mode}."
        )
    return checked_array(array, name)


def open_file(path: str | None, content: bytes | None) -> Image.Image:
    """The picture in a file, which is not decoded yet."""
    return Image.open(io.BytesIO(content if content is not None else read_file(path or "")))


def packing_of(picture: Image.Image) -> tuple[Any, ...]:
    """How the numbers of a picture that has not been read yet lie in its file, as Pillow describes it."""
    parts = getattr(picture, "tile", None)
    described = parts[0][3] if parts else ""
    return described if isinstance(described, tuple) else (described,)


def as_stored(array: np.ndarray, packing: tuple[Any, ...], format: str | None) -> np.ndarray:
    """The numbers that lie in the file, which Pillow stretches to the range of 8 or 16 bits."""
    if packing[0] in SCALES:
        return array // SCALES[packing[0]]
    if format == "PPM" and len(packing) > 1:  # its range ends at any number, which the file states
        highest = 255 if array.dtype == np.uint8 else 65535
        return np.rint(array * (packing[1] / highest)).astype(np.int64)
    return array


def array_of(content: Any, name: str) -> np.ndarray:
    """Nested lists as an array; raises a `BadMaskError` if their lengths differ."""
    try:
        return np.asarray(content)
    except ValueError as error:
        raise BadMaskError(f"{name} must have rows of one length, but has lists of different lengths.") from error


def checked_array(array: np.ndarray, name: str) -> np.ndarray:
    """An array of class numbers as `(H, W)`; raises a `BadMaskError` if it has another shape or other numbers."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array.squeeze(0 if array.shape[0] == 1 else -1)
    if array.ndim != 2:
        raise BadMaskError(f"{name} must have one number for each pixel, but its shape is {array.shape}.")
    if array.dtype.kind not in "biu":
        raise BadMaskError(f"{name} must hold integers, but holds {array.dtype}.")
    return array


@dataclass
class MaskReader:
    """Turns stored masks into labels `(H, W)` int64: the classes are 0 to `num_labels - 1`, and `ignored` is no class.

    values: the stored number of each class; None: the class number itself.
    """

    num_labels: int
    ignored: int
    ignore_index: int
    reduce_labels: bool = False
    values: Sequence[int] | None = None

    def __call__(self, value: Any, size: tuple[int, int], name: str) -> Tensor:
        """The labels of a mask, for an image of a size `(H, W)`; raises a `BadMaskError` if they do not fit."""
        stored = decode_mask(value, name)
        if stored.shape != tuple(size):
            raise BadMaskError(mismatch(name, size, stored.shape))
        labels = class_numbers(stored, self.ignore_index, self.reduce_labels, self.values)
        outside = unknown_numbers(stored, labels, self.num_labels)
        if outside.size:
            raise BadMaskError(none_of(name, outside, self.num_labels, self.values))
        return torch.from_numpy(np.where(labels < 0, self.ignored, labels))


def mismatch(name: str, image: Sequence[int], mask: Sequence[int]) -> str:
    """The message about a mask that has another size than its image."""
    sizes = f"{image[1]} x {image[0]} pixels and its mask {mask[1]} x {mask[0]}"
    return f"{name} has {sizes}: both must have one size, the image after the rotation by its EXIF data."


def none_of(name: str, outside: np.ndarray, num_labels: int, values: Sequence[int] | None) -> str:
    """The message about a mask with numbers that are no classes."""
    listed = ", ".join(map(str, outside[:5].tolist()))
    return f"the mask of {name} holds {listed}, which is none of {values or f'`num_labels` (={num_labels}) classes'}."


def unknown_numbers(stored: np.ndarray, classes: np.ndarray, num_labels: int) -> np.ndarray:
    """The stored numbers that are neither classes nor ignored, each once; `classes` are theirs by `class_numbers`."""
    return np.unique(stored[(classes >= num_labels) | (classes == NO_CLASS)])


def class_numbers(
    stored: np.ndarray, ignore_index: int, reduce_labels: bool = False, values: Sequence[int] | None = None
) -> np.ndarray:
    """Class numbers (int64) of stored numbers; -1: ignored, `NO_CLASS`: negative, or none of `values`."""
    numbers = stored.astype(np.int64)
    ignored = numbers == ignore_index
    if values is not None:
        order = np.argsort(values)
        place = np.searchsorted(np.asarray(values)[order], numbers).clip(max=len(values) - 1)
        found = order[place]
        numbers = np.where(np.asarray(values)[found] == numbers, found, NO_CLASS)
    else:
        is_negative = numbers < 0
        numbers = numbers - int(reduce_labels)  # class 0 becomes -1: ignored
        numbers[is_negative] = NO_CLASS
    numbers[ignored] = -1
    return numbers


def mask_reader(data: MaskedDataSettings, num_labels: int, ignored: int) -> MaskReader:
    """The reader of the masks of a data set."""
    return MaskReader(num_labels, ignored, data.ignore_index, data.reduce_labels, data.mask_values)


def ignored_label(num_labels: int) -> int:
    """The label of pixels without a class: 255 as everywhere, unless 255 is a class."""
    return IGNORED if num_labels <= IGNORED else IGNORED_OF_MANY
