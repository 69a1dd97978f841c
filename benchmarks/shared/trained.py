"""Classifiers that have learned which of 43 photographs a crop is cut from: their answers differ from crop to crop."""

from functools import cache
from pathlib import Path
from typing import Any

from datasets import load_dataset
from PIL import Image

from experiments.natural_photographs import CROP, fetch, find_photographs, shrunk, write_natural_photographs
from training.comparison.launching import is_finished, launch


def train_classifier(size: str, folder: Path, epochs: int) -> Path:
    """The folder of the classifier of a size, trained from random weights on `write_crops`, if it is not there yet."""
    model = folder / size
    if not is_finished(model):
        run = [f"--model_size={size}", "--layer_decay=1.0", f"--image_size={CROP}", f"--output_dir={model}"]
        run += [f"--dataset_name={write_crops(folder)}", "--overwrite_output_dir=true"]
        run += [f"--num_train_epochs={epochs}", f"--warmup_epochs={epochs / 10}"]
        launch("finetune", "finetune_small_images", *run)
    return model


def write_crops(folder: Path) -> Path:
    """The folder of the crops as files, `images/{train,test}/PHOTOGRAPH/1.png`, written if it is not there yet."""
    images = folder / "images"
    if images.is_dir():
        return images
    write_natural_photographs(folder)
    partial = images.with_name(f"{images.name}.partial")
    for split in ("train", "test"):
        labelled: Any = load_dataset("parquet", data_files=str(folder / f"labelled/{split}.parquet"), split="train")
        names = labelled.features["label"].names
        for number, row in enumerate(labelled):
            place = partial / split / names[row["label"]]
            place.mkdir(parents=True, exist_ok=True)
            row["image"].save(place / f"{number}.png")
    return partial.rename(images)


@cache
def natural_photographs(folder: Path) -> tuple[Image.Image, ...]:
    """The photographs as the crops were cut from them."""
    return tuple(shrunk(file) for file in find_photographs(fetch(folder / "packages")).values())
