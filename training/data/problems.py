"""The problem that a model is trained for: what the labels are, their names, checks and readers."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import PreTrainedConfig

from training.console.errors import is_first_process
from training.data.label_readers import ClassListReader, ClassReader, IndicatorReader, LabelReader, ValueReader
from training.data.labels import check_labels, class_list, holds_lists, holds_strings, label_mapping, resolve_labels
from training.data.multi_label import check_indicators, check_lists, count_indicators, count_lists
from training.data.problem_type import INTEGERS, hold_decimal_commas, kind_of, problem_type_of
from training.data.regression import check_values, value_notes
from training.data.samples import Samples, make_samples
from training.data.sources import Source, features_of, find_source
from training.data.transforms import Transform
from training.data.value_scale import Scale
from training.settings.checks import check
from training.settings.data import FinetuneDataSettings, LabelledDataSettings
from training.settings.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL

MANY_OF = 4  # one in so many class names


class Problem(NamedTuple):
    """What a model is to answer: the problem in Transformers' words, and the names of its classes or values."""

    type: str
    names: list[str]


def find_problem(data: FinetuneDataSettings, num_labels: int | None) -> Problem:
    """The problem that the training images pose. Prints it unless it is one class for each image. No image is read."""
    found, columns = find_source(data, data.train_split), data.label_columns
    kind = problem_type_of(found.source, columns, data.problem_type, found.notes)
    if kind == SINGLE_LABEL or (kind == MULTI_LABEL and is_list(found.source, columns)):
        names = resolve_labels(found.source, columns[0], num_labels, found.notes)
        rule = f"hold two classes or more, but all images are {', '.join(names)}"
        check("label_column", columns[0], kind != SINGLE_LABEL or len(names) > 1, rule)
        if kind == SINGLE_LABEL and is_first_process():
            tell_of_joined_names(found.source, columns[0], names)
    else:
        names, rule = columns, f"be {len(columns)}, the label columns, for {kind}"
        check("num_labels", num_labels, num_labels in (None, len(columns)), rule)
    if data.problem_type is None and is_first_process():
        tell_of_guess(kind, {name: kind_of(features_of(found.source)[name]) for name in columns}, len(names))
    return Problem(kind, names)


def tell_of_guess(problem: str, held: Mapping[str, str], num_labels: int) -> None:
    """Print the problem that was taken from what the columns hold, unless this is names of classes."""
    if problem == SINGLE_LABEL and INTEGERS not in held.values():
        return
    told = ", ".join(f"`{name}` holds {what}" for name, what in list(held.items())[:3]) + ", ..." * (len(held) > 3)
    if problem == SINGLE_LABEL:
        told += f", {num_labels:,} classes. If they are values: --problem_type {REGRESSION}"
    print(f"Problem type: {problem}, as {told}.", flush=True)


def tell_of_joined_names(source: Source, column: str, names: Sequence[str]) -> None:
    """Print a note if many of the names in a column of texts seem to be several classes each, or values.

    So do "cat;dog" and, where both are names too, "cat,dog" and "cat dog"; and "0,5".
    """
    if not holds_strings(source, column):
        return
    if hold_decimal_commas(names):
        print(f"The class names in `{column}` look like values: {names[0]!r}. Write a point instead of the comma.")
        return
    known = set(names)
    joined = [name for name in names if name.startswith("[") or set(name) & set(";|") or is_joined(name, known)]
    if joined and MANY_OF * len(joined) >= len(names):
        found = f"{len(joined):,} of {len(names):,} class names in `{column}` look like several classes: {joined[0]!r}"
        form = "a column of 0 and 1 for each class, or a column of lists in metadata.jsonl or parquet files"
        print(f"{found}. If they are, --problem_type multi_label_classification takes {form}.", flush=True)


def is_joined(name: str, known: Collection[str]) -> bool:
    """Whether a name consists of several others."""
    parts = [part for part in re.split(r"[,/+&\s]+", name) if part]
    return len(parts) > 1 and all(part in known for part in parts)


def is_list(source: Source, columns: Sequence[str]) -> bool:
    """Whether the classes of an image are a list in one column."""
    return len(columns) == 1 and (holds_lists(source, columns[0]) or is_unknown(source, columns[0]))


def is_unknown(source: Source, column: str) -> bool:
    """Whether a stream does not state the type of a column."""
    return str(getattr(features_of(source)[column], "dtype", "")) == "null"


def problem_of(model_config: PreTrainedConfig) -> str:
    """The problem that a model is for; one class for each image if its configuration does not say."""
    return getattr(model_config, "problem_type", None) or SINGLE_LABEL


def columns_for(data: LabelledDataSettings, source: Source, model_config: PreTrainedConfig) -> list[str]:
    """The columns that hold the labels of a model, in the order of its classes or values.

    Columns for several classes or values are matched by name; those whose names are all new to the model, by their
    order. Without a list of classes in the default column, those named as the model's classes or values go first.
    """
    columns, names, kind = data.label_columns, class_list(model_config), problem_of(model_config)
    there = set(features_of(source))
    has_list = kind == MULTI_LABEL and "label" in there and is_list(source, ["label"])
    if kind != SINGLE_LABEL and columns == ["label"] and not has_list and set(names) <= there:
        columns = names
    kind = problem_type_of(source, columns, kind)
    if kind == SINGLE_LABEL or (kind == MULTI_LABEL and is_list(source, columns)):
        return columns
    if set(columns) == set(names):
        return names
    fits = len(columns) == len(names) and not set(columns) & set(names)
    check("label_column", columns, fits, f"be {', '.join(names)}, what the model is for")
    return columns


def check_problem(data: LabelledDataSettings, source: Source, model_config: PreTrainedConfig, split: str) -> None:
    """Raise if labels of a map-style source are wrong, and print what they are; no image is read.

    The labels of a stream are checked when they are read.
    """
    kind, classes = problem_of(model_config), class_list(model_config)
    check("problem_type", data.problem_type, data.problem_type in (None, kind), f"be {kind}, as of the model")
    columns, image = columns_for(data, source, model_config), data.image_column
    is_in_lists = kind == MULTI_LABEL and is_list(source, columns)
    if kind == SINGLE_LABEL:
        check_labels(source, columns[0], classes)
    elif kind == REGRESSION:
        check_values(source, image, columns)
    elif is_in_lists:
        check_lists(source, image, columns[0], classes)
    else:
        check_indicators(source, image, columns)
    if kind == SINGLE_LABEL or not is_first_process():
        return
    lines = [f"Labels of split {split}:"]
    if not is_in_lists and columns != classes:
        lines.append(f"columns by their order: {', '.join(map(' is '.join, zip(columns, classes, strict=True)))}")
    if isinstance(source, Dataset):
        lines += label_notes(kind, source, columns, classes)
    if len(lines) > 1:
        print("\n  ".join(lines), flush=True)


def label_notes(kind: str, source: Dataset, columns: list[str], classes: list[str]) -> Iterable[str]:
    """Lines on the labels of a split."""
    if kind == REGRESSION:
        return value_notes(source, columns)
    is_in_lists = is_list(source, columns)
    counts = count_lists(source, columns[0], classes) if is_in_lists else count_indicators(source, columns)
    return counts.notes(classes)


def label_reader(data: LabelledDataSettings, source: Source, model_config: PreTrainedConfig) -> LabelReader:
    """What reads the labels of a row as the model's classes, or as values on its scale."""
    kind, classes = problem_of(model_config), class_list(model_config)
    columns = columns_for(data, source, model_config)
    if kind == REGRESSION:
        scale = Scale.of(model_config) or Scale.units(len(classes))
        return ValueReader(columns, scale.mean, scale.std)
    if kind == MULTI_LABEL and not is_list(source, columns):
        return IndicatorReader(columns)
    reader = ClassReader if kind == SINGLE_LABEL else ClassListReader
    return reader(columns[0], len(classes), label_mapping(source, columns[0], classes))


def labelled_samples(
    data: LabelledDataSettings, source: Source, model_config: PreTrainedConfig, transform: Transform, **fields: Any
) -> Samples:
    """Create the `Samples` that turn rows of a source into images with the labels of a model."""
    reader = label_reader(data, source, model_config)
    return make_samples(data, source, model_config.num_channels, transform, label_reader=reader, **fields)
