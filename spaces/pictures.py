"""A visitor's file as the picture that a model sees, or one sentence that says why it cannot be used."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hf_convnextv2 import open_image
from hf_convnextv2.images import DEFAULT_BACKGROUND, largest_value

# The image processor enlarges the shorter side to that of the model before it crops: of a strip of 10,000 x 1 pixels,
# that would be gigabytes.
LARGEST_RATIO = 100
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # raised by Pillow


class BadPictureError(ValueError):
    """A file that cannot be used; the message is for the visitor and names no path of the machine."""


def open_picture(file: str | Path | None, processor: Any, num_channels: int) -> Image.Image:
    """The picture in a file, upright and without transparency, as the model of this image processor was trained on it.

    Raises:
        BadPictureError: if the file is no image, is damaged or too large, or is longer than 100 times its width.
    """
    if not file:
        raise BadPictureError("No picture was given.")
    background = getattr(processor, "background", None) or DEFAULT_BACKGROUND
    try:
        with Path(file).open("rb") as stream:
            picture = open_image(stream, background, num_channels)
    except UnidentifiedImageError as error:
        raise BadPictureError("This file cannot be read as an image: its format is not known.") from error
    except FileNotFoundError as error:
        raise BadPictureError("The file is no longer there. Choose it again.") from error
    except UNREADABLE as error:
        raise BadPictureError(f"This file cannot be read as an image: {str(error).rstrip('.')}.") from error
    longer, shorter = max(picture.size), min(picture.size)
    if longer > LARGEST_RATIO * shorter:
        width, height = picture.size
        raise BadPictureError(
            f"The longer side of the picture ({width} x {height} pixels) must be at most {LARGEST_RATIO} times the "
            "shorter one. Crop it."
        )
    return picture


def remarks(file: str | Path) -> list[str]:
    """What becomes of a file that `open_picture` opens, where a visitor may not expect it."""
    with Image.open(file) as picture:
        happens = {
            "The file holds several pictures: the models see the first one.": getattr(picture, "is_animated", False),
            "A model without a channel for opacity sees transparent pixels on a plain background.": (
                picture.has_transparency_data
            ),
            "Its colours are converted from CMYK without a colour profile.": picture.mode == "CMYK",
            "Its values are rounded to 8 bits.": largest_value(picture) is not None,
        }
    return [remark for remark, does in happens.items() if does]


def to_pixel_values(picture: Image.Image, processor: Any) -> Tensor:
    """What the model gets of a picture with 1, 3 or 4 channels: `(1, C, H, W)` float32."""
    array = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
    # As a tensor: image processors would convert a picture to RGB, or refuse one that is not.
    settings = {"input_data_format": "channels_first", "do_convert_rgb": False}
    return processor(torch.from_numpy(array.copy()), return_tensors="pt", **settings)["pixel_values"]
