"""Parquet files of one data set: `datasets` reads all of them with the class numbers, and the columns, of the first.

The README.md of the data set may say otherwise of the columns.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, LargeList, List

from training.settings.checks import check


def refuse_unlike_files(files: Sequence[str], name: str, root: str = "", *, read: Sequence[str]) -> None:
    """Raise if parquet files number their classes differently, or have columns that the first one does not have.

    Args:
        files: those of the data set `name`, in the order in which `datasets` reads them. Others than parquet are left
            alone, and so is what is not on this machine.
        root: their folder, which errors leave out.
        read: those of them that are read with the columns of the first.
    """
    numbered: dict[str, tuple[str, list[str]]] = {}
    first: tuple[str, list[str]] | None = None
    checked = set(read)
    for path in files:
        if not path.endswith(".parquet") or not os.path.isfile(path):
            continue
        file = os.path.relpath(path, root) if root else path
        try:
            features = Features.from_arrow_schema(pq.read_schema(path))
        except (pa.ArrowInvalid, OSError) as error:
            rule = f"hold parquet files that can be read, but {file} cannot be: {error}"
            raise ValueError(f"`dataset_name` (={name}) must {rule}") from error
        first = first or (file, list(features))
        if path in checked:
            _refuse_new_columns(first, (file, list(features)), name)
        for column, feature in class_labels(features):
            before, names = numbered.setdefault(column, (file, feature.names))
            rule = f"number the classes of `{column}` alike in all files, but {before} has {', '.join(names[:8])} and "
            rule += f"{file} {', '.join(feature.names[:8])}. Write them with the same classes, or name one file alone"
            check("dataset_name", name, names == feature.names, rule)


def _refuse_new_columns(first: tuple[str, list[str]], file: tuple[str, list[str]], name: str) -> None:
    """Raise if a file, `(its name, its columns)`, has columns that the first one does not have."""
    new = [column for column in file[1] if column not in first[1]]
    rule = f"have the columns of its first file in all files, but {first[0]} has {', '.join(first[1])} and {file[0]} "
    rule += f"also {', '.join(new)}. Write them with the same columns, or name one file alone"
    check("dataset_name", name, not new, rule)


def class_labels(feature: Any, name: str = "") -> Iterator[tuple[str, ClassLabel]]:
    """The types of classes in a type, also in lists and dicts, each with its name: `label`, `objects.category`."""
    if isinstance(feature, ClassLabel):
        yield name, feature
    elif isinstance(feature, List | LargeList):
        yield from class_labels(feature.feature, name)
    elif isinstance(feature, dict):
        for key, part in feature.items():
            yield from class_labels(part, f"{name}.{key}" if name else key)
