"""What the labels of a data set are: one class for each image, several classes, or values."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, LargeList, List

from training.data.labels import STRINGS, check_label_column, class_names
from training.data.rows import numbers
from training.data.sources import Source, features_of
from training.settings.checks import check
from training.settings.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL

DECIMAL = re.compile(r"[+-]?\d+,\d+")
# What a column holds. The type of a column of a stream may not be known.
LISTS, NAMES, BOOLEANS, INTEGERS, FLOATS = "lists", "names", "booleans", "integers", "floats"
UNKNOWN, OTHER = "values of a type that the stream does not state", "other values"
NUMBERS = (BOOLEANS, INTEGERS, FLOATS, UNKNOWN)
# What each problem takes: one column of these, or several.
ONE = {SINGLE_LABEL: (NAMES, BOOLEANS, INTEGERS, UNKNOWN), MULTI_LABEL: (LISTS, *NUMBERS)}
ONE |= {REGRESSION: (INTEGERS, FLOATS, UNKNOWN)}
SEVERAL = {SINGLE_LABEL: (), MULTI_LABEL: NUMBERS, REGRESSION: (INTEGERS, FLOATS, UNKNOWN)}
TAKES = {
    SINGLE_LABEL: "one column of class names or numbers",
    MULTI_LABEL: "one column of lists of classes, or columns of 0 and 1",
    REGRESSION: "columns of numbers",
}


def problem_type_of(source: Source, columns: Sequence[str], asked: str | None = None, notes: Sequence[str] = ()) -> str:
    """The problem that the labels pose, in Transformers' words.

    Args:
        asked: the problem that the settings ask for, if they do.
        notes: those on a folder, for the error if it has no labels.

    Raises:
        ValueError: if a column is missing, if the columns do not fit what is asked for, or if nothing is asked for and
            they could be more than one.
    """
    for column in columns:
        if column not in features_of(source):
            check_label_column(source, column, notes)
    held = {column: kind_of(features_of(source)[column]) for column in columns}
    if asked is None:
        asked = guess(source, held)
    told = ", ".join(f"`{column}` holds {kind}" for column, kind in held.items())
    rule = f"fit the labels: {told}. It takes {TAKES[asked]}"
    names = [column for column, kind in held.items() if kind == NAMES and asked == REGRESSION]
    if any(hold_decimal_commas(class_names(source, column) or []) for column in names):
        rule += ", with a point instead of the comma"
    takes = (ONE if len(columns) == 1 else SEVERAL)[asked]
    if asked != SINGLE_LABEL or set(held.values()) & {LISTS} or len(columns) > 1:
        check("problem_type", asked, set(held.values()) <= set(takes), rule)
    return asked


def hold_decimal_commas(names: Sequence[str]) -> bool:
    """Whether all names are numbers such as "0,5"."""
    return bool(names) and all(DECIMAL.fullmatch(name) for name in names)


def kind_of(feature: Any) -> str:
    """What a column of this type holds."""
    dtype = str(getattr(feature, "dtype", ""))
    if isinstance(feature, List | LargeList):
        return LISTS
    if isinstance(feature, ClassLabel) or dtype in STRINGS:
        return NAMES
    kinds = {"bool": BOOLEANS, "null": UNKNOWN, "int": INTEGERS, "uint": INTEGERS, "float": FLOATS, "double": FLOATS}
    return next((kind for start, kind in kinds.items() if dtype.startswith(start)), OTHER)


def guess(source: Source, held: dict[str, str]) -> str:
    """The only problem that the columns can pose; raises a `ValueError` if there are several or none."""
    kinds, columns = set(held.values()), list(held)
    if len(columns) == 1 and not kinds & {FLOATS}:
        return MULTI_LABEL if kinds == {LISTS} else SINGLE_LABEL  # which checks what the column holds
    told = ", ".join(f"`{column}` holds {kind}" for column, kind in held.items())
    rule = f"be columns of 0 and 1, or of numbers, if it is several, but {told}"
    check("label_column", columns, kinds <= set(NUMBERS), rule)
    if kinds == {BOOLEANS}:
        return MULTI_LABEL
    if isinstance(source, Dataset):
        values = np.concatenate([numbers(source, column) for column in columns])
        missing = int(np.isnan(values).sum())
        values = values[np.isfinite(values)]
        if len(columns) > 1 and np.isin(values, (0, 1)).all():
            return MULTI_LABEL
        if (values != values.round()).any():
            return REGRESSION
        told = f"{told}, all of them whole"
        told += f", and {missing:,} missing: an empty cell turns integers into floats" if missing else ""
    taken = {name: TAKES[name] for name in (MULTI_LABEL, REGRESSION)}
    choices = " or ".join(f"{name} ({what})" for name, what in taken.items())
    raise ValueError(f"`problem_type` (=None) must be given, {choices}: {told}.")
