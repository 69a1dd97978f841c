"""Writes synthetic shards in webdataset's form: numbered squares, or photographs as JPEG."""

import io
import tarfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from benchmarks.shared.photographs import photographs

STORED = (500, 375)  # pixels, about those of ImageNet's photographs


def write_shards(folder: Path, num_shards: int, images_each: int, encode: Callable[[int], tuple[str, bytes]]) -> str:
    """Write tar files whose images are numbered through, and return the pattern that names them all.

    `encode` makes of a number the ending and the content of a file.
    """
    folder.mkdir(parents=True)
    numbers = count()
    for shard in range(num_shards):
        with tarfile.open(folder / f"train-{shard:05d}.tar", "w") as archive:
            for number in (next(numbers) for _ in range(images_each)):
                ending, content = encode(number)
                entry = tarfile.TarInfo(f"{number:08d}.{ending}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return f"{folder}/train-*.tar"


def write_parquet_shards(
    folder: Path, num_shards: int, images_each: int, encode: Callable[[int], tuple[str, bytes]]
) -> str:
    """Write parquet files of the same images, in row groups as `datasets` makes them, and return their pattern."""
    folder.mkdir(parents=True)
    images = {"image": [{"bytes": encode(number)[1], "path": None} for number in range(images_each)]}
    table = Dataset.from_dict(images, features=Features({"image": ImageFeature()}))
    for shard in range(num_shards):
        table.to_parquet(folder / f"train-{shard:05d}.parquet")
    return f"{folder}/train-*.parquet"


def numbered_square(number: int) -> tuple[str, bytes]:
    """A square of one colour, whose three bytes are the number."""
    return "png", encoded(Image.new("RGB", (4, 4), tuple(number.to_bytes(3, "big"))), "PNG")


def jpeg_photographs() -> Callable[[int], tuple[str, bytes]]:
    """Photographs of 500 x 375 pixels in turn, each encoded once."""
    kinds = [
        encoded(photograph.resize(STORED, Image.Resampling.BICUBIC), "JPEG", quality=90) for photograph in photographs()
    ]
    return lambda number: ("jpg", kinds[number % len(kinds)])


def encoded(picture: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def sizes(folder: Path) -> Iterator[int]:
    """The bytes of each file below a folder."""
    return (path.stat().st_size for path in folder.rglob("*") if path.is_file())
