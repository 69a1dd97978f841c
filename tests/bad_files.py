"""Files as a crawl brings them home: ten kinds of images that are broken or unusual."""

import io
import struct
import zlib

import numpy as np
from PIL import Image as Pictures

UNREADABLE = ("truncated", "empty", "wrong type", "decompression bomb")
UNUSUAL = ("CMYK", "palette", "16 bits", "1 x 1", "huge", "animated")


def encode(picture: Pictures.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def bad_file(kind: str, photograph: Pictures.Image, huge: int = 4000) -> bytes:
    """A file of one of the kinds, made of a photograph; `huge` is the side of the largest, in pixels."""
    jpeg = encode(photograph, "JPEG")
    if kind == "truncated":
        return jpeg[: len(jpeg) // 2]
    if kind == "empty":
        return b""
    if kind == "wrong type":
        return b"<html><title>404 Not Found</title></html>"
    if kind == "decompression bomb":
        return png_header(60000, 60000)
    if kind == "CMYK":
        return encode(photograph.convert("CMYK"), "JPEG")
    if kind == "palette":
        return encode(photograph.quantize(16), "PNG", transparency=3)
    if kind == "16 bits":
        return encode(Pictures.fromarray(np.asarray(photograph.convert("L")).astype(np.uint16) * 257), "PNG")
    if kind == "1 x 1":
        return encode(photograph.resize((1, 1)), "PNG")
    if kind == "huge":
        return encode(photograph.resize((huge, huge), Pictures.Resampling.NEAREST), "PNG")
    assert kind == "animated"
    frames = [photograph.rotate(angle) for angle in range(0, 360, 30)]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


def png_header(width: int, height: int) -> bytes:
    """A few bytes that say they are a picture of this size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
