"""Small photographs with any number of classes and with values, in every form in which their labels can be stored."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Pictures

from tests.photographs import CLASSES, cut

VALUES = ("lightness", "redness")


def pictures_with_labels(count: int, seed: int = 0) -> list[tuple[str, Pictures.Image, dict[str, Any]]]:
    """`count` pictures of 48 pixels, their names and labels.

    Each class has a quarter of about half of the pictures: a cut of its photograph on a grey ground. `lightness` is the
    mean of the picture in thousands, `redness` that of its red less its blue in thousandths.
    """
    random, cuts = np.random.default_rng(seed), {name: cut(name, 2 * count, 24) for name in CLASSES}
    found = []
    for number in range(count):
        picture = Pictures.new("RGB", (48, 48), tuple(random.integers(60, 160, 3).tolist()))
        places = random.permutation(4)
        classes = [name for name in CLASSES if random.random() < 0.5]
        for name, place in zip(classes, places, strict=False):
            picture.paste(cuts[name][int(random.integers(2 * count))], (24 * int(place % 2), 24 * int(place // 2)))
        pixels = np.asarray(picture, np.float64)
        values = (5000 + 20 * pixels.mean(), (pixels[..., 0] - pixels[..., 2]).mean() / 1e5)
        labels = {"label": classes, **{name: int(name in classes) for name in CLASSES}}
        found.append((f"{number}.png", picture, labels | dict(zip(VALUES, values, strict=True))))
    return found


def write_label_folder(root: Path, splits: dict[str, int], kind: str, names: dict[str, str] | None = None) -> Path:
    """A folder of these pictures with `metadata.jsonl`, whose `label` is a list, or `metadata.csv` of columns.

    `names` are others for classes and values.
    """
    names = names or {}
    for number, (split, count) in enumerate(splits.items()):
        folder = root / split
        folder.mkdir(parents=True)
        rows = []
        for name, picture, labels in pictures_with_labels(count, number):
            picture.save(folder / name)
            labels["label"] = [names.get(each, each) for each in labels["label"]]
            rows.append({"file_name": name, **{names.get(key, key): value for key, value in labels.items()}})
        write_metadata(folder, rows, kind)
    return root


def write_metadata(folder: Path, rows: list[dict[str, Any]], kind: str) -> None:
    """Write `metadata.jsonl`, or `metadata.csv` without the lists."""
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name != "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def write_label_parquet(root: Path, splits: dict[str, int], files: int = 2, shuffled: bool = False) -> Path:
    """The same as parquet, `files` of them a split: `label` is a list of a `ClassLabel`.

    With `shuffled`, the images of the split `train` have each other's labels.
    """
    root.mkdir(parents=True)
    columns: dict[str, Any] = {"image": Image(), "label": List(ClassLabel(names=list(CLASSES)))}
    columns |= {**dict.fromkeys(CLASSES, Value("int64")), **dict.fromkeys(VALUES, Value("float64"))}
    for number, (split, count) in enumerate(splits.items()):
        found = pictures_with_labels(count, number)
        order = np.random.default_rng(0).permutation(count) if shuffled and split == "train" else np.arange(count)
        labels = [found[place][2] for place in order.tolist()]
        rows: dict[str, list[Any]] = {name: [each[name] for each in labels] for name in columns if name != "image"}
        rows["image"] = [picture for _, picture, _ in found]
        table = Dataset.from_dict({name: rows[name] for name in columns}, features=Features(columns))
        for i in range(files):
            table.shard(files, i).to_parquet(root / f"{split}-{i:05d}-of-{files:05d}.parquet")
    return root
