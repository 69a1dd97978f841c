"""Images with any number of classes: a column of lists, or a column of 0 and 1 for each class."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from training.data.folders.listing import show
from training.data.folders.splits import shorten
from training.data.labels import check_labels, class_feature, class_names, class_values, holds_strings, label_mapping
from training.data.rows import numbers, refuse_rows
from training.data.sources import Source, values_of
from training.settings.checks import check

MOST_CLASSES = 12  # that are printed


def check_lists(source: Source, image_column: str, column: str, classes: list[str]) -> None:
    """Raise if a list of classes is missing, names a class twice, or holds one that the model lacks.

    The lists of a stream are checked when they are read.
    """
    refuse_indicator_lists(source, column, classes)
    if isinstance(source, Dataset):
        missing = np.asarray(values_of(source, column).is_null())
        refuse_rows(source, image_column, column, missing, "be a list, empty for an image without a class")
        images, labels = classes_of_images(source, column)
        lacks = np.zeros(len(source), bool)
        lacks[images[np.asarray(labels.is_null())]] = True
        refuse_rows(source, image_column, column, lacks, "have a class in each place of its list")
    check_labels(source, column, classes)
    if isinstance(source, Dataset):
        pairs = images * max(len(classes), 1) + class_numbers(source, column, classes)
        distinct, counts = np.unique(pairs, return_counts=True)
        twice = np.zeros(len(source), bool)
        twice[distinct[counts > 1] // max(len(classes), 1)] = True
        refuse_rows(source, image_column, column, twice, "name each class of an image once")


def refuse_indicator_lists(source: Source, column: str, classes: list[str]) -> None:
    """Raise if each list seems to say of all classes whether an image has them: [0, 1, 0] instead of [1].

    Such are lists of booleans and, unless in a stream, lists of the same number of 0 and 1 each. Where it is two, they
    could be the classes 0 and 1 of a model that has others.
    """
    dtype = str(getattr(class_feature(source, column), "dtype", ""))
    rule = "list the classes that an image has, such as [1]; 0 and 1 for each class take a column for each of them"
    check("label_column", column, dtype != "bool", f"{rule}; it holds lists of booleans")
    if not isinstance(source, Dataset) or not dtype.startswith(("int", "uint")) or class_names(source, column):
        return
    lengths = pc.unique(pc.list_value_length(values_of(source, column)).drop_null()).to_pylist()
    if len(lengths) == 1 and (lengths[0] > 2 or lengths[0] == len(classes) == 2):
        bits = set(pc.unique(class_values(source, column)).to_pylist()) <= {0, 1}
        check("label_column", column, not bits, f"{rule}; each of its lists holds {lengths[0]} numbers that are 0 or 1")


def classes_of_images(source: Dataset, column: str) -> tuple[np.ndarray, pa.ChunkedArray]:
    """The classes in all lists, one after the other, each with the number of its row."""
    lengths = pc.list_value_length(values_of(source, column)).fill_null(0).to_numpy()
    return np.repeat(np.arange(len(source)), lengths), class_values(source, column)


def class_numbers(source: Dataset, column: str, classes: list[str]) -> np.ndarray:
    """The model's numbers of the classes in all lists, one after the other."""
    labels, mapping = class_values(source, column), label_mapping(source, column, classes)
    if mapping is None:
        return labels.cast(pa.int64()).to_numpy()
    if not holds_strings(source, column):
        labels = labels.cast(pa.int64())
    known = pa.array(list(mapping)).cast(labels.type)
    return np.array(list(mapping.values()), np.int64)[pc.index_in(labels, known).to_numpy()]


def check_indicators(source: Source, image_column: str, columns: Sequence[str]) -> None:
    """Raise if a column holds anything but 0 and 1. The values of a stream are checked when they are read."""
    if not isinstance(source, Dataset):
        return
    for column in columns:
        refuse_rows(source, image_column, column, ~np.isin(numbers(source, column), (0, 1)), "be 0 or 1")


class ClassCounts(NamedTuple):
    """The number of images of each class, of all images, and of those that have no class."""

    images: np.ndarray
    num_images: int
    without: int

    def notes(self, classes: Sequence[str]) -> Iterator[str]:
        """Lines on the classes: how many images have each, and what cannot be learnt or measured."""
        counted = Counter({name: int(count) for name, count in zip(classes, self.images, strict=True)})
        yield f"{len(classes):,} classes: {shorten(counted, MOST_CLASSES)}"
        for count, text in ((0, "in no image"), (self.num_images, "in every image")):
            names = [show(name) for name, images in counted.items() if images == count]
            if names:
                yield f"{text}: {', '.join(names[:MOST_CLASSES])}{', ...' if len(names) > MOST_CLASSES else ''}"
        if self.without:
            yield f"{self.without:,} of {self.num_images:,} images have no class"


def count_lists(source: Dataset, column: str, classes: list[str]) -> ClassCounts:
    """Count the images of each class in a column of lists."""
    lengths = pc.list_value_length(values_of(source, column)).to_numpy()
    images = np.bincount(class_numbers(source, column, classes), minlength=len(classes))
    return ClassCounts(images, len(source), int((lengths == 0).sum()))


def count_indicators(source: Dataset, columns: Sequence[str]) -> ClassCounts:
    """Count the images of each class in columns of 0 and 1, in the order of `columns`."""
    present = np.stack([numbers(source, column) for column in columns], axis=1)  # (N, classes)
    return ClassCounts(present.sum(axis=0), len(source), int((present.sum(axis=1) == 0).sum()))
