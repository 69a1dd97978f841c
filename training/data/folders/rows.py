"""A folder of images as rows: an Arrow file of paths and classes, which all training processes share."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
import codecs
import csv
import difflib
import filecmp
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import datasets.config
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image, Value
from datasets.table import MemoryMappedTable

from conversion.files import partial_path, write_json
from training.console.errors import is_first_process
from training.data.folders.listing import Listing, Run, changed_at, show
from training.data.folders.splits import Part, class_depth, class_lists, divide, find_split, shorten, split_name
from training.settings.checks import check

MAX_ROWS = 1 << 16  # of a record batch


class FolderRows(NamedTuple):
    """The rows of a split, and notes on the folder that are printed at the start."""

    rows: Dataset
    notes: list[str]


class Metadata(NamedTuple):
    """The full paths of a split's metadata files, and the number of its images."""

    files: list[str]
    num_images: int


def cache_folder() -> Path:
    """The folder that caches rows and image checks, inside the cache of `datasets`; it is created if needed."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hf_convnextv2"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_key(*parts: Any) -> str:
    """A hash of the parts, for a file name."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def write_table(table: pa.Table, path: Path) -> None:
    """Write an Arrow file atomically; an existing file with the same content is not replaced."""
    with partial_path(path) as new:
        with pa.OSFile(str(new), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table.combine_chunks(), MAX_ROWS)
        if not path.exists() or not filecmp.cmp(new, path, shallow=False):
            new.replace(path)


def stored_rows(root: str, split: str, asked: list[str]) -> FolderRows | None:
    """The rows that the first training process of this machine has stored, if no folder has changed since.

    None in the first training process itself. A folder's time changes when a file is added, removed or renamed in it.
    """
    path = rows_file(root, split, asked)
    if is_first_process() or not path.with_suffix(".json").exists():
        return None
    found = json.loads(path.with_suffix(".json").read_text())
    unchanged = all(changed_at(os.path.join(found["root"], name)) == at for name, at in found["folders"].items())
    return FolderRows(open_rows(path, features_with(found["classes"])), []) if unchanged else None


def rows_file(root: str, split: str, asked: list[str]) -> Path:
    """The path of the file that caches the rows of a split."""
    return cache_folder() / f"rows-{cache_key(os.path.realpath(root), split, asked)}.arrow"


def image_rows(listing: Listing, split: str, asked: list[str]) -> FolderRows:
    """The rows of a split: `image` (a path) and, if the folder names are classes, `label`."""
    parts = divide(listing, asked)
    own = parts_of(listing, parts, split)
    classes, counts = class_lists(parts)
    if not class_depth(own):
        classes = []
    path = rows_file(listing.root, split, asked)
    write_table(table_of(listing, own, classes), path)
    found = {"root": listing.root, "folders": listing.folders, "classes": classes}
    write_json(path.with_suffix(".json"), found)
    notes = [*class_notes(own, classes, counts, split_name(split)), *other_splits(parts, own)]
    return FolderRows(open_rows(path, features_with(classes)), notes + empty_folders(listing))


def parts_of(listing: Listing, parts: list[Part], split: str) -> list[Part]:
    """The images of a split; if there are none, raises a `ValueError` that suggests the nearest name."""
    own = [part for part in parts if part.split in (split, split_name(split))]
    splits = list(dict.fromkeys(part.split for part in parts))
    tops = [name for name in listing.folders if name and os.sep not in name]
    near = difflib.get_close_matches(split, [*splits, *tops], 1, 0.5)
    rule = f"hold a split `{split}`: it has {', '.join(splits)}"
    if all(part.classes == part.run.parts for part in parts):
        rule += " alone, as no folder in it is named after a split"
    check("dataset_name", listing.root, bool(own), rule + (f". Did you mean `{near[0]}`?" if near else ""))
    return own


def table_of(listing: Listing, parts: list[Part], classes: list[str]) -> pa.Table:
    """The table of the rows, in the storage format of `datasets`."""
    paths = pa.chunked_array([paths_of(listing, part.run) for part in parts], pa.string())
    columns = {"image": as_images(paths)}
    if classes:
        number = {name: index for index, name in enumerate(classes)}
        labels = [pa.repeat(pa.scalar(number[p.class_name], pa.int64()), len(p.run.names)) for p in parts]
        columns["label"] = pa.chunked_array(labels)
    return pa.table(columns)


def as_images(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Paths in the storage format of images."""
    nothing = [pa.nulls(len(chunk), pa.binary()) for chunk in paths.chunks]
    chunks = [
        pa.StructArray.from_arrays(list(pair), ["bytes", "path"]) for pair in zip(nothing, paths.chunks, strict=True)
    ]
    return pa.chunked_array(chunks)


def paths_of(listing: Listing, run: Run) -> pa.Array:
    """The full paths of the files."""
    prefix = os.path.join(listing.root, run.folder, "")
    return pc.binary_join_element_wise(pa.scalar(prefix), run.names, "")


def features_with(classes: list[str]) -> Features:
    """The types of the columns."""
    features = Features({"image": Image(decode=False)})
    if classes:
        features["label"] = ClassLabel(names=classes)
    return features


def open_rows(path: Path, features: Features) -> Dataset:
    """Open the rows as a memory-mapped file, so that all processes share the memory."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "blake2b")
    digest.update(repr(features).encode())
    table = MemoryMappedTable.from_file(str(path))
    return Dataset(table, info=DatasetInfo(features=features), fingerprint=digest.hexdigest()[:16])


def class_notes(parts: list[Part], classes: list[str], counts: dict[str, Any], split: str) -> Iterator[str]:
    """Lines on anything unusual in the folders that define the classes."""
    if class_depth(parts) is None:
        by_depth = {len(part.classes): os.path.join(part.run.folder, part.run.names[0].as_py()) for part in parts}
        yield f"no classes: images lie at different depths, e.g. {' and '.join(show(p) for p in by_depth.values())}"
    above = {part.classes for part in parts}
    if not classes and len(above) > 1 and len({names[-1:] for names in above}) == 1:
        name = next(iter(above))[-1]
        yield f"no classes: the folders right above the images are all called {show(name)}"
    homes: dict[str, set[str]] = {}
    for part in parts if classes else []:
        homes.setdefault(part.class_name, set()).add("/".join(part.classes))
    for name, folders in homes.items():
        if len(folders) > 1:
            yield f"class {show(name)} is in {len(folders)} folders: {', '.join(sorted(show(f) for f in folders)[:5])}"
    for other, of_other in counts.items():
        only = {name: count for name, count in of_other.items() if name not in counts[split]}
        if other != split and classes and only:
            yield f"classes in split {other} alone: {shorten(type(of_other)(only))}"
        missing = [show(name) for name in counts[split] if name not in of_other]
        if other != split and of_other and missing and classes:
            yield f"classes that split {other} lacks: {', '.join(missing[:8])}{' ...' if len(missing) > 8 else ''}"


def other_splits(parts: list[Part], own: list[Part]) -> Iterator[str]:
    """Lines on the splits that are left out."""
    for split in dict.fromkeys(part.split for part in parts):
        if split != own[0].split:
            count = sum(len(part.run.names) for part in parts if part.split == split)
            yield f"left out: {count:,} images of split {split}"


def empty_folders(listing: Listing) -> list[str]:
    """A line that lists the folders without an image in them or below them."""
    filled = set()
    for run in listing.images:
        parts = run.parts
        filled |= {os.path.join(*parts[:depth]) for depth in range(1, len(parts) + 1)}
    empty = [show(name) for name in listing.folders if name and name not in filled]
    few = ", ".join(empty[:8]) + (f" and {len(empty) - 8:,} more" if len(empty) > 8 else "")
    return [f"folders without images: {few}"] if empty else []


def metadata_of(listing: Listing, split: str, asked: list[str]) -> Metadata:
    """The metadata files of a split; raises a `ValueError` if they do not cover all of its folders."""
    parts = divide(listing, asked)
    own = parts_of(listing, parts, split)
    has_splits = any(part.classes != part.run.parts for part in parts)
    files = [name for name in listing.metadata if not has_splits or own[0].split == split_at(name, asked)]
    above = {os.path.dirname(name) for name in files}
    outside = [show(part.run.folder) for part in own if not above & set(parents_of(part.run.folder))]
    rule = f"have metadata files for all of its images or none: {', '.join(outside[:5])} has none"
    check("dataset_name", listing.root, not files or not outside, rule)
    paths = [os.path.join(listing.root, name) for name in files]
    return Metadata(paths, sum(len(part.run.names) for part in own))


def refuse_twice_named(folder: str, files: list[str], what: str) -> None:
    """Raise if a line of metadata names an image that another line names: an image has all of its `what` in one."""
    counts: Counter[str] = Counter()
    for file in files:
        counts.update(normalized(os.path.join(os.path.dirname(file), name)) for name in file_names_in(file))
    twice = [show(os.path.relpath(name, folder)) for name, count in counts.items() if count > 1]
    more = ", ..." if len(twice) > 5 else ""
    rule = f"name each image in one line of its metadata, with all {what}, but names {', '.join(twice[:5])}{more} again"
    check("dataset_name", folder, not twice, rule)


def refuse_other_csv(folder: str, files: list[str]) -> None:
    """Raise if a CSV file of metadata has semicolons between its columns, or is in UTF-16, as spreadsheets save it."""
    for file in files:
        if not file.endswith(".csv"):
            continue
        name = show(os.path.relpath(file, folder))
        with open(file, "rb") as stream:
            line = stream.readline().removeprefix(codecs.BOM_UTF8)
        rule = f"hold metadata in UTF-8, but {name} is in another encoding, such as UTF-16: save it as UTF-8"
        check("dataset_name", folder, not line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)), rule)
        columns = [column.strip(b'\r\n "') for column in line.split(b";")]
        rule = f"hold metadata with commas between the columns, but {name} has semicolons: save it with commas"
        check("dataset_name", folder, len(columns) < 2 or b"file_name" not in columns, rule)


def normalized(name: str) -> str:
    """A file name in the spelling that all names of this file share: `a/1.jpg` for `./a//1.jpg` and `a\\1.jpg`."""
    return os.path.normpath(name.replace("\\", "/"))  # tools on Windows write backslashes


def file_names_in(file: str) -> Iterator[str]:
    """The images that the lines of a metadata file name; lines without a `file_name` are left out."""
    if file.endswith(".parquet"):
        rows = pq.ParquetFile(file).read(columns=["file_name"]).to_pylist()
        yield from (str(row["file_name"]) for row in rows if row.get("file_name"))
        return
    with open(file, encoding="utf-8-sig", newline="") as lines:
        rows = map(json.loads, filter(str.strip, lines)) if file.endswith(".jsonl") else csv.DictReader(lines)
        yield from (str(row["file_name"]) for row in rows if row.get("file_name"))


def parents_of(folder: str) -> list[str]:
    """The folder and its parents up to the root, which is "" as in a listing."""
    parts = PurePath(folder).parts
    return [os.path.join("", *parts[:depth]) for depth in range(len(parts) + 1)]


def split_at(file: str, asked: list[str]) -> str | None:
    """The split of the folder that holds a file; None if that folder belongs to no split."""
    run = Run(os.path.dirname(file), pa.array([], pa.string()))
    found = find_split(run, asked, only_exact=True) or find_split(run, asked, only_exact=False)
    return found[1].split if found else None


def array_rows(listing: Listing, split: str) -> Dataset:
    """The rows of a folder of .npy files: paths, and classes named after subfolders.

    If a subfolder has the name of the split, the rows are the files in it.
    """
    files = sorted(PurePath(run.folder, name) for run in listing.arrays for name in run.names.to_pylist())
    own = [file.relative_to(split) for file in files if file.is_relative_to(split)]
    check("train_split", split, bool(own) or split == "train", f"be a folder in {listing.root}, which holds arrays")
    root = Path(listing.root, split) if own else Path(listing.root)
    files = own or files
    columns: dict[str, Any] = {"image": [str(root / file) for file in files]}
    if all(len(file.parts) > 1 for file in files):
        classes = sorted({file.parts[0] for file in files})
        number = {name: index for index, name in enumerate(classes)}
        columns["label"] = [number[file.parts[0]] for file in files]
        features = Features({"image": Value("string"), "label": ClassLabel(names=classes)})
        return Dataset.from_dict(columns, features=features)
    return Dataset.from_dict(columns)
