"""The files that hold the masks of a segmentation model: their names, and which ones an earlier run has left."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
import os
from pathlib import Path

import pyarrow.compute as pc
from datasets import Dataset
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from training.data.sources import values_of
from training.prediction.images import Images
from training.settings.checks import check

SIGNATURE = "Software", "hf_convnextv2 training/predict.py"  # a text in each mask


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


def signature() -> PngInfo:
    """The text by which a later run knows a mask."""
    info = PngInfo()
    info.add_text(*SIGNATURE)
    return info


def clear_masks(folder: Path, overwrite: bool) -> None:
    """Delete the masks of earlier runs, if they may be replaced.

    Raises:
        ValueError: if the folder holds other files, or masks that may not be replaced; nothing is deleted then.
    """
    check("masks_dir", folder, folder.is_dir() or not folder.exists(), "be a folder")
    files = [file for file in sorted(folder.rglob("*")) if not file.is_dir() and not file.name.startswith(".")]
    rule = "be empty: give another folder, or replace its masks with `--overwrite true`"
    check("masks_dir", folder, overwrite or not files, rule)
    others = [file for file in files if not is_mask(file)]
    rule = f"hold nothing but masks of predict.py, but holds {next(iter(others), None)}: give another folder"
    check("masks_dir", folder, not others, rule)
    for file in files:
        file.unlink()


def is_mask(file: Path) -> bool:
    """Whether a file is a mask of predict.py, by the text in it."""
    if file.suffix != ".png":
        return False
    name, text = SIGNATURE
    try:
        with Image.open(file) as picture:
            return picture.info.get(name) == text
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return False
