"""A folder of images and masks as rows: `train/images/1.jpg` belongs to `train/masks/1.png`."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath

import pyarrow as pa
from datasets import Features, Image

from conversion.files import read_json
from training.data.folders.listing import ARCHIVES, Listing, show
from training.data.folders.rows import (
    FolderRows,
    cache_folder,
    cache_key,
    open_rows,
    other_splits,
    parts_of,
    paths_of,
    write_table,
)
from training.data.folders.splits import Part, divide
from training.settings.checks import check

IMAGES, MASKS = "images", ("masks", "annotations")  # names of folders
NAMES = "id2label.json"  # at the top of the folder: the name of each class, by its number
LAYOUT = "train/images/1.jpg with train/masks/1.png"


def with_documents(listing: Listing) -> Listing:
    """The listing in which files beside images and masks count as documents, as ADE20K's objectInfo150.txt.

    Archives do not: they may hold images.
    """
    if listing.metadata:
        return listing

    def is_document(path: str) -> bool:
        is_archive = PurePath(path).suffix.lower() in ARCHIVES
        return not is_archive and not {IMAGES, *MASKS} & set(PurePath(path).parts[:-1])

    found = [path for path in listing.others if is_document(path)]
    others = [path for path in listing.others if not is_document(path)]
    documents = [path for path in (*listing.documents, *found) if path != NAMES]  # which is read
    return replace(listing, others=others, documents=documents)


def mask_rows(listing: Listing, split: str, asked: list[str], column: str) -> FolderRows:
    """The rows of a split: `image` and, with the name `column`, its mask; both are paths.

    An image and its mask have the same name but for the extension, below folders named `images` and `masks` or
    `annotations`.

    Raises:
        ValueError: if an image has no mask, or a mask no image.
    """
    parts = divide(listing, asked)
    own = parts_of(listing, parts, split)
    images, masks = (by_name(listing, own, names) for names in ((IMAGES,), MASKS))
    outside = [show(part.run.folder or ".") for part in own if not is_below(part, (IMAGES, *MASKS))]
    rule = f"hold images and masks as in {LAYOUT}, but {', '.join(outside[:5])} is neither `images` nor `masks`"
    check("dataset_name", listing.root, not outside, rule)
    for these, those, what, other in ((images, masks, "images", "a mask"), (masks, images, "masks", "an image")):
        alone = [path for name, path in these.items() if name not in those]
        rule = f"have {other} for each of its {what}, as in {LAYOUT}; {len(alone):,} have none: {few(alone)}"
        check("dataset_name", listing.root, not alone, rule)
    columns = {"image": list(images.values()), column: [masks[name] for name in images]}
    path = cache_folder() / f"masks-{cache_key(listing.root, split, asked, column)}.arrow"
    write_table(pa.table({name: stored(paths) for name, paths in columns.items()}), path)
    features = Features({name: Image(decode=False) for name in columns})
    return FolderRows(open_rows(path, features), list(other_splits_of_pairs(parts, own)))


def by_name(listing: Listing, parts: list[Part], folders: Iterable[str]) -> dict[str, str]:
    """The paths of the files below folders of these names, by the rest of the path without the extension.

    Raises:
        ValueError: if two files differ in their extensions alone.
    """
    found: dict[str, str] = {}
    for part in parts:
        if not is_below(part, folders):
            continue
        place = next(place for place, name in enumerate(part.classes) if name in folders)
        rest = part.classes[:place] + part.classes[place + 1 :]
        for path in paths_of(listing, part.run).to_pylist():
            name = os.path.join(*rest, PurePath(path).stem)
            rule = f"have one file for each name, but has both {show(found.get(name, ''))} and {show(path)}"
            check("dataset_name", listing.root, name not in found, rule)
            found[name] = path
    return found


def is_below(part: Part, folders: Iterable[str]) -> bool:
    """Whether the files lie in or below a folder of one of these names."""
    return any(name in folders for name in part.classes)


def stored(paths: list[str]) -> pa.StructArray:
    """Paths in the storage format of `datasets.Image`."""
    return pa.StructArray.from_arrays(
        [pa.nulls(len(paths), pa.binary()), pa.array(paths, pa.string())], ["bytes", "path"]
    )


def other_splits_of_pairs(parts: list[Part], own: list[Part]) -> Iterator[str]:
    """Lines on the splits that are left out; masks do not count."""
    yield from other_splits([part for part in parts if not is_below(part, MASKS)], own)


def few(paths: list[str]) -> str:
    """The first paths, as text."""
    return ", ".join(map(show, paths[:5])) + (", ..." if len(paths) > 5 else "")


def names_in(folder: str) -> list[str] | None:
    """The names of the classes by `id2label.json` in a local folder, if it has one.

    Raises:
        ValueError: unless its keys are the numbers from 0 on.
    """
    file = Path(folder).expanduser() / NAMES
    stated = read_json(file)
    if not stated:
        return None
    numbers = sorted(int(key) for key in stated if key.isdigit())
    is_complete = len(numbers) == len(stated) and numbers == list(range(len(stated)))
    check(NAMES, file, is_complete, 'name the classes by their numbers: {"0": "sky", "1": "tree"}')
    names = [str(stated[str(number)]) for number in numbers]
    twice = [name for name, count in Counter(names).items() if count > 1]
    check(NAMES, file, not twice, f"have a name of its own for each class, but has {', '.join(twice)} twice")
    return names
