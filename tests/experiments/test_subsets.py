"""Shares of the labelled training images."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments.cells import coco_annotations
from experiments.detection_scores import COCO_FILE, ROWS_FILE
from experiments.subsets import image_names, subset, write_once

NAMES = {"train": [f"a{n}.png" for n in range(10)], "test": ["b0.png", "b1.png"]}


def annotate_rows(folder, names):
    rows = [{"file_name": name, "objects": {"bbox": [[1, 2, 3, 4]], "category": [0]}} for name in names]
    (folder / ROWS_FILE).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def annotate_coco(folder, names):
    masks = np.ones((2, 8, 8), bool)
    (folder / COCO_FILE).write_text(json.dumps(coco_annotations(dict.fromkeys(names, masks))))


def names_of(split):
    """The names in the annotations of a split, once for each object in COCO's."""
    if (split / ROWS_FILE).is_file():
        return [json.loads(line)["file_name"] for line in (split / ROWS_FILE).read_text().splitlines()]
    content = json.loads((split / COCO_FILE).read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    return [names.pop(found["image_id"]) for found in content["annotations"][::2]] + list(names.values())


def write_images(root, below=""):
    for split, names in NAMES.items():
        folder = root / split / below
        folder.mkdir(parents=True)
        for name in names:
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / name)


@pytest.mark.parametrize("annotate", [annotate_rows, annotate_coco])
def test_annotations_of_a_subset_are_those_of_its_images(tmp_path, annotate):
    write_images(tmp_path / "all")
    for split, names in NAMES.items():
        annotate(tmp_path / "all" / split, names)
    folder = subset(tmp_path / "all", tmp_path / "few", 0.4, seed=0)
    chosen = image_names(folder / "train")
    assert len(chosen) == 4 and sorted(names_of(folder / "train")) == chosen
    assert image_names(folder / "test") == sorted(names_of(folder / "test")) == NAMES["test"]
    assert image_names(subset(tmp_path / "all", tmp_path / "others", 0.4, seed=1) / "train") != chosen
    assert image_names(subset(tmp_path / "all", tmp_path / "whole", 1.0, seed=0) / "train") == NAMES["train"]


def test_masks_of_a_subset_are_those_of_its_images(tmp_path):
    write_images(tmp_path / "all", "images")
    write_images(tmp_path / "all", "masks")
    folder = subset(tmp_path / "all", tmp_path / "few", 0.3, seed=0)
    chosen = image_names(folder / "train")
    assert len(chosen) == 3 and sorted(file.name for file in (folder / "train/masks").iterdir()) == chosen
    assert sorted(file.name for file in (folder / "test/masks").iterdir()) == NAMES["test"]


def test_folder_that_was_not_completed_is_written_again(tmp_path):
    def fail(folder):
        folder.mkdir()
        (folder / "half").touch()
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_once(tmp_path / "data", fail)
    write_once(tmp_path / "data", lambda folder: folder.mkdir())
    assert list((tmp_path / "data").iterdir()) == []
    write_once(tmp_path / "data", fail)  # complete: not written
