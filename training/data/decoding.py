"""Decodes a stored image to a tensor and checks it; every error names the image."""

import io
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, ImageSequence, UnidentifiedImageError
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

LONGEST_NAME = 255  # characters of the name of a file, in most file systems
NUMPY_MAGIC = b"\x93NUMPY"
SAMPLES_PER_PIXEL = 277  # TIFF tag
AS_CHANNELS = "the channels as .npy arrays, or as a TIFF file with a page for each channel"  # how any number is stored
TURNED = range(2, 9)  # values of EXIF's orientation that rotate or mirror an image


class BadImageError(ValueError):
    """An image cannot be read; the message names the image."""


class WrongChannelsError(ValueError):
    """An image has other channels than the model. No setting skips it: most images of the data set are then alike."""


class Decoded(NamedTuple):
    """An image `(C, H, W)`.

    is_transparent: whether it had transparent pixels, which are composited on a background.
    is_turned: whether it was rotated or mirrored as its EXIF data say.
    """

    pixels: Tensor
    is_transparent: bool = False
    is_turned: bool = False


class Enough(NamedTuple):
    """The least size in pixels, as shorter side and area, that a JPEG image must keep when it is decoded smaller."""

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
    """Decode a value of the image column to `(C, H, W)`: uint8, or float32 if the source holds other numbers.

    `value` is `{"path", "bytes"}`, a path, bytes, or an array `(H, W, C)` or `(C, H, W)` of `dtype`. 16-bit integers
    are scaled to [0, 1]; floats are not changed. Errors call an image without a path `name`. A JPEG image that is
    larger than `enough` is decoded at 1/2, 1/4 or 1/8 of its size, which takes a fraction of the time. With 1 or 3
    channels, transparent pixels are composited on `background`.
    """
    path, content = file_of(value)
    if path is not None and not is_path(path):
        rule = "must be the path of an image. If it is the image in base64, store what `base64.b64decode` makes of it"
        raise BadImageError(f"{name}, a text of {len(path):,} characters ({path[:20]}...), {rule}.")
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
        is_turned = num_channels in MODES and picture.getexif().get(ExifTags.Base.Orientation) in TURNED
        array, is_transparent = picture_to_array(picture, num_channels, background)
        return Decoded(array_to_tensor(array, num_channels, name, picture), is_transparent, is_turned)
    except (ConnectionError, MemoryError, WrongChannelsError):
        raise  # the cause is the storage, the machine or all images, not this image
    except UnidentifiedImageError as error:
        raise BadImageError(f"{name} cannot be read as an image: its format is not known.") from error
    except Exception as error:  # the readers of Pillow and NumPy raise errors of any kind for damaged files
        raise BadImageError(f"{name} cannot be read as an image: {str(error) or type(error).__name__}") from error


def file_of(value: Any) -> tuple[str | None, Any]:
    """The path of a stored image or mask, and its bytes or its array; each None if it has none."""
    path, content = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (None, value)
    return (content, None) if isinstance(content, str) else (path, content)


def is_path(text: str) -> bool:
    """Whether a text may be a path or an address: a long one with no dot in it is an image in base64."""
    return "." in text or len(text) <= LONGEST_NAME


def reduce_size(picture: Image.Image, enough: Enough) -> None:
    """Make Pillow decode a picture at a fraction of its size, if its format allows it (JPEG) and it keeps `enough`."""
    factor = min(math.sqrt(picture.width * picture.height / enough.area), min(picture.size) / enough.side)
    if factor >= 2:
        picture.draft(picture.mode, (int(picture.width / factor), int(picture.height / factor)))


def picture_to_array(picture: Image.Image, num_channels: int, background: str) -> tuple[np.ndarray, bool]:
    """Pixels `(H, W)` or `(H, W, C)`, and whether any of them was transparent.

    One channel gives grey, three give RGB and four give RGBA, each of the first page. Any other number of channels
    gives the pixels as they are stored, and so does a TIFF file whose pages are the channels: pages become channels.
    """
    if num_channels not in MODES or has_pages_for(picture, num_channels):
        return pages_to_array(picture), False
    largest = largest_value(picture)
    ImageOps.exif_transpose(picture, in_place=True)  # as pipelines do: phones store photographs rotated
    if largest is not None:
        return deep_to_array(picture, largest, num_channels, background)
    flat, is_transparent = flatten(picture, background_color(background), num_channels)
    return np.array(flat), is_transparent


def check_all_read(picture: Image.Image, num_channels: int, name: str) -> None:
    """Raise if Pillow does not read all channels of a TIFF file, unless the model takes 1 or 3 channels."""
    stored, read = getattr(picture, "tag_v2", {}).get(SAMPLES_PER_PIXEL, 1), len(picture.getbands())
    if num_channels not in (1, 3) and stored > read:
        raise WrongChannelsError(
            f"`num_channels` (={num_channels}) must be channels that Pillow reads, but of the {stored} of {name} (a "
            f"{picture.format} file of mode {picture.mode}) it reads {read}; store {AS_CHANNELS}."
        )


def has_pages_for(picture: Image.Image, num_channels: int) -> bool:
    """Whether the pages of a TIFF file are the channels of one image.

    They are if the pages have `num_channels` bands in all, and if there are four channels or the pixels have more than
    8 bits. Of any other file, the first page is the image.
    """
    if picture.format != "TIFF" or (num_channels != 4 and picture.mode[0] not in "IF"):
        return False
    pages = getattr(picture, "n_frames", 1)
    return pages > 1 and pages * len(picture.getbands()) == num_channels


def pages_to_array(picture: Image.Image) -> np.ndarray:
    """The stored pixels of all pages, concatenated as channels `(H, W, C)`; those of more than 8 bits are in [0, 1]."""
    pages = []
    for page in ImageSequence.Iterator(picture):
        largest = largest_value(page)
        stored = np.atleast_3d(np.asarray(page.convert("L") if page.mode == "1" else page))
        pages.append(stored if largest is None else stored / largest)
    return np.concatenate(pages, axis=-1)


def deep_to_array(picture: Image.Image, largest: float, num_channels: int, background: str) -> tuple[np.ndarray, bool]:
    """A grey picture of more than 8 bits as `(H, W, C)` in [0, 1], and whether any pixel was transparent.

    The latter is False with four channels, which keep the transparency. Pillow's own conversions would clip the values.
    """
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
    """Convert pixels to a tensor `(C, H, W)`; the channels are the first or the last axis of `array`.

    `picture` is the decoded file, if there is one, which an error describes.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or num_channels not in (array.shape[0], array.shape[-1]):
        rule = f"must be the first or last side of {name}, of shape {array.shape}"
        if picture is not None:
            rule += f" (a {picture.format} file of mode {picture.mode}); store {AS_CHANNELS}"
        raise WrongChannelsError(f"`num_channels` (={num_channels}) {rule}.")
    if array.shape[-1] == num_channels:
        array = array.transpose(2, 0, 1)
    if array.dtype == np.uint8:
        return torch.from_numpy(array)  # stays channels-last in memory: the transforms are faster on it
    if array.dtype == np.uint16:
        array = array / 65535
    if array.dtype.kind != "f":
        raise WrongChannelsError(f"`dtype` (={array.dtype}) of {name} must be uint8, uint16 or a float type.")
    pixels = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not pixels.isfinite().all():
        raise BadImageError(f"{name} holds values that are NaN or infinite: replace them, e.g. by the mean.")
    return pixels


def value_range(pixels: Tensor) -> tuple[float, float]:
    """The lowest and highest value of an image of floats; 0 and 1 for uint8, which the transforms scale."""
    if not pixels.is_floating_point():
        return 0.0, 1.0
    lowest, highest = pixels.aminmax()
    return lowest.item(), highest.item()


def fate_of_transparency(data: DataSettings) -> str:
    """Describe what the `background` setting does with transparent pixels."""
    background = data.background or DEFAULT_BACKGROUND
    if background == NO_BACKGROUND:
        return "their transparency is left out, which shows colours hidden there (`--background none`)"
    return f"composited on {background} (`--background`)"
