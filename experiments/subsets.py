"""Folders with a share of the labelled training images, which have masks, rows of metadata or COCO's annotations."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.detection_scores import COCO_FILE, ROWS_FILE


def write_once(folder: Path, write: Callable[[Path], object]) -> Path:
    """A folder that `write` fills, unless it is there; it gets its name when it is complete."""
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        write(partial)
        partial.rename(folder)
    return folder


def image_names(split: Path) -> list[str]:
    """The names of a split's images, which lie in its folder or in `images` in it, beside their masks."""
    images = split / "images"
    return sorted(file.name for file in (images if images.is_dir() else split).glob("*.png"))


def subset(source: Path, target: Path, share: float, seed: int) -> Path:
    """A folder with all held-out images and a random share of the training images."""
    names = image_names(source / "train")
    chosen = np.random.default_rng(seed).permutation(names)[: max(2, round(share * len(names)))]
    return write_once(target, lambda folder: copy_chosen(source, folder, set(chosen.tolist())))


def copy_chosen(source: Path, target: Path, chosen: set[str]) -> None:
    """Copy a folder, of its training images the chosen ones alone, with their masks or annotations."""
    left_out = set(image_names(source / "train")) - chosen  # no held-out image has the name of a training image
    shutil.copytree(source, target, ignore=lambda _, files: left_out & set(files))
    for name, reduce in ((ROWS_FILE, chosen_rows), (COCO_FILE, chosen_annotations)):
        file = target / "train" / name
        if file.is_file():
            file.write_text(reduce(file.read_text(encoding="utf-8"), chosen), encoding="utf-8")


def chosen_rows(content: str, chosen: set[str]) -> str:
    """The lines of `metadata.jsonl` on the chosen images."""
    return "".join(line for line in content.splitlines(keepends=True) if json.loads(line)["file_name"] in chosen)


def chosen_annotations(content: str, chosen: set[str]) -> str:
    """COCO's annotation file with the chosen images and their objects alone."""
    whole = json.loads(content)
    images = [image for image in whole["images"] if image["file_name"] in chosen]
    numbers = {image["id"] for image in images}
    annotations = [found for found in whole["annotations"] if found["image_id"] in numbers]
    return json.dumps({**whole, "images": images, "annotations": annotations})
