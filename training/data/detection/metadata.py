"""What `datasets` does not do with files metadata.jsonl: paths of masks, and classes or masks of several kinds."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from datasets import Dataset, Image, IterableDataset, LargeList, List, Value

from training.data.detection.columns import KEYS, BadObjectsError, columns_of
from training.data.detection.masks import is_relative, path_of
from training.settings.checks import check


def refuse_mixed_classes(root: str, files: Sequence[str], column: str) -> None:
    """Raise if some objects have a name as their class and others a number, with an image of each kind."""
    first: dict[str, tuple[str, Any]] = {}
    for name, label in entries_of(root, files, column, "category"):
        first.setdefault("name" if isinstance(label, str) else "number", (name, label))
    rule = "hold names of classes or numbers, not both; " + " and ".join(
        f"{name} has the {kind} {label!r}" for kind, (name, label) in first.items()
    )
    check("objects_column", column, len(first) < 2, rule)


def refuse_mixed_masks(root: str, files: Sequence[str], column: str) -> None:
    """Raise if some masks are JSON lists, others dicts or text, with an image of each kind: a column has one type."""
    kinds = {list: "polygons", dict: "run lengths", str: "text"}
    first: dict[str, str] = {}
    for name, mask in entries_of(root, files, column, "segmentation"):
        first.setdefault(kinds.get(type(mask), "others"), name)
    rule = (
        f"hold masks of one kind, but {' and '.join(f'{name} has {kind}' for kind, name in first.items())}. Masks of "
        'several kinds can all be text: a path, or JSON as "[[5, 5, 20, 5, 20, 9]]" and "{\\"size\\": ...}"'
    )
    check("objects_column", column, len(first) < 2, rule)


def entries_of(root: str, files: Sequence[str], column: str, kind: str) -> Iterator[tuple[str, Any]]:
    """The classes or masks, by a key of `KEYS`, of all objects that can be read, each with the path of its image."""
    for file in files:
        for row in rows_of(file):
            name = os.path.relpath(os.path.join(os.path.dirname(file), str(row.get("file_name"))), root)
            with suppress(BadObjectsError):
                entries = columns_of(row.get(column), name).get(kind, [])
                yield from ((name, entry) for entry in entries if entry is not None)


def rows_of(file: str) -> Iterator[dict[str, Any]]:
    """The lines of a metadata.jsonl that are JSON; nothing of another file."""
    if not file.endswith(".jsonl"):
        return
    with open(file, encoding="utf-8-sig") as lines:
        for line in filter(str.strip, lines):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def with_whole_paths(source: Dataset | IterableDataset, files: Sequence[str], column: str) -> Dataset | IterableDataset:
    """The source with relative paths of masks joined to the folder of the metadata file, as the paths of images are.

    Paths of an image that lies below several of the metadata files stay as they are.
    """
    features = source.features or {}
    is_of_files = bool(files) and isinstance(features.get("image"), Image)
    if not is_of_files or not can_hold_paths(features.get(column)):
        return source
    source = source.cast_column("image", Image(decode=False))
    whole = partial(joined, column=column, folders=[os.path.dirname(file) for file in files])
    return source.map(whole, features=source.features)


def can_hold_paths(objects: Any) -> bool:
    """Whether the masks in a column of this type can be paths: text, or a dict as `datasets` stores an image."""
    parts = without_lists(objects)
    masks = (
        [without_lists(parts[key]) for key in KEYS["segmentation"] if key in parts] if isinstance(parts, dict) else []
    )
    is_text = [isinstance(mask, Value) and mask.dtype in ("string", "large_string") for mask in masks]
    return any(is_text) or any(isinstance(mask, dict) and "path" in mask for mask in masks)


def without_lists(feature: Any) -> Any:
    """The type of the entries of lists, which may be in lists themselves."""
    while isinstance(feature, List | LargeList):
        feature = feature.feature
    return feature


def joined(row: dict[str, Any], column: str, folders: Sequence[str]) -> dict[str, Any]:
    """The objects of a row with whole paths of their masks, if the image lies below one of the folders alone."""
    path = (row["image"] or {}).get("path") or ""  # a line without a file name is named by the check of the images
    above = [folder for folder in folders if path.startswith(os.path.join(folder, ""))]
    return {column: joined_objects(row[column], above[0]) if len(above) == 1 else row[column]}


def joined_objects(objects: Any, folder: str) -> Any:
    """Objects, in any form, with the paths of their masks joined to a folder."""
    if isinstance(objects, list):
        return [joined_objects(each, folder) for each in objects]
    if not isinstance(objects, dict):
        return objects
    return {
        key: joined_masks(value, folder) if key in KEYS["segmentation"] else value for key, value in objects.items()
    }


def joined_masks(value: Any, folder: str) -> Any:
    """A mask or a list of masks with paths joined to a folder; anything else as it is."""
    if isinstance(value, list):
        return [joined_masks(each, folder) for each in value]
    path = path_of(value)
    if not path or not is_relative(path):
        return value
    whole = os.path.join(folder, path)
    return {**value, "path": whole} if isinstance(value, dict) else whole
