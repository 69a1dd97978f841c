"""An image file of any kind as the picture that training sees: upright, of 8 bits, without transparency."""

from io import BytesIO
from os import PathLike
from typing import IO

from PIL import Image, ImageColor, ImageOps

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
DEFAULT_BACKGROUND = "white"
NO_BACKGROUND = "none"


def open_image(
    image: str | PathLike[str] | bytes | IO[bytes] | Image.Image,
    background: str = DEFAULT_BACKGROUND,
    num_channels: int = 3,
) -> Image.Image:
    """An image as training sees it, for `pipeline` and image processors, which drop transparency and clip 16 bits.

    It is the first frame of an animation or page of a file, turned as its EXIF orientation says, with transparent
    pixels over `background`: a colour's name, "#rrggbb", "r,g,b", or "none", which drops the transparency. 16-bit
    images are rounded to 8 bits. The result has mode "L", "RGB" or "RGBA", for 1, 3 or 4 channels; with 4, the
    transparency is the last channel and `background` is not used.

    Raises:
        ValueError: if `background` is no colour, `num_channels` is another number, or the image has mode I: the
            largest value of its integers is not known.
        OSError: if the file cannot be read.
    """
    if num_channels not in MODES:
        raise ValueError(f"`num_channels` (={num_channels}) must be 1, 3 or 4.")
    color = background_color(background)
    if isinstance(image, bytes):
        image = BytesIO(image)
    if not isinstance(image, Image.Image):
        image = Image.open(image)
    largest = largest_value(image)
    picture = ImageOps.exif_transpose(image)
    assert picture is not None
    if largest is None:
        return flatten(picture, color, num_channels)[0]
    alpha = alpha_of(picture)
    picture = picture.convert("F").point(lambda value: value * (255 / largest) + 0.5).convert("L")
    if alpha is not None:
        picture.putalpha(alpha)
    return flatten(picture, color, num_channels)[0]


def background_color(background: str) -> tuple[int, int, int] | None:
    """Red, green and blue, 0 to 255, of a background's name; None for "none"."""
    if background == NO_BACKGROUND:
        return None
    numbers = background.strip("()[] ").split(",")
    try:
        if len(numbers) == 3 and "(" not in background[1:]:
            color = tuple(int(number) for number in numbers)
        else:
            color = ImageColor.getrgb(background)
    except ValueError:
        color = ()
    if len(color) != 3 or not all(0 <= value <= 255 for value in color):
        raise ValueError(
            f"`background` (={background}) must be a colour's name, #rrggbb, numbers r,g,b from 0 to 255, or none."
        )
    return color


def flatten(picture: Image.Image, color: tuple[int, int, int] | None, num_channels: int) -> tuple[Image.Image, bool]:
    """A picture of 8 bits in the mode for 1, 3 or 4 channels, and whether transparent pixels went over `color`."""
    mode = MODES[num_channels]
    if picture.mode == "La":
        picture = picture.convert("LA")  # the only mode that it converts to
    if not picture.has_transparency_data:
        if picture.mode != "RGB" and (mode == "RGBA" or picture.mode == "LAB"):
            picture = picture.convert("RGB")  # the only mode that every other one converts to
        if picture.mode != mode:
            picture = picture.convert(mode)
        return picture, False
    picture = picture.convert("RGBA")
    if mode == "RGBA":
        return picture, False
    lowest, _ = picture.getchannel("A").getextrema()
    if lowest == 255:
        return picture.convert("RGB").convert(mode), False
    if color is not None:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, color), picture)
    return picture.convert("RGB").convert(mode), True


def largest_value(picture: Image.Image) -> float | None:
    """The value of white in a picture of more than 8 bits a channel; None for 8 bits. Ask before it is turned.

    Raises:
        ValueError: if it is not known.
    """
    if picture.mode == "F":
        return 1.0
    if picture.mode.startswith("I;16"):
        bits = getattr(picture, "tag_v2", {}).get(258, 16)  # BitsPerSample of a TIFF file: 12 of some cameras
        bits = bits[0] if isinstance(bits, tuple) else bits
        return float(2**bits - 1)
    if picture.mode == "I" and picture.format == "PPM":
        return 65535.0
    if picture.mode == "I":
        raise ValueError(
            "the largest value of its integers (mode I) is not known; store 16 bits without sign, or floats in [0, 1]"
        )
    return None


def alpha_of(picture: Image.Image) -> Image.Image | None:
    """The opacity, of mode "L", of a picture of more than 8 bits that names one value as transparent."""
    if "transparency" not in picture.info:
        return None
    opacity = [255] * 65536
    opacity[picture.info["transparency"]] = 0
    return picture.convert("I").point(opacity, "L")
