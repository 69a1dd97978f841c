"""The names of the files that hold the masks of a segmentation model."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
import os

import pyarrow.compute as pc
from datasets import Dataset

from training.data.sources import values_of
from training.prediction.images import Images


class MaskNames:
    """The name of an image's mask: `cats/1.png` for `cats/1.jpg`, as segment.py reads masks beside images.

    Images whose names differ in their extensions alone keep them: `1.jpg.png`. Rows of tables have their numbers.
    """

    def __init__(self, images: Images, column: str) -> None:
        self.of_files = images.root is not None
        self.twice: set[str] = set()
        if self.of_files and isinstance(images.source, Dataset):
            paths = pc.struct_field(values_of(images.source, column), "path")
            stems = pc.replace_substring_regex(paths, r"\.[^./]*$", "")
            counts = pc.value_counts(stems)
            several = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
            self.twice = {images.name(stem, 0) for stem in several}

    def __call__(self, image: str, index: int) -> str:
        if not self.of_files:
            return f"{index:08d}.png"
        stem = os.path.splitext(image)[0]
        return f"{image if stem in self.twice else stem}.png"
