"""Finds the classes of a data set, matches them with the model's by name, and checks them before training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset
from transformers import PreTrainedConfig

from training.data.samples import Samples, make_samples
from training.data.sources import Source, features_of, values_of
from training.data.transforms import Transform
from training.settings.checks import check
from training.settings.data import LabelledDataSettings

STRINGS = ("string", "large_string")


def class_list(model_config: PreTrainedConfig) -> list[str]:
    """The names of the model's classes, in the order of their numbers."""
    return [name for _, name in sorted((model_config.id2label or {}).items())]


def unnamed_classes(count: int, start: int = 0) -> list[str]:
    """Transformers' names for classes that have none, from the number `start` on."""
    return [f"LABEL_{number}" for number in range(start, count)]


def label_maps(names: Sequence[str]) -> dict[str, Any]:
    """`id2label` and `label2id` of a model's configuration."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}


def class_names(source: Source, column: str) -> list[str] | None:
    """The names of the classes if the column is a `ClassLabel` or holds strings (not in a stream); else None."""
    feature = features_of(source)[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    if holds_strings(source, column) and isinstance(source, Dataset):
        names = set(values_of(source, column).unique().to_pylist())
        check("label_column", column, None not in names, "hold a class for every image, but lacks some")
        return sorted(names)
    return None


def holds_strings(source: Source, column: str) -> bool:
    """Whether the labels are strings."""
    return getattr(features_of(source)[column], "dtype", None) in STRINGS


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
    feature = features_of(source)[column]
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
        fits = num_labels is None or num_labels >= len(names)
        check("num_labels", num_labels, fits, f"be at least {len(names)}, the classes of `{column}`")
        return names + unnamed_classes(num_labels or 0, start=len(names))
    if num_labels is None:
        rule = f"be given: the stream's `{column}` does not say how many classes there are"
        check("num_labels", num_labels, isinstance(source, Dataset), rule)
        assert isinstance(source, Dataset)
        num_labels = int(label_array(source, column).max()) + 1
    return unnamed_classes(num_labels)


def check_labels(source: Source, column: str, classes: list[str]) -> None:
    """Raise if a label of a map-style source is not a class of the model; no image is read.

    A stream's labels are checked when they are read. `classes` are the names of the model's classes. Labels with names
    are matched by name. If the names differ, labels are matched by number, unless a name that the source and the model
    share has another number in each.
    """
    check_label_column(source, column)
    own = class_names(source, column)
    if own is not None and label_mapping(source, column, classes) is None:
        twice = sorted({name for name in own if classes.count(name) > 1})
        check(
            column, twice, not twice or len(own) == len(classes), "be told apart, but the model has two classes of it"
        )
        strange = sorted(set(own) - set(classes))
        numbered = isinstance(features_of(source)[column], ClassLabel) and len(own) == len(classes)
        # A name that the source and the model share must have the same number in both.
        agree = all(theirs == name for name, theirs in zip(own, classes, strict=False) if name in classes)
        check(column, strange[:20], numbered and agree, f"be among the names of the model's {len(classes)} classes")
        print(f"Classes of `{column}` are not named as the model's (e.g. {strange[:1]}): matched by number.")
    if isinstance(source, Dataset) and not holds_strings(source, column):
        labels = label_array(source, column)
        outside = np.unique(labels[(labels < 0) | (labels >= len(own or classes))]).tolist()
        check(column, outside, not outside, f"be in [0, `num_labels` (={len(own or classes)})); -1: missing")


def label_array(source: Dataset, column: str) -> np.ndarray:
    """The label column as integers; a missing label is -1."""
    try:
        return values_of(source, column).cast(pa.int64()).fill_null(-1).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"`label_column` (={column}) must hold integers or class names: {error}.") from error


def label_mapping(source: Source, column: str, classes: list[str]) -> dict[Any, int] | None:
    """A mapping from the source's labels to the model's classes by name; None if the labels are the class numbers."""
    own = class_names(source, column)
    if own is None and holds_strings(source, column):  # a stream's names are checked when they are read
        return {name: label for label, name in enumerate(classes) if classes.count(name) == 1}
    # A name may stand for two classes: ImageNet has "crane" twice.
    if own is None or not set(own) <= set(classes) or any(classes.count(name) > 1 for name in own):
        return None
    by_name = getattr(features_of(source)[column], "names", None) is None
    return {(name if by_name else label): classes.index(name) for label, name in enumerate(own)}


def labelled_samples(
    data: LabelledDataSettings, source: Source, model_config: PreTrainedConfig, transform: Transform, **fields: Any
) -> Samples:
    """Create the `Samples` that turn rows of a source into images labelled with the model's classes."""
    classes = class_list(model_config)
    return make_samples(
        data,
        source,
        model_config.num_channels,
        transform,
        label_column=data.label_column,
        label_mapping=label_mapping(source, data.label_column, classes),
        num_labels=len(classes),
        **fields,
    )
