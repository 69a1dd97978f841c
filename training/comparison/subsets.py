"""Data sets of the drawn images, for the fine-tuning script."""

import shutil
from pathlib import Path

import numpy as np
from datasets import Dataset

from conversion.files import atomic_path


def write_subset(output: Path, train: Dataset, chosen: np.ndarray, name: str) -> Path:
    """Write the chosen training images, and all held-out ones of `data/labelled`, to `subsets/{name}`.

    Images that are stored as files stay where they are: the data set holds their paths.
    """
    folder = output / "subsets" / name
    if not (folder / "train.parquet").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(output / "data/labelled/test.parquet", folder)
        write_parquet(train.select(chosen), folder / "train.parquet")
    return folder


def undecoded(images: Dataset) -> Dataset:
    """The same rows with images as they are stored. Paths and arrays stay as they are."""
    feature = images.features["image"]
    return images.cast_column("image", type(feature)(decode=False)) if hasattr(feature, "decode") else images


def write_parquet(rows: Dataset, file: Path) -> None:
    """Write rows as parquet; the file gets its name when it is complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as partial:
        rows.to_parquet(partial)
