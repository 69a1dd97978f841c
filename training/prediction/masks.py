"""The files that hold the masks of a segmentation model: their names, and whose masks a folder holds."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.compute as pc
from datasets import Dataset
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from training.data.sources import values_of
from training.prediction.images import Images
from training.prediction.parts import Parts
from training.run.locks import LOCK, only_one
from training.settings.checks import check

SIGNATURE = "Software", "hf_convnextv2 training/predict.py"  # a text in each mask
TABLE = "Source"  # the name of another one: the output file whose rows name the masks


class MaskNames:
    """The name of an image's mask: `cats/1.png` for `cats/1.jpg`, as segment.py reads masks beside images.

    Images whose names differ in their extensions alone keep them: `1.jpg.png`. So does an image `1.jpg.png` beside
    `1.jpg`, whose mask may be called so: it has `1.jpg.png.png`. Rows of tables have their numbers.
    """

    def __init__(self, images: Images, column: str) -> None:
        self.of_files = images.root is not None
        self.twice: set[str] = set()
        if self.of_files and isinstance(images.source, Dataset):
            paths = pc.struct_field(values_of(images.source, column), "path")
            stems = pc.replace_substring_regex(paths, r"\.[^./]*$", "")
            counts = pc.value_counts(stems)
            several = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
            others = stems.filter(pc.is_in(stems, value_set=paths)).to_pylist()
            self.twice = {images.name(stem, 0) for stem in (*several, *others)}

    def __call__(self, image: str, index: int) -> str:
        if not self.of_files:
            return f"{index:08d}.png"
        stem = os.path.splitext(image)[0]
        return f"{image if stem in self.twice else stem}.png"


class MaskFolder:
    """The folder that holds the masks of an output file, and of no other.

    table: the output file as seen from the folder, so that both can be moved together.
    """

    def __init__(self, folder: Path, output: Path) -> None:
        self.folder, self.table = folder, Path(os.path.relpath(output, folder)).as_posix()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the folder against a second command."""
        check("masks_dir", self.folder, self.folder.is_dir() or not self.folder.exists(), "be a folder")
        with only_one(self.folder, "masks_dir"):
            try:
                yield
            finally:
                with suppress(OSError):
                    (self.folder / LOCK).unlink()
                    self.folder.rmdir()

    def signature(self) -> PngInfo:
        """The texts by which a later run knows a mask."""
        info = PngInfo()
        info.add_text(*SIGNATURE)
        info.add_itxt(TABLE, self.table)
        return info

    def clear(self, overwrite: bool) -> None:
        """Delete the masks of earlier runs, if they may be replaced.

        Raises:
            ValueError: if the folder holds other files, masks of another output file, or masks that may not be
                replaced; nothing is deleted then.
        """
        files = [file for file in sorted(self.folder.rglob("*")) if not file.is_dir() and not file.name.startswith(".")]
        rule = "be empty: give another folder, or replace its masks with `--overwrite true`"
        check("masks_dir", self.folder, overwrite or not files, rule)
        for file in files:
            table = table_of(file)
            rule = f"hold nothing but masks of predict.py, but holds {file}: give another folder"
            check("masks_dir", self.folder, table is not None, rule)
            rule = f"hold the masks of one output file, but holds {file} of {table}: give another folder"
            check("masks_dir", self.folder, self.is_own(table), rule)
        for file in files:
            file.unlink()

    def check_done(self, parts: Parts) -> None:
        """Raise unless the folder still holds the masks that an unfinished run's answers name."""
        for answer in parts:
            name = answer.get("mask")
            rule = f"hold the masks of all images that are done, but lacks {name}: delete {parts.folder}, which holds "
            rule += "the answers to these images, and begin anew with `--overwrite true`"
            is_there = name is None or self.is_own(table_of(self.folder / name))
            check("masks_dir", self.folder, is_there, rule)

    def is_own(self, table: str | None) -> bool:
        """Whether a mask of this table is of this folder's output file; earlier versions did not store the table."""
        return table in (self.table, "")


def table_of(file: Path) -> str | None:
    """The output file that a mask of predict.py is of, by the text in it; None if the file is no such mask."""
    name, text = SIGNATURE
    if file.suffix != ".png":
        return None
    try:
        with Image.open(file) as picture:
            return str(picture.info.get(TABLE, "")) if picture.info.get(name) == text else None
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return None
