"""The classes in files metadata.jsonl, where they cannot be read because some are names and others numbers."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from training.data.detection.columns import BadObjectsError, columns_of
from training.settings.checks import check


def refuse_mixed_classes(root: str, files: Sequence[str], column: str) -> None:
    """Raise if some objects have a name as their class and others a number, with an image of each kind."""
    first: dict[str, tuple[str, Any]] = {}
    for file in files:
        for row in rows_of(file):
            name = os.path.relpath(os.path.join(os.path.dirname(file), str(row.get("file_name"))), root)
            for label in classes_of(row.get(column), name):
                first.setdefault("name" if isinstance(label, str) else "number", (name, label))
    rule = "hold names of classes or numbers, not both; " + " and ".join(
        f"{name} has the {kind} {label!r}" for kind, (name, label) in first.items()
    )
    check("objects_column", column, len(first) < 2, rule)


def rows_of(file: str) -> Iterator[dict[str, Any]]:
    """The lines of a metadata.jsonl that are JSON; nothing of another file."""
    if not file.endswith(".jsonl"):
        return
    with open(file, encoding="utf-8") as lines:
        for line in filter(str.strip, lines):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def classes_of(objects: Any, name: str) -> list[Any]:
    """The classes of the objects of an image; none if they cannot be read."""
    try:
        return [label for label in columns_of(objects, name).get("category", []) if label is not None]
    except BadObjectsError:
        return []
