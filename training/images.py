"""One stored image to a tensor: decoded, checked, and named in every error."""

import io
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from torch import Tensor

from training.reconnect import read_file

NUMPY_MAGIC = b"\x93NUMPY"
PIL_MODES = {1: "L", 3: "RGB"}
# What Pillow and NumPy raise for bytes that are no image: truncated, of an unknown format, broken inside.
UNREADABLE = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)


class BadImageError(ValueError):
    """An image that cannot be read; the message names it."""


class Enough(NamedTuple):
    """The size, in pixels, above which an image may be decoded smaller, but not below: shorter side, and area."""

    side: int
    area: float


def decode_image(
    value: Any, num_channels: int, name: str, dtype: str | None = None, enough: Enough | None = None
) -> Tensor:
    """A value of the image column as `(C, H, W)`: uint8, or float32 where the source holds other numbers.

    `value` is `{"path", "bytes"}`, a path, bytes, or an array `(H, W, C)` or `(C, H, W)` of `dtype`. 16-bit integers
    are scaled to [0, 1]; floats are taken as they are. `name` names the image where it has no path. A JPEG image that
    is larger than `enough` is decoded at 1/2, 1/4 or 1/8 of its size, which costs a fraction.
    """
    path, content = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (None, value)
    if isinstance(content, str):
        path, content = content, None
    name = path or name
    if content is None and path is None:
        raise BadImageError(f"{name} cannot be read as an image: it is empty.")
    if not isinstance(content, bytes | None):
        return array_to_tensor(np.asarray(content, dtype=dtype), num_channels, name)
    try:
        stored = content if content is not None else read_file(path or "")
        if stored.startswith(NUMPY_MAGIC):
            array = np.load(io.BytesIO(stored), allow_pickle=False)
        else:
            picture = Image.open(io.BytesIO(stored))
            if enough is not None:
                reduce_size(picture, enough)
            array = picture_to_array(picture, num_channels)
    except ConnectionError:
        raise  # of the place where it lies, which says nothing of the image
    except UnidentifiedImageError as error:
        raise BadImageError(f"{name} cannot be read as an image: its format is not known.") from error
    except UNREADABLE as error:
        raise BadImageError(f"{name} cannot be read as an image: {error}") from error
    return array_to_tensor(array, num_channels, name)


def reduce_size(picture: Image.Image, enough: Enough) -> None:
    """Have a picture decoded at a fraction of its size, where its format can (JPEG) and `enough` of it remains."""
    factor = min(math.sqrt(picture.width * picture.height / enough.area), min(picture.size) / enough.side)
    if factor >= 2:
        picture.draft(picture.mode, (int(picture.width / factor), int(picture.height / factor)))


def picture_to_array(picture: Image.Image, num_channels: int) -> np.ndarray:
    """Pixels `(H, W)` or `(H, W, C)`: grey for one channel, RGB for three; else as stored, with pages as channels."""
    if picture.mode.startswith(("I", "F")):  # 16 and 32 bits a pixel: Pillow's conversion to 8 bits would clip them
        pages = [np.asarray(page) for page in ImageSequence.Iterator(picture)]
        if num_channels in PIL_MODES and len(pages) == 1:
            return np.repeat(pages[0][..., None], num_channels, axis=-1)
        return np.stack(pages, axis=-1)
    if num_channels in PIL_MODES:
        ImageOps.exif_transpose(picture, in_place=True)  # as pipelines do: a phone's photographs lie on their side
        if isinstance(picture.info.get("transparency"), bytes):  # of a palette; Pillow warns unless it goes by RGBA
            picture = picture.convert("RGBA")
        mode = PIL_MODES[num_channels]
        return np.array(picture if picture.mode == mode else picture.convert(mode))  # `convert` always copies
    return np.concatenate([np.atleast_3d(np.asarray(page)) for page in ImageSequence.Iterator(picture)], axis=-1)


def array_to_tensor(array: np.ndarray, num_channels: int, name: str) -> Tensor:
    """Pixels as `(C, H, W)`, the side that is `num_channels` long first or last."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or num_channels not in (array.shape[0], array.shape[-1]):
        raise ValueError(
            f"`num_channels` (={num_channels}) must be the first or last side of {name}, of shape {array.shape}."
        )
    if array.shape[-1] == num_channels:
        array = array.transpose(2, 0, 1)
    if array.dtype == np.uint8:
        return torch.from_numpy(array)  # channels last in memory, as decoded: the transforms are faster on it
    if array.dtype == np.uint16:
        array = array / 65535
    if array.dtype.kind != "f":
        raise ValueError(f"`dtype` (={array.dtype}) of {name} must be uint8, uint16 or a float type.")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
