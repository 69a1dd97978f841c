"""Reading and writing the small files beside a model."""

import csv
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Any

LONGEST_PARTIAL = 200  # bytes of a file's name in that of its partial one


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file."""
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))  # editors on Windows begin with a mark
    except ValueError as error:
        raise ValueError(f"{file} must be JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a JSON object.")
    return values


def read_csv(file: Path) -> list[dict[str, str]]:
    """The rows of a table with a header; none where there is no such file."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Write a JSON file; readers see the old file or the whole new one."""
    write_text(file, json.dumps(values, indent=2) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file; readers see the old file or the whole new one."""
    with atomic_path(file) as partial:
        partial.write_text(text, encoding="utf-8")


def link_files(files: Iterable[Path], folder: Path) -> None:
    """Links to files, in a folder that is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file.name).symlink_to(file.resolve())


@contextmanager
def atomic_path(final: Path, *, sync: bool = True) -> Iterator[Path]:
    """A temporary path beside `final`: the file or folder that the block writes there is renamed to `final` at the end.

    Readers see the old content or the new one, never a part. If the block raises, the temporary path is removed and
    `final` stays as it was. A folder replaces no folder that holds something: that is an `OSError`.

    Args:
        sync: wait until the new content is on the disk before it is renamed, so that it also survives a power failure.
    """
    with partial_path(final) as partial:
        yield partial
        if sync:
            flush_all(partial)
        os.replace(partial, final)


@contextmanager
def partial_path(final: Path) -> Iterator[Path]:
    """A path beside `final` that no other process uses, for something unfinished; removed when the block ends.

    The name starts with a dot and ends with `.partial`. A killed process leaves it behind; nothing reads such a path.
    """
    # The process id is not enough: two containers with one volume may have the same.
    partial = final.with_name(f"{_partial_start(final)}{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield partial
    finally:
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            with suppress(OSError):  # usually it has been renamed; if not, an error is on its way already
                partial.unlink()


def leftovers_of(final: Path) -> list[Path]:
    """What killed processes have left of `partial_path(final)`. Only for whoever has locked `final` or its folder."""
    start = _partial_start(final)
    found = final.parent.glob(f"{escape(start)}*.partial")
    return [path for path in found if re.fullmatch(r"\d+-\w+\.partial", path.name.removeprefix(start))]


def _partial_start(final: Path) -> str:
    """What the names of its partial paths start with; names have at most 255 bytes."""
    return f".{os.fsdecode(os.fsencode(final.name)[:LONGEST_PARTIAL])}."


def flush_all(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    for part in (*path.rglob("*"), path):
        flush(part)


def flush(path: Path) -> None:
    """Wait until a file, or the list of the files in a folder, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and keeps their lists itself
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    status = file.stat()
    return _sha256(file.resolve(), status.st_ino, status.st_size, status.st_mtime_ns)


# Gigabytes of weights are asked for several times in one conversion or publication; a file that changes is read anew.
@lru_cache
def _sha256(file: Path, *version: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
