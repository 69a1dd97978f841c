"""Lists the files of a folder in one walk: the images, and the files that are left out, with the reason."""

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import NamedTuple

import pyarrow as pa
from datasets.data_files import FILES_TO_IGNORE
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from PIL import features

from training.console.bars import Phase
from training.settings.checks import check
from training.settings.data import FILE_BUILDERS

METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
DOCUMENTS = {
    *FILES_TO_IGNORE,
    "README",
    "README.txt",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "Thumbs.db",
    "desktop.ini",
    "id2label.json",  # the names of classes, see folders/masks.py
}
KIND_NAMES = {"images": "images", "arrays": ".npy arrays", "tables": "data files"}
IMAGE_EXTENSIONS = [*ImageFolder.EXTENSIONS, *([".avif"] if features.check("avif") else [])]
TO_NOTHING = "links to nothing"
ARCHIVES = {".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"}
KINDS = {
    **dict.fromkeys(IMAGE_EXTENSIONS, "images"),
    **dict.fromkeys(FILE_BUILDERS, "tables"),
    ".npy": "arrays",
}


class Run(NamedTuple):
    """Files of one folder that are consecutive in the order of all files."""

    folder: str  # relative to the root, "" for the root itself
    names: pa.Array

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the folders on the path from the root to these files."""
        return PurePath(self.folder).parts


@dataclass
class Listing:
    """The content of a folder, in the order of the files' paths as strings; hidden folders are not walked."""

    root: str
    images: list[Run] = field(default_factory=list)
    arrays: list[Run] = field(default_factory=list)
    tables: list[Run] = field(default_factory=list)  # parquet, arrow, webdataset
    metadata: list[str] = field(default_factory=list)  # from here on: paths relative to the root
    documents: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # each path with the reason
    dangling: dict[str, str] = field(default_factory=dict)  # links to nothing, with their lines in `broken`
    folders: dict[str, int] = field(default_factory=dict)  # with the time of the last change in ns
    started: int = field(default_factory=time.time_ns)  # when the walk began

    def count(self, kind: str) -> int:
        """Number of images, arrays or tables."""
        return sum(len(run.names) for run in getattr(self, kind))

    def first(self, kind: str) -> str:
        """The path of the first image, array or table."""
        run = getattr(self, kind)[0]
        return os.path.join(run.folder, run.names[0].as_py())


def list_folder(root: str) -> Listing:
    """Walk a folder once and follow links; raises a `ValueError` if a part of it is not readable."""
    listing = Listing(os.path.realpath(root))
    with Phase(f"Listing {root}") as phase:
        for folder, names in walk(listing, "", ()):
            sort_in(listing, folder, names)
            phase.update(len(names))
    return listing


def is_current(listing: Listing) -> bool:
    """Whether no file was added, removed or renamed since the listing.

    Each of these changes the time of the folder. Some file systems store that time in steps of 2 s, so a folder that
    was changed less than 2 s before the walk counts as changed.
    """
    return all(
        changed_at(os.path.join(listing.root, folder)) == at and listing.started - at > 2e9
        for folder, at in listing.folders.items()
    )


def changed_at(folder: str) -> int | None:
    """The time of a folder's last change in ns; None if the folder does not exist."""
    return os.stat(folder).st_mtime_ns if os.path.isdir(folder) else None


def walk(listing: Listing, folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, list[str]]]:
    """Yield the folder and all folders below it with the names of their files, in the order of the sorted paths."""
    path = os.path.join(listing.root, folder)
    status = os.stat(path)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        listing.broken.append(f"{path} is a link to a folder above it")
        return
    listing.folders[folder] = status.st_mtime_ns
    names, below = scan(listing, folder)
    start = 0
    for name in below:
        stop = bisect_left(names, name + "/")
        yield folder, names[start:stop]
        yield from walk(listing, os.path.join(folder, name), (*above, identity))
        start = stop
    yield folder, names[start:]


def scan(listing: Listing, folder: str) -> tuple[list[str], list[str]]:
    """The names of the files and of the folders in a folder; anything else is added to the listing's `broken`."""
    names, below, odd = [], [], []
    path = os.path.join(listing.root, folder)
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_file():
                    names.append(entry.name)
                elif entry.is_dir():
                    below.append(entry.name)
                else:
                    odd.append((entry.name, TO_NOTHING if entry.is_symlink() else "is no regular file"))
    except OSError as error:
        check("dataset_name", listing.root, False, f"be readable, but {error.filename} is not: {error.strerror}")
    hidden = [name for name in below if name.startswith((".", "__"))]
    listing.hidden += [os.path.join(folder, name, "") for name in sorted(hidden)]
    for name, why in sorted(odd):
        if not name.startswith("."):
            listing.broken.append(f"{os.path.join(path, name)} {why}")
            if why == TO_NOTHING and encodable(listing, folder, [name]):
                listing.dangling[os.path.join(folder, name)] = listing.broken[-1]
    shown = [name for name in below if not name.startswith((".", "__"))]
    return sorted(names), sorted(encodable(listing, folder, shown), key=lambda name: name + "/")


def is_utf8(name: str) -> bool:
    """Whether a name or path is text, as the columns of a data set must be."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def encodable(listing: Listing, folder: str, names: list[str]) -> list[str]:
    """The names that are valid UTF-8; the others are added to the listing's `broken`."""
    good = []
    for name in names:
        if is_utf8(name):
            good.append(name)
        else:
            path = os.path.join(listing.root, folder, name)
            shown = os.fsencode(path).decode(errors="backslashreplace")
            listing.broken.append(f"{shown} has a name that is not UTF-8: rename it")
    return good


def sort_in(listing: Listing, folder: str, names: list[str]) -> None:
    """Add the files of one folder to the listing, each to the kind that its name implies."""
    found: dict[str, list[str]] = {"images": [], "arrays": [], "tables": []}
    others = []
    for name in names:
        kind = KINDS.get(name[name.rfind(".") :]) or KINDS.get(os.path.splitext(name)[1].lower())
        (others if kind is None or name[0] == "." or name in METADATA else found[kind]).append(name)
    for kind, of_kind in found.items():
        try:
            stored = pa.array(of_kind, pa.string())
        except UnicodeEncodeError:
            stored = pa.array(encodable(listing, folder, of_kind), pa.string())
        if len(stored):
            getattr(listing, kind).append(Run(folder, stored))
    for name in encodable(listing, folder, others):
        path = os.path.join(folder, name)
        if name in METADATA:
            listing.metadata.append(path)
        elif name.startswith("."):
            listing.hidden.append(path)
        else:
            (listing.documents if name in DOCUMENTS else listing.others).append(path)


def refuse_mixture(listing: Listing) -> None:
    """Raise if a folder holds files of several kinds (images, arrays, data files): it is unclear which ones to use."""
    kinds = [kind for kind in ("images", "arrays", "tables") if listing.count(kind)]
    held = [f"{listing.count(kind):,} {KIND_NAMES[kind]}, e.g. {listing.first(kind)}" for kind in kinds]
    rule = f"hold files of one kind, but holds {'; '.join(held)}. Move the others into a folder elsewhere"
    check("dataset_name", listing.root, len(kinds) < 2, rule)


def not_images(listing: Listing, elsewhere: Callable[[str], bool]) -> list[str]:
    """The problems of a folder of images: files whose names are not those of images, and unreadable files.

    Leaves out the files for which `elsewhere(path)` is true, a path relative to the folder.
    """
    problems = [problem for problem in listing.broken if not elsewhere(os.path.relpath(problem, listing.root))]
    for name in listing.others:
        if elsewhere(name):
            continue
        is_archive = os.path.splitext(name)[1].lower() in ARCHIVES
        reason = "an archive, unpack it" if is_archive else "has no extension of an image, such as .jpg or .png"
        problems.append(f"{os.path.join(listing.root, name)}: {reason}")
    return problems


def left_out(listing: Listing) -> list[str]:
    """Lines on the files that are left out of a folder and that are no problem."""
    notes = []
    others = listing.others if listing.arrays else []  # in a folder of images, `not_images` reports them
    kinds = {"hidden": listing.hidden, "documents": listing.documents, "files that are no arrays": others}
    for what, names in kinds.items():
        if names:
            few = ", ".join(map(show, names[:5])) + (", ..." if len(names) > 5 else "")
            notes.append(f"left out: {len(names):,} {what} ({few})")
    return notes


def show(name: str) -> str:
    """A name in a form that prints on one line."""
    return name if name.isprintable() else repr(name)
