"""COCO's JSON files: found in a folder by their usual names, and read as rows."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
import os
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from conversion.files import read_json, write_json
from training.console.bars import Phase
from training.data.detection.coco_json import CocoFile, read_coco
from training.data.folders.listing import Listing, show
from training.data.folders.masks import few, stored
from training.data.folders.rows import cache_folder, cache_key, open_rows, write_table
from training.data.folders.splits import match_split, split_name
from training.settings.checks import check
from training.settings.data import ObjectsDataSettings

READING = 2  # raised when the same files give other rows than before
ROBOFLOW = "_annotations.coco.json"
LAYOUTS = (
    "train/metadata.jsonl, whose lines have `file_name` and the objects; or one of COCO's JSON files: "
    f"annotations/instances_train2017.json, train/{ROBOFLOW}, train/annotations.json, annotations/train.json or "
    "train.json, or any other with `--annotation_files`"
)


class CocoRows(NamedTuple):
    """The rows of a split, the images that its JSON file names but that are missing, and notes for the user."""

    rows: Dataset
    problems: list[str]
    notes: list[str]


def split_of_file(path: str, asked: Sequence[str]) -> str | None:
    """The split of a JSON file by the names in `LAYOUTS`; None if it has none of them."""
    name, folders = PurePath(path).name, PurePath(path).parts[:-1]
    is_whole = name in (ROBOFLOW, "annotations.json")
    if folders in ((), ("annotations",)):
        return "train" if is_whole else split_of_word(PurePath(path).stem.removeprefix("instances_"), asked)
    return split_of_word(folders[0], asked) if is_whole and len(folders) == 1 else None


def split_of_word(word: str, asked: Sequence[str]) -> str | None:
    """The split that a word means, also with a year: `train2017` is `train`, `val` is `validation`."""
    if word in asked:
        return split_name(word)
    found = match_split(word.rstrip("0123456789-_ "))
    return found.split if found is not None and found.is_exact else None


def is_named_after(folder: str, split: str) -> bool:
    """Whether the name of a folder holds the name of a split as one of its words: `images_val`, `val_images`."""
    found = match_split(folder)
    return found is not None and found.split == split


def coco_files(listing: Listing, data: ObjectsDataSettings, asked: Sequence[str]) -> dict[str, list[str]]:
    """The JSON files in a folder by split, as full paths; several of a split if their names leave it open.

    With `annotation_files`, those files.
    """
    if data.annotation_files is not None:
        splits, files = data.splits_in_order(), [Path(file).expanduser() for file in data.annotation_files]
        inside = [Path(listing.root, file) for file in files]  # an absolute path stays as it is
        chosen = [own if own.is_file() else file.resolve() for own, file in zip(inside, files, strict=True)]
        return {split_name(split): [str(file)] for split, file in zip(splits, chosen, strict=True)}
    found: dict[str, list[str]] = {}
    for path in listing.others:
        split = split_of_file(path, asked) if path.endswith(".json") else None
        if split is not None:
            found.setdefault(split, []).append(os.path.join(listing.root, path))
    return found


def coco_rows(listing: Listing, data: ObjectsDataSettings, split: str, asked: list[str]) -> CocoRows | None:
    """The rows of a split by its COCO JSON file, with notes and problems; None if the folder has no such file.

    Raises:
        ValueError: if it has no file of this split, or the splits have other classes.
    """
    files = coco_files(listing, data, asked)
    if not files:
        return None
    own = split_name(split)
    held = ", ".join(f"{name} ({', '.join(map(os.path.basename, paths))})" for name, paths in files.items())
    check("dataset_name", listing.root, own in files, f"hold a COCO JSON file of split `{split}`: it has {held}")
    for name in dict.fromkeys([own, *map(split_name, asked)]):
        rule = f"have one COCO JSON file for each split, but has {held}: choose with `--annotation_files`"
        check("dataset_name", listing.root, len(files.get(name, [""])) == 1, rule)
    parts = {name: CocoPart(listing, name, files[name][0], data) for name in map(split_name, asked) if name in files}
    for name, part in parts.items():
        names = parts[own].names
        rule = f"have the same classes in all splits, but {own} has {few(names)} and {name} has {few(part.names)}"
        check("dataset_name", listing.root, part.names == names, rule)
    refuse_shared(listing.root, {name: part.paths() for name, part in parts.items()})
    unused = [f"left out: {few(listing.metadata)}, for COCO's JSON has the objects"] if listing.metadata else []
    return CocoRows(parts[own].open(), parts[own].problems, parts[own].notes + unused)


def refuse_shared(root: str, images: dict[str, set[str]]) -> None:
    """Raise if two splits have an image in common; `images` are the paths of those of each split."""
    for (name, paths), (other, others) in combinations(images.items(), 2):
        shared = sorted(os.path.relpath(path, root) for path in paths & others)
        rule = (
            f"have other images in each split, but {name} and {other} share {len(shared):,}: {few(shared)}. Name each "
            f"image in one of both JSON files, and put files of the same names into folders called {name} and {other}"
        )
        check("dataset_name", root, not shared, rule)


class CocoPart:
    """The rows of one COCO JSON file, in an Arrow file that is written anew if the JSON file or the folder changes."""

    def __init__(self, listing: Listing, split: str, file: str, data: ObjectsDataSettings) -> None:
        self.column = data.objects_column
        self.path = cache_folder() / f"coco-{cache_key(listing.root, split, file, self.column)}.arrow"
        check("annotation_files", file, os.path.isfile(file), "be files that exist")
        status = os.stat(file)
        stamp = {"size": status.st_size, "time": status.st_mtime_ns, "folders": listing.folders, "reading": READING}
        described = read_json(self.path.with_suffix(".json")) if self.path.exists() else {}
        if described.get("stamp") != stamp:
            with Phase(f"Reading {file}"):
                described = {"stamp": stamp, **self.write(listing, split, read_coco(file))}
            write_json(self.path.with_suffix(".json"), described)
        self.names: list[str] = described["names"]
        self.notes: list[str] = described["notes"]
        self.problems: list[str] = described["problems"]

    def write(self, listing: Listing, split: str, coco: CocoFile) -> dict[str, Any]:
        """Write the rows; returns the names of the classes, notes, and the images that are not there."""
        present = {os.path.join(run.folder, name) for run in listing.images for name in run.names.to_pylist()}
        folder = folder_of_images(listing, split, coco, present)
        paths = [os.path.normpath(os.path.join(folder, image.file_name)) for image in coco.images]
        is_there = [path in present for path in paths]
        told = os.path.relpath(coco.path, listing.root) if is_inside(coco.path, listing.root) else coco.path
        images = [image for image, there in zip(coco.images, is_there, strict=True) if there]
        found = [path for path, there in zip(paths, is_there, strict=True) if there]
        features = features_with(coco.names, self.column)
        objects = arrow_of([image.objects for image in images], features, self.column, coco.path)
        full_paths = [os.path.join(listing.root, path) for path in found]
        write_table(pa.table({"image": stored(full_paths), self.column: objects}), self.path)
        missing = [path for path, there in zip(paths, is_there, strict=True) if not there]
        beside = sorted(path for path in present - set(found) if is_inside(path, folder))
        notes = [f"left out: {len(beside):,} images that {told} does not name ({few(beside)})"] if beside else []
        problems = [f"{os.path.join(listing.root, path)}: is not there, but {told} names it" for path in missing]
        return {"names": coco.names, "notes": notes, "problems": problems}

    def paths(self) -> set[str]:
        """The full paths of the images."""
        with pa.memory_map(str(self.path)) as file:
            images = pa.ipc.open_stream(file).read_all()["image"]
            return set(pc.struct_field(images, "path").to_pylist())

    def open(self) -> Dataset:
        return open_rows(self.path, features_with(self.names, self.column))


def arrow_of(objects: list[dict[str, Any]], features: Features, column: str, path: str) -> pa.Array:
    """The objects as an Arrow array; raises a `ValueError` if a value is no number."""
    try:
        return pa.array(objects, features.arrow_schema.field(column).type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        rule = f"hold numbers as `area`, `iscrowd`, `height` and `width`: {error}"
        raise ValueError(f"`annotation_files` (={path}) must {rule}") from error


def folder_of_images(listing: Listing, split: str, coco: CocoFile, present: set[str]) -> str:
    """The folder that the file names start from, relative to the root: of the usual ones, that with most images."""
    beside = os.path.relpath(os.path.dirname(coco.path), listing.root)
    exact = [name for name in listing.folders if split_of_word(PurePath(name).name, [split]) == split]
    alike = [name for name in listing.folders if is_named_after(PurePath(name).name, split) and name not in exact]
    named = [place for names in (exact, alike) for name in sorted(names, key=len) for place in (name, f"{name}/images")]
    usual = ["." if beside.startswith("..") else beside, *named, "images", "."]
    usual.sort(key=lambda name: re.search("(?i)mask|label|annot", name) is not None)  # they may have the images' names
    some = [image.file_name for image in coco.images[:: max(1, len(coco.images) // 1000)]]
    counts = {
        folder: sum(os.path.normpath(os.path.join(folder, name)) in present for name in some)
        for folder in dict.fromkeys(usual)
    }
    best = max(counts, key=lambda folder: counts[folder])
    rule = f"hold the images that {coco.path} names ({few(some)}), but none is in {', '.join(map(show, counts))}"
    check("dataset_name", listing.root, counts[best] > 0, rule)
    return best


def is_inside(path: str, folder: str) -> bool:
    """Whether a path is in a folder or below it."""
    return folder == "." or PurePath(path).is_relative_to(folder)


def features_with(names: list[str], column: str) -> Features:
    """The types of the columns; a segmentation is COCO's own, as JSON text."""
    objects = {
        "bbox": List(List(Value("float64"))),
        "category": List(ClassLabel(names=names)),
        "area": List(Value("float64")),
        "iscrowd": List(Value("int64")),
        "segmentation": List(Value("string")),
        "image_size": List(Value("int64")),
    }
    return Features({"image": Image(decode=False), column: objects})
