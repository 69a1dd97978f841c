"""Finds the classes of a data set, matches them with the model's by name, and checks them before training.

A column holds one class for each image or, for several, a list of them.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, LargeList, List
from transformers import PreTrainedConfig

from training.console.errors import is_first_process
from training.data.sources import Source, features_of, values_of
from training.settings.checks import check

STRINGS = ("string", "large_string")
LEAST_SHARE = 0.1  # of the numbers up to the largest one that a column must hold, for classes to be counted in it
NUMBER = re.compile(r"-?[0-9]{1,18}")
MOST_NAMED = 5  # classes in a note
NO_CLASS = "hold a class for some image, but all of its lists are empty"


def class_list(model_config: PreTrainedConfig) -> list[str]:
    """The names of the model's classes, in the order of their numbers."""
    return [name for _, name in sorted((model_config.id2label or {}).items())]


def unnamed_classes(count: int, start: int = 0) -> list[str]:
    """Transformers' names for classes that have none, from the number `start` on."""
    return [f"LABEL_{number}" for number in range(start, count)]


def label_maps(names: Sequence[str]) -> dict[str, Any]:
    """`id2label` and `label2id` of a model's configuration."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}


def holds_lists(source: Source, column: str) -> bool:
    """Whether the column holds lists."""
    return isinstance(features_of(source)[column], List | LargeList)


def class_feature(source: Source, column: str) -> Any:
    """The type of a class: that of the column or, if it holds lists, of what is in them."""
    feature = features_of(source)[column]
    return feature.feature if isinstance(feature, List | LargeList) else feature


def class_values(source: Dataset, column: str) -> pa.ChunkedArray:
    """The classes of all images, one after the other."""
    values = values_of(source, column)
    return pc.list_flatten(values) if holds_lists(source, column) else values


def class_names(source: Source, column: str) -> list[str] | None:
    """The names of the classes if they are a `ClassLabel` or strings (not in a stream); else None."""
    feature = class_feature(source, column)
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    if holds_strings(source, column) and isinstance(source, Dataset):
        names = set(class_values(source, column).unique().to_pylist())
        where = "in each place of its lists" if holds_lists(source, column) else "for every image"
        rule = f"hold a class {where}, but lacks some: an empty cell, None or NA in a CSV file is a missing one"
        check("label_column", column, None not in names, rule)
        blank = any(not name.strip() for name in names)
        check("label_column", column, not blank, f"hold the name of a class {where}, but has empty texts")
        twins = sorted(name for name in names if name != name.strip() and name.strip() in names)
        told = ", ".join(map(repr, twins[:5]))
        rule = f"hold each class in one spelling, but has both {told} and the same without spaces"
        check("label_column", column, not twins, rule)
        return sorted(names)
    return None


def holds_strings(source: Source, column: str) -> bool:
    """Whether the labels are strings."""
    return getattr(class_feature(source, column), "dtype", None) in STRINGS


def check_label_column(source: Source, column: str, notes: Sequence[str] = ()) -> None:
    """Raise unless the column exists and holds classes: integers, booleans or names.

    Of the `notes` on a folder, the error repeats those that say why it has no classes.
    """
    columns = list(features_of(source))
    rule = f"be a column of the data set, which has {', '.join(columns)}"
    if columns == ["image"]:
        rule += (
            "; images in a folder get it from the folders they are in, two or more, at the same depth: train/cat/1.jpg"
        )
        rule += "".join(f". {note}" for note in notes if note.startswith("no classes"))
    check("label_column", column, column in columns, rule)
    feature = class_feature(source, column)
    dtype = str(getattr(feature, "dtype", type(feature).__name__))
    is_class = dtype in (*STRINGS, "bool", "null") or dtype.startswith(("int", "uint"))
    check("label_column", column, is_class, f"hold integers or class names, but holds {dtype}")


def resolve_labels(source: Source, column: str, num_labels: int | None, notes: Sequence[str] = ()) -> list[str]:
    """The names of the classes to train.

    They are the column's own names, then `LABEL_0`, `LABEL_1` and so on up to `num_labels` names. A column without
    names has `num_labels` classes (default: the largest label + 1).
    """
    check_label_column(source, column, notes)
    names = class_names(source, column)
    countable = names is not None or not holds_strings(source, column)
    check("label_column", column, countable, "hold integers or a ClassLabel to train on a stream: names need the whole")
    if names is not None:
        check("label_column", column, bool(names), NO_CLASS)
        fits = num_labels is None or num_labels >= len(names)
        check("num_labels", num_labels, fits, f"be at least {len(names)}, the classes of `{column}`")
        return names + unnamed_classes(num_labels or 0, start=len(names))
    if num_labels is None:
        rule = f"be given: the stream's `{column}` does not say how many classes there are"
        check("num_labels", num_labels, isinstance(source, Dataset), rule)
        assert isinstance(source, Dataset)
        numbers = label_array(source, column)
        check("label_column", column, len(numbers) > 0, NO_CLASS)
        num_labels = int(numbers.max()) + 1
        check_counted(column, np.unique(numbers), num_labels)
    return unnamed_classes(num_labels)


def check_counted(column: str, found: np.ndarray, count: int) -> None:
    """Raise if most numbers up to the largest class are in no image; print a note if 0 is in none.

    Such a column holds ids, or classes that are counted from 1: a model would have classes that nothing shows.
    """
    first = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
    rule = (
        f"be given, as `{column}` holds only {len(found)} different numbers of the {count:,} up to the largest: "
        f"{first}. If they are names of classes, write them as texts, such as `c7`; if there are more classes, give "
        "their number with `--num_labels`"
    )
    check("num_labels", None, len(found) >= LEAST_SHARE * count, rule)
    if found.min() > 0 and is_first_process():
        told = f"No image has the class 0 in `{column}`, whose least number is {found.min()}: classes count from 0"
        print(f"{told}, so the model has {found.min()} without an image.", flush=True)


def check_labels(source: Source, column: str, classes: list[str]) -> None:
    """Raise if a label of a map-style source is not a class of the model; no image is read.

    A stream's labels are checked when they are read. `classes` are the names of the model's classes. Labels are matched
    by name, also integers and booleans whose texts are names of the model. Where the names differ, or there are none,
    labels are matched by number, which a note says, unless a name that the source and the model share has another
    number in each.
    """
    check_label_column(source, column)
    own = class_names(source, column)
    if own is None and not holds_strings(source, column):
        check_numbers(source, column, classes)
    elif own is not None:
        check_names(source, column, own, classes)


def check_names(source: Source, column: str, own: list[str], classes: list[str]) -> None:
    """Raise if a label, of a column whose classes have the names `own`, is not a class of the model."""
    if label_mapping(source, column, classes) is None:
        twice = sorted({name for name in own if classes.count(name) > 1})
        check(
            column, twice, not twice or len(own) == len(classes), "be told apart, but the model has two classes of it"
        )
        strange = sorted(set(own) - set(classes))
        numbered = isinstance(class_feature(source, column), ClassLabel) and len(own) == len(classes)
        # A name that the source and the model share must have the same number in both.
        agree = all(theirs == name for name, theirs in zip(own, classes, strict=False) if name in classes)
        check(column, strange[:20], numbered and agree, f"be among the names of the model's {len(classes)} classes")
        print(f"Classes of `{column}` are not named as the model's (e.g. {strange[:1]}): matched by number.")
    if isinstance(source, Dataset) and not holds_strings(source, column):
        check_in_range(source, column, len(own))


def check_numbers(source: Source, column: str, classes: list[str]) -> None:
    """Raise if a label, of a column of integers or booleans, is not a class of the model."""
    mapping = label_mapping(source, column, classes)
    if mapping is None:
        values = range(len(classes))
        if isinstance(source, Dataset):
            check_in_range(source, column, len(classes))
            values = distinct_values(source, column)
        if classes != unnamed_classes(len(classes)) and is_first_process():
            told = ", ".join(f"{value} is {classes[value]}" for value in values[:MOST_NAMED])
            more = ", ..." if len(values) > MOST_NAMED else ""
            print(f"Classes of `{column}` have no names: matched with the model's by number, {told}{more}.", flush=True)
    elif isinstance(source, Dataset):
        outside = [value for value in distinct_values(source, column) if mapping.get(value, -1) < 0]
        rule = (
            f"be among the names of the model's {len(classes)} classes, some of which are such numbers. If they are "
            "numbers of classes, give them names: `cast_column` of `datasets` with a `ClassLabel`"
        )
        check(column, outside[:20], not outside, rule)


def check_in_range(source: Dataset, column: str, num_labels: int) -> None:
    """Raise if a label is missing or not the number of a class."""
    labels = label_array(source, column)
    outside = np.unique(labels[(labels < 0) | (labels >= num_labels)]).tolist()
    check(column, outside, not outside, f"be in [0, `num_labels` (={num_labels})); -1: missing")


def distinct_values(source: Dataset, column: str) -> list[Any]:
    """The classes of all images as they are stored, each once, in order; a missing one, None, goes first."""
    return sorted(class_values(source, column).unique().to_pylist(), key=lambda value: (value is not None, value))


def label_array(source: Dataset, column: str) -> np.ndarray:
    """The classes of all images as integers; a missing one is -1."""
    try:
        return class_values(source, column).cast(pa.int64()).fill_null(-1).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"`label_column` (={column}) must hold integers or class names: {error}.") from error


def label_mapping(source: Source, column: str, classes: list[str]) -> dict[Any, int] | None:
    """A mapping from the source's labels to the model's classes by name; None if the labels are the class numbers."""
    own = class_names(source, column)
    if own is None and holds_strings(source, column):  # a stream's names are checked when they are read
        return {name: label for label, name in enumerate(classes) if classes.count(name) == 1}
    if own is None:
        named = named_numbers(classes, class_feature(source, column))
        # Two splits of one CSV file may hold texts and integers: "1" and "unknown", or 1 alone.
        if isinstance(source, Dataset) and 0 < len(named) < len(classes):
            named = named if named.keys() & set(distinct_values(source, column)) else {}
        return named or None
    # A name may stand for two classes: ImageNet has "crane" twice.
    if not set(own) <= set(classes) or any(classes.count(name) > 1 for name in own):
        return None
    by_name = getattr(class_feature(source, column), "names", None) is None
    return {(name if by_name else label): classes.index(name) for label, name in enumerate(own)}


def named_numbers(classes: Sequence[str], feature: Any) -> dict[int, int]:
    """The numbers of the classes whose names are integers, by these; for booleans also of "true" and "false".

    Of an integer that two classes are named so, as "7" and "007", it is -1.
    """
    booleans = {"false": 0, "true": 1} if getattr(feature, "dtype", None) == "bool" else {}
    found: dict[int, int] = {}
    for label, name in enumerate(classes):
        value = int(name) if NUMBER.fullmatch(name) else booleans.get(name.lower())
        if value is not None:
            found[value] = -1 if value in found else label
    return found
