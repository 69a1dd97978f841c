"""Images of every kind that docs/images.md has a row for, made of a photograph."""

import io
import struct

import numpy as np
import PIL
from PIL import ExifTags, Image

READS_YCBCR = int(PIL.__version__.split(".")[0]) >= 13  # without compression: earlier ones take it for truncated

HIDDEN = (255, 0, 200)  # a colour that no photograph here has, under transparent pixels


def encode(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def see_through(photograph: Image.Image) -> Image.Image:
    """RGBA: the left quarter transparent over `HIDDEN`, the second one half transparent, the rest opaque."""
    picture = photograph.convert("RGBA")
    quarter = picture.width // 4
    picture.paste((*HIDDEN, 0), (0, 0, quarter, picture.height))
    opacity = picture.getchannel("A")
    opacity.paste(128, (quarter, 0, 2 * quarter, picture.height))
    picture.putalpha(opacity)
    return picture


def commonest(picture: Image.Image) -> int:
    """The value that the most pixels have."""
    return int(np.bincount(np.asarray(picture).ravel()).argmax())


def deep(photograph: Image.Image, largest: int = 65535) -> np.ndarray:
    """Grey, `(H, W)` uint16, up to `largest`."""
    return (np.asarray(photograph.convert("L")).astype(np.float64) * largest / 255).astype(np.uint16)


def tiff_of_12_bits(pixels: np.ndarray) -> bytes:
    """A grey TIFF file with 12 bits a pixel, `(H, W)` of an even number of pixels."""
    first, second = pixels.ravel()[::2].astype(int), pixels.ravel()[1::2].astype(int)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()
    height, width = pixels.shape
    shorts = {258: 12, 259: 1, 262: 1, 277: 1}
    longs = {256: width, 257: height, 273: 8, 278: height, 279: len(packed)}
    content = packed + b"\0" * (len(packed) % 2)
    tags = struct.pack("<H", len(shorts) + len(longs))
    for tag in sorted(shorts | longs):
        tags += struct.pack("<HHIHH", tag, 3, 1, shorts[tag], 0) if tag in shorts else b""
        tags += struct.pack("<HHII", tag, 4, 1, longs[tag]) if tag in longs else b""
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + tags + b"\0\0\0\0"


def turned(photograph: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode(photograph.crop((0, 0, 40, 24)), "JPEG", exif=exif)


def transparent_kinds(photograph: Image.Image) -> dict[str, bytes]:
    """Files with an opacity for each pixel or colour, which stock's `pipeline` drops."""
    clear = see_through(photograph)
    others = [photograph.rotate(angle).convert("RGBA") for angle in (90, 180)]
    grey = photograph.convert("L")
    clear_grey = Image.merge("LA", (grey, clear.getchannel("A")))
    return {
        "RGBA, PNG": encode(clear, "PNG"),
        "RGBA, WebP": encode(clear, "WEBP", lossless=True, exact=True),
        "RGBA, TIFF": encode(clear, "TIFF"),
        "grey with alpha": encode(clear_grey, "PNG"),
        "palette, an opacity for each colour": encode(
            photograph.quantize(16), "PNG", transparency=bytes(range(0, 256, 16))
        ),
        "animated WebP, transparent": encode(clear, "WEBP", save_all=True, append_images=others, lossless=True),
        "animated PNG, transparent": encode(clear, "PNG", save_all=True, append_images=others),
    }


def keyed_kinds(photograph: Image.Image) -> dict[str, bytes]:
    """Files that name one colour as transparent: stock's image processor composites them on white."""
    palette, grey = photograph.quantize(16), photograph.convert("L")
    gif = see_through(photograph)
    gif.putalpha(gif.getchannel("A").point(lambda value: 255 * (value > 200)))
    others = [photograph.rotate(angle).convert("RGBA") for angle in (90, 180)]
    return {
        "palette, one colour transparent": encode(palette, "PNG", transparency=commonest(palette)),
        "grey, one value transparent": encode(grey, "PNG", transparency=commonest(grey)),
        "RGB, one colour transparent": encode(photograph, "PNG", transparency=photograph.getpixel((3, 3))),
        "1 bit, one value transparent": encode(photograph.convert("1"), "PNG", transparency=0),
        "animated GIF, transparent": encode(gif, "GIF", save_all=True, append_images=others),
    }


def opaque_kinds(photograph: Image.Image) -> dict[str, bytes]:
    """Files of 8 bits or fewer without transparent pixels."""
    others = [photograph.rotate(angle) for angle in (90, 180)]
    pages = {"save_all": True, "append_images": others}
    return {
        "RGB, JPEG": encode(photograph, "JPEG"),
        "RGB, PNG": encode(photograph, "PNG"),
        "RGBA, all opaque": encode(photograph.convert("RGBA"), "PNG"),
        "grey": encode(photograph.convert("L"), "PNG"),
        "1 bit": encode(photograph.convert("1"), "PNG"),
        "palette": encode(photograph.quantize(16), "PNG"),
        "CMYK, JPEG": encode(photograph.convert("CMYK"), "JPEG"),
        "CMYK, TIFF": encode(photograph.convert("CMYK"), "TIFF"),
        "YCbCr, TIFF": encode(photograph.convert("YCbCr"), "TIFF", compression="tiff_lzw"),
        **({"YCbCr, TIFF, not compressed": encode(photograph.convert("YCbCr"), "TIFF")} if READS_YCBCR else {}),
        "LAB, TIFF": encode(photograph.convert("LAB"), "TIFF"),
        "animated GIF": encode(photograph, "GIF", **pages),
        "animated WebP": encode(photograph, "WEBP", **pages),
        "animated PNG": encode(photograph, "PNG", **pages),
        "TIFF of several pages": encode(photograph, "TIFF", **pages),
        **{f"EXIF orientation {number}": turned(photograph, number) for number in range(1, 9)},
        "1 x 1": encode(photograph.resize((1, 1)), "PNG"),
        "10,000 x 1": encode(photograph.resize((10_000, 1)), "PNG"),
        "1 x 10,000": encode(photograph.resize((1, 10_000)), "PNG"),
    }


def deep_kinds(photograph: Image.Image) -> dict[str, bytes]:
    """Grey files of more than 8 bits, which stock's `pipeline` clips."""
    pixels = deep(photograph)
    big_endian = io.BytesIO(b"P5 %d %d 65535\n" % photograph.size + pixels.astype(">u2").tobytes())
    return {
        "16 bits, PNG": encode(Image.fromarray(pixels), "PNG"),
        "16 bits, TIFF": encode(Image.fromarray(pixels), "TIFF"),
        "16 bits, JPEG 2000": encode(Image.fromarray(pixels), "JPEG2000", irreversible=False),
        "16 bits, PGM": big_endian.getvalue(),
        "16 bits, one value transparent": encode(Image.fromarray(pixels), "PNG", transparency=int(pixels[3, 3])),
        "12 bits, TIFF": tiff_of_12_bits(deep(photograph, 4095)),
        "floats in [0, 1], TIFF": encode(Image.fromarray((pixels / 65535).astype(np.float32)), "TIFF"),
    }
