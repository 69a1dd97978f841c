"""Crops of photographs, labelled by the one that they are from."""

import numpy as np
from datasets import load_dataset
from PIL import Image

from experiments import natural_photographs
from experiments.natural_photographs import CROP, PACKAGES, cut, write_natural_photographs


def test_crops_do_not_overlap_and_fill_the_photograph(tmp_path):
    pixels = np.arange(3 * CROP * (2 * CROP + 50) * 3, dtype=np.uint32).astype(np.uint8).reshape(3 * CROP, -1, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    crops = cut(tmp_path / "a.png")
    assert len(crops) == 6
    rows = [np.concatenate(crops[2 * row : 2 * row + 2], axis=1) for row in range(3)]
    assert np.array_equal(np.concatenate(rows), pixels[:, : 2 * CROP])


def test_each_photograph_is_a_class_with_crops_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr(natural_photographs, "CROPS_EACH", 8)
    files = (
        "lomiri-wallpapers-16.04/usr/share/backgrounds/Bridge.png",
        "lomiri-wallpapers-16.04/usr/share/backgrounds/umang_drawn.png",
        "mate-backgrounds/usr/share/backgrounds/mate/nature/Dune.png",
        "plasma-workspace-wallpapers/usr/share/wallpapers/Kite/contents/images/5120x2880.png",
        "plasma-workspace-wallpapers/usr/share/wallpapers/Flow/contents/images/5120x2880.png",
    )
    for package in PACKAGES:
        (tmp_path / "packages" / package).mkdir(parents=True)
    for number, file in enumerate(files):
        path = tmp_path / "packages" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(256, size=(3 * CROP, 4 * CROP, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    write_natural_photographs(tmp_path)
    parts = {
        part: load_dataset("parquet", data_files=str(tmp_path / f"labelled/{part}.parquet"), split="train")
        for part in ("train", "test")
    }
    assert parts["train"].features["label"].names == ["Bridge", "Dune", "Kite"]
    assert [np.bincount(part["label"]).tolist() for part in parts.values()] == [[6] * 3, [2] * 3]
    held_out = {picture.tobytes() for picture in parts["test"]["image"]}
    assert not held_out & {picture.tobytes() for picture in parts["train"]["image"]}
    unlabelled = load_dataset("parquet", data_files=str(tmp_path / "unlabelled/train.parquet"), split="train")
    assert unlabelled.column_names == ["image"] and len(unlabelled) == 18
