"""The images to predict on: where they are, in which order, and what each is called."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset

from training.console.errors import is_first_process
from training.data.checking.images import check_images, refuse_bad_images, value_note
from training.data.checking.store import stamps_of
from training.data.decoding import BadImageError, WrongChannelsError, decode_image, value_range
from training.data.folders.whole import WholeFolder, folder_rows, is_pattern_of_images, pattern_rows
from training.data.overview import MAX_NAMED, size_of
from training.data.samples import name_of
from training.data.sources import (
    Source,
    array_dtype,
    check_column,
    file_paths,
    find_source,
    fingerprint_of,
    has_own_splits,
    have_own_names,
    listing_of,
    num_examples,
    values_of,
)
from training.data.splits import chosen_split
from training.settings.checks import check
from training.settings.prediction import PredictDataSettings


class Images(NamedTuple):
    """Images in their order.

    root: the folder that they lie in, if they are files; names are relative to it.
    total: their number; None if a stream does not say.
    are_named: whether the stored paths tell the images from each other.
    """

    source: Source
    root: str | None
    total: int | None
    are_named: bool = True

    @property
    def fingerprint(self) -> str | None:
        """A text that differs for other images; None for a stream."""
        return fingerprint_of(self.source)

    def sample(self) -> str | None:
        """A digest of three images as they are stored, and of the sizes of all image files; None of a stream."""
        if not isinstance(self.source, Dataset) or not len(self.source):
            return None
        chosen = sorted({0, len(self.source) // 2, len(self.source) - 1})
        if self.root is None:
            rows: Any = self.source.with_format("arrow")
            return digest_of([repr(rows[index].to_pylist()).encode() for index in chosen])
        paths = file_paths(values_of(self.source, self.source.column_names[0]))
        contents = [content_of(paths[index].as_py()) for index in chosen]
        return digest_of([stamps_of(paths).sizes.tobytes(), *contents])

    def name(self, value: Any, index: int) -> str:
        """The path of an image relative to the folder, else its path as stored, else its number, from 0 on."""
        name = name_of(value, str(index)) if self.are_named else str(index)
        return name.removeprefix(os.path.join(self.root, "")) if self.root else name


def digest_of(parts: Sequence[bytes]) -> str:
    """A text that differs for other contents, or for another order of them."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def content_of(file: str) -> bytes:
    """The bytes of a file; none of one that cannot be read."""
    try:
        return Path(file).read_bytes()
    except OSError:
        return b""


def find_images(data: PredictDataSettings, num_channels: int, written: Sequence[Path] = ()) -> Images:
    """Find the images, print what was found, and check them all if bad ones are not to be skipped.

    `written`: files and folders that the answers are written to; what a pattern matches there is left out.
    """
    whole = whole_folder(data, written)
    if whole is None:
        found, root, total = find_split(data)
        source, problems, notes = found
    else:
        source, root, problems, notes = whole
        check_column(source, "image_column", data.image_column)
        total = len(whole.rows)
    source = source.select_columns([data.image_column])
    notes = [*notes, *first_values(source, data, num_channels)]
    if not data.skip_bad_images:
        if isinstance(source, Dataset) and data.check_images:
            problems = [*problems, *check_images(source, data, num_channels).problems]
        if problems:
            refuse_bad_images(problems, data)
    are_named = root is not None or have_own_names(source, data.image_column)
    notes += [] if are_named else ["several images have the same path: images are named by their numbers, from 0"]
    print_images(data, source, notes, problems)
    return Images(source, root, total, are_named)


def first_values(source: Source, data: PredictDataSettings, num_channels: int) -> list[str]:
    """A line on the values of the first image if they are not in [0, 1]; none for a stream."""
    if not isinstance(source, Dataset) or len(source) == 0:
        return []
    value, dtype = source[0][data.image_column], array_dtype(source, data.image_column)
    try:
        return value_note(*value_range(decode_image(value, num_channels, "the first image", dtype).pixels))
    except (BadImageError, WrongChannelsError):  # told when its turn comes
        return []


def check_same_images(accelerator: Accelerator, data: PredictDataSettings, images: Images) -> None:
    """Raise unless all processes, which share the images by their numbers, have found the same ones."""
    same = len(set(gather_object([images.fingerprint]))) == 1
    rule = "stay as it is at the start, but the processes found different images in it: start again"
    check("dataset_name", data.dataset_name, same, rule)


def whole_folder(data: PredictDataSettings, written: Sequence[Path]) -> WholeFolder | None:
    """All images of a folder or of a pattern of files; None of a split, and where data files hold the images."""
    if is_pattern_of_images(data.dataset_name):
        check("split", data.split, data.split is None, "not be given with image files: they have no splits")
        return pattern_rows(data.dataset_name, written)
    folder = Path(data.dataset_name).expanduser()
    if data.split is not None or not folder.is_dir() or has_own_splits(str(folder)):
        return None
    listing = listing_of(str(folder))
    return None if listing.tables and not listing.images else folder_rows(listing)


def find_split(data: PredictDataSettings) -> tuple[Any, str | None, int | None]:
    """A split as `find_source` gives it, the folder of its files, and the number of its images if it is known."""
    split = chosen_split(data, data.split)
    folder = Path(data.dataset_name).expanduser()
    is_folder = folder.is_dir() and bool(listing_of(str(folder)).images)
    # The rows of a folder are paths in a file on the disk: a stream of them would only be slower.
    found = find_source(replace(data, streaming=False) if is_folder else data, split)
    total = num_examples([found.source], split, None)
    rule = f"hold images in split `{split}`"
    check("dataset_name", data.dataset_name, not isinstance(found.source, Dataset) or bool(total), rule)
    return found, os.path.realpath(folder) if is_folder else None, total


def print_images(data: PredictDataSettings, source: Source, notes: list[str], problems: list[str]) -> None:
    """Print, in the first process, how many images there are, and the files that are left out."""
    if not is_first_process():
        return
    lines = [f"{data.dataset_name}: {size_of(source, None)}", *(f"  {note}" for note in notes)]
    lines += [f"  left out: {problem}" for problem in problems[:MAX_NAMED]]
    if len(problems) > MAX_NAMED:
        lines.append(f"  left out: {len(problems) - MAX_NAMED:,} more files")
    print("\n".join(lines), flush=True)
