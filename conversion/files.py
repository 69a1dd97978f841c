"""Reading and writing the small files beside a model."""

import csv
import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file."""
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
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
    """A JSON file that appears whole."""
    write_text(file, json.dumps(values, indent=2) + "\n")


def write_text(file: Path, text: str) -> None:
    """A text file that appears whole."""
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)


def sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    status = file.stat()
    return _sha256(file.resolve(), status.st_ino, status.st_size, status.st_mtime_ns)


# Gigabytes of weights are asked for several times in one conversion or publication; a file that changes is read anew.
@lru_cache
def _sha256(file: Path, *version: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
