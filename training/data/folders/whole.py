"""All images of a folder or of a pattern of files as rows, whatever splits and classes folders are named after."""

import glob
import os
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from datasets import Dataset

from training.data.folders.listing import KINDS, Listing, left_out, not_images, refuse_mixture
from training.data.folders.rows import (
    as_images,
    cache_folder,
    cache_key,
    features_with,
    open_rows,
    paths_of,
    write_table,
)
from training.settings.checks import check


class WholeFolder(NamedTuple):
    """The rows of a folder's images, and the folder, its files that are no images, and notes for the user."""

    rows: Dataset
    root: str
    problems: list[str]
    notes: list[str]


def folder_rows(listing: Listing) -> WholeFolder:
    """The images or arrays of a listed folder, in the order of their paths."""
    refuse_mixture(listing)
    runs = listing.images or listing.arrays
    rule = "hold images, such as .jpg or .png, .npy arrays or data files"
    check("dataset_name", listing.root, bool(runs), rule)
    paths = pa.chunked_array([paths_of(listing, run) for run in runs], pa.string())
    problems = not_images(listing, lambda name: False) if listing.images else []
    return WholeFolder(rows_with(paths, listing.root), listing.root, problems, left_out(listing))


def pattern_rows(pattern: str) -> WholeFolder:
    """The images that a pattern of paths matches, in the order of their paths; `**` stands for any folders."""
    pattern = os.path.abspath(os.path.expanduser(pattern))
    matched = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    paths = [path for path in matched if KINDS.get(Path(path).suffix.lower()) in ("images", "arrays")]
    check("dataset_name", pattern, bool(paths), "match images, such as 'photos/**/*.jpg'")
    root = str(Path(pattern).parent) if not glob.has_magic(pattern) else fixed_part(pattern)
    others = len(matched) - len(paths)
    notes = [f"left out: {others:,} files without an extension of an image"] if others else []
    return WholeFolder(rows_with(pa.chunked_array([paths], pa.string()), pattern), root, [], notes)


def is_pattern_of_images(name: str) -> bool:
    """Whether a name stands for local image files: a pattern that is no folder's name, or one image file."""
    if "://" in name or os.path.isdir(os.path.expanduser(name)):
        return False
    of_tables = KINDS.get(Path(name).suffix.lower()) == "tables"
    return not of_tables and (glob.has_magic(name) or os.path.isfile(os.path.expanduser(name)))


def fixed_part(pattern: str) -> str:
    """The folder in which all matches of a pattern lie."""
    parts = Path(pattern).parts
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    return str(Path(*parts[:first]))


def rows_with(paths: pa.ChunkedArray, name: str) -> Dataset:
    """Rows with these paths, in a file that all processes share; equal paths have equal fingerprints."""
    file = cache_folder() / f"rows-{cache_key(name, 'whole')}.arrow"
    write_table(pa.table({"image": as_images(paths)}), file)
    return open_rows(file, features_with([]))
