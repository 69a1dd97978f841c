"""One stored image to a tensor: decoded, checked, and named in every error."""

import io
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from torch import Tensor

from hf_convnextv2.images import (
    DEFAULT_BACKGROUND,
    MODES,
    NO_BACKGROUND,
    alpha_of,
    background_color,
    flatten,
    largest_value,
)
from training.data.retry import read_file
from training.settings.data import DataSettings

NUMPY_MAGIC = b"\x93NUMPY"
SAMPLES_PER_PIXEL = 277  # a tag of TIFF
# What Pillow and NumPy raise for bytes that are no image: truncated, of an unknown format, broken inside.
UNREADABLE = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)


class BadImageError(ValueError):
    """An image that cannot be read; the message names it."""


class WrongChannelsError(ValueError):
    """An image with other channels than the model's, which no setting skips: most are then."""


class Decoded(NamedTuple):
    """An image `(C, H, W)`, and whether it has transparent pixels, which are composited."""

    pixels: Tensor
    is_transparent: bool = False


class Enough(NamedTuple):
    """The size, in pixels, above which an image may be decoded smaller, but not below: shorter side, and area."""

    side: int
    area: float


def decode_image(
    value: Any,
    num_channels: int,
    name: str,
    dtype: str | None = None,
    enough: Enough | None = None,
    background: str = DEFAULT_BACKGROUND,
) -> Decoded:
    """A value of the image column as `(C, H, W)`: uint8, or float32 where the source holds other numbers.

    `value` is `{"path", "bytes"}`, a path, bytes, or an array `(H, W, C)` or `(C, H, W)` of `dtype`. 16-bit integers
    are scaled to [0, 1]; floats are taken as they are. `name` names the image where it has no path. A JPEG image that
    is larger than `enough` is decoded at 1/2, 1/4 or 1/8 of its size, which costs a fraction. With 1 and 3 channels,
    transparent pixels are composited on `background`.
    """
    path, content = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (None, value)
    if isinstance(content, str):
        path, content = content, None
    name = path or name
    if content is None and path is None:
        raise BadImageError(f"{name} cannot be read as an image: it is empty.")
    if not isinstance(content, bytes | None):
        return Decoded(array_to_tensor(np.asarray(content, dtype=dtype), num_channels, name))
    try:
        stored = content if content is not None else read_file(path or "")
        if stored.startswith(NUMPY_MAGIC):
            return Decoded(array_to_tensor(np.load(io.BytesIO(stored), allow_pickle=False), num_channels, name))
        picture = Image.open(io.BytesIO(stored))
        check_all_read(picture, num_channels, name)
        if enough is not None:
            reduce_size(picture, enough)
        array, is_transparent = picture_to_array(picture, num_channels, background)
        return Decoded(array_to_tensor(array, num_channels, name, picture), is_transparent)
    except (ConnectionError, WrongChannelsError):
        raise  # of the place where it lies, or of all images: they say nothing of this one
    except UnidentifiedImageError as error:
        raise BadImageError(f"{name} cannot be read as an image: its format is not known.") from error
    except UNREADABLE as error:
        raise BadImageError(f"{name} cannot be read as an image: {error}") from error


def reduce_size(picture: Image.Image, enough: Enough) -> None:
    """Have a picture decoded at a fraction of its size, where its format can (JPEG) and `enough` of it remains."""
    factor = min(math.sqrt(picture.width * picture.height / enough.area), min(picture.size) / enough.side)
    if factor >= 2:
        picture.draft(picture.mode, (int(picture.width / factor), int(picture.height / factor)))


def picture_to_array(picture: Image.Image, num_channels: int, background: str) -> tuple[np.ndarray, bool]:
    """Pixels `(H, W)` or `(H, W, C)`, and whether any of them was transparent.

    Grey for one channel, RGB for three and RGBA for four, of the first page; else as stored, with pages as channels.
    """
    if num_channels not in MODES or has_pages_for(picture, num_channels):
        return pages_to_array(picture), False
    largest = largest_value(picture)
    ImageOps.exif_transpose(picture, in_place=True)  # as pipelines do: a phone's photographs lie on their side
    if largest is not None:
        return deep_to_array(picture, largest, num_channels, background)
    flat, is_transparent = flatten(picture, background_color(background), num_channels)
    return np.array(flat), is_transparent


def check_all_read(picture: Image.Image, num_channels: int, name: str) -> None:
    """Raise if a TIFF file has channels that Pillow leaves out, unless grey or RGB is wanted of it."""
    stored, read = getattr(picture, "tag_v2", {}).get(SAMPLES_PER_PIXEL, 1), len(picture.getbands())
    if num_channels not in (1, 3) and stored > read:
        raise WrongChannelsError(
            f"`num_channels` (={num_channels}) must be channels that Pillow reads, but of the {stored} of {name} (a "
            f"{picture.format} file of mode {picture.mode}) it reads {read}; store them as a .npy array."
        )


def has_pages_for(picture: Image.Image, num_channels: int) -> bool:
    """Whether a TIFF file's pages are the channels: of more than 8 bits, or four; of others the first one is taken."""
    if picture.format != "TIFF" or (num_channels != 4 and picture.mode[0] not in "IF"):
        return False
    pages = getattr(picture, "n_frames", 1)
    return pages > 1 and pages * len(picture.getbands()) == num_channels


def pages_to_array(picture: Image.Image) -> np.ndarray:
    """Pixels `(H, W, C)` as stored, page behind page; of more than 8 bits, in [0, 1]."""
    pages = []
    for page in ImageSequence.Iterator(picture):
        largest = largest_value(page)
        stored = np.atleast_3d(np.asarray(page.convert("L") if page.mode == "1" else page))
        pages.append(stored if largest is None else stored / largest)
    return np.concatenate(pages, axis=-1)


def deep_to_array(picture: Image.Image, largest: float, num_channels: int, background: str) -> tuple[np.ndarray, bool]:
    """A grey picture of more than 8 bits in [0, 1] as `(H, W, C)`: Pillow's conversions would clip it."""
    pixels = np.repeat(np.atleast_3d(np.asarray(picture)) / largest, min(num_channels, 3), axis=-1)
    alpha = alpha_of(picture)
    opacity = np.full(pixels.shape[:2], 255) if alpha is None else np.asarray(alpha)
    if num_channels == 4:
        return np.concatenate([pixels, opacity[..., None] / 255], axis=-1), False
    color, transparent = background_color(background), opacity == 0
    if color is not None and transparent.any():
        canvas = Image.new("RGB", (1, 1), color).convert(MODES[num_channels])
        pixels[transparent] = np.asarray(canvas).reshape(-1) / 255
    return pixels, bool(transparent.any())


def array_to_tensor(array: np.ndarray, num_channels: int, name: str, picture: Image.Image | None = None) -> Tensor:
    """Pixels as `(C, H, W)`, the side that is `num_channels` long first or last; `picture` is what they are of."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or num_channels not in (array.shape[0], array.shape[-1]):
        rule = f"must be the first or last side of {name}, of shape {array.shape}"
        if picture is not None:
            rule += f" (a {picture.format} file of mode {picture.mode}); store other channels as .npy arrays"
        raise WrongChannelsError(f"`num_channels` (={num_channels}) {rule}.")
    if array.shape[-1] == num_channels:
        array = array.transpose(2, 0, 1)
    if array.dtype == np.uint8:
        return torch.from_numpy(array)  # channels last in memory, as decoded: the transforms are faster on it
    if array.dtype == np.uint16:
        array = array / 65535
    if array.dtype.kind != "f":
        raise WrongChannelsError(f"`dtype` (={array.dtype}) of {name} must be uint8, uint16 or a float type.")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def fate_of_transparency(data: DataSettings) -> str:
    """What the setting does with transparent pixels, in words."""
    background = data.background or DEFAULT_BACKGROUND
    if background == NO_BACKGROUND:
        return "their transparency is left out, which shows colours hidden there (`--background none`)"
    return f"composited on {background} (`--background`)"
