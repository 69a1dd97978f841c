"""All images of a folder or of a pattern of files as rows, whatever splits and classes folders are named after."""

import glob
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from datasets import Dataset

from training.data.folders.listing import KINDS, Listing, is_utf8, left_out, not_images, refuse_mixture
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
    """The images or arrays of a listed folder, in the order of their paths; a link to nothing is one of them."""
    refuse_mixture(listing)
    kind = "images" if listing.images else "arrays"
    runs = getattr(listing, kind)
    rule = "hold images, such as .jpg or .png, .npy arrays or data files"
    check("dataset_name", listing.root, bool(runs), rule)
    paths = pa.chunked_array([paths_of(listing, run) for run in runs], pa.string())
    dangling = {
        os.path.join(listing.root, name): why for name, why in listing.dangling.items() if kind_of(name) == kind
    }
    if dangling:
        paths = pa.chunked_array([sorted([*paths.to_pylist(), *dangling])], pa.string())
    problems = not_images(listing, lambda name: False) if listing.images else []
    problems = [problem for problem in problems if problem not in dangling.values()]
    return WholeFolder(rows_with(paths, listing.root), listing.root, problems, left_out(listing))


def pattern_rows(pattern: str, written: Sequence[Path] = ()) -> WholeFolder:
    """The images that a pattern of paths matches, in the order of their paths; `**` stands for any folders.

    `written`: files and folders that are left out, since the images' answers are written there.
    """
    pattern = os.path.abspath(os.path.expanduser(pattern))
    is_file = os.path.isfile(pattern)  # one whose name has a bracket, perhaps
    matched = [pattern] if is_file else sorted(filter(is_file_or_link, glob.glob(pattern, recursive=True)))
    again = [path for path in matched if passes_loop(os.path.dirname(path))]
    matched = sorted(set(matched) - set(again))
    found = [path for path in matched if kind_of(path) in ("images", "arrays")]
    unnamed = [path for path in found if not is_utf8(path)]
    found = [path for path in found if is_utf8(path)]
    paths = outside(found, written)
    rule = "match images, such as 'photos/**/*.jpg'"
    rule += f", outside of {', '.join(map(str, written))}" if found else ""
    check("dataset_name", pattern, bool(paths), rule)
    root = str(Path(pattern).parent) if is_file or not glob.has_magic(pattern) else fixed_part(pattern)
    others, own = len(matched) - len(found) - len(unnamed), len(found) - len(paths)
    notes = [f"left out: {others:,} files without an extension of an image"] if others else []
    notes += [f"left out: {own:,} files that an earlier run has written"] if own else []
    notes += [f"left out: {len(again):,} files behind links to a folder above these"] if again else []
    problems = [f"{os.fsencode(path)!r} has a name that is not UTF-8: rename it" for path in unnamed]
    return WholeFolder(rows_with(pa.chunked_array([paths], pa.string()), pattern), root, problems, notes)


def outside(paths: list[str], places: Sequence[Path]) -> list[str]:
    """The paths that are none of some places and lie in none of them, whichever links lead there."""
    real, real_places = lru_cache(os.path.realpath), [place.resolve() for place in places]

    def lies_in_one(path: str) -> bool:
        folder, name = os.path.split(path)
        return any(Path(real(folder), name).is_relative_to(place) for place in real_places)

    return [path for path in paths if not lies_in_one(path)]


@lru_cache
def passes_loop(folder: str) -> bool:
    """Whether a folder is reached through a link to a folder above the link: it has been reached without it, too."""
    parent = os.path.dirname(folder)
    if parent == folder:
        return False
    is_loop = os.path.islink(folder) and Path(os.path.realpath(parent)).is_relative_to(os.path.realpath(folder))
    return is_loop or passes_loop(parent)


def kind_of(path: str) -> str | None:
    """The kind of a file by its extension."""
    return KINDS.get(os.path.splitext(path)[1].lower())


def is_file_or_link(path: str) -> bool:
    """Whether a path is a file, or a link to nothing, which is named as a bad image."""
    return os.path.isfile(path) or is_dangling(path)


def is_dangling(path: str) -> bool:
    """Whether a path is a link to nothing."""
    return os.path.islink(path) and not os.path.exists(path)


def is_pattern_of_images(name: str) -> bool:
    """Whether a name stands for local image files: a pattern that is no folder's name, or one image file."""
    if "://" in name or os.path.isdir(os.path.expanduser(name)):
        return False
    of_tables = kind_of(name) == "tables"
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
