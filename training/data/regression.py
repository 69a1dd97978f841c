"""Images with values: columns of numbers, checked, and the scale on which they are trained."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from training.data.label_readers import ValueReader
from training.data.rows import numbers, refuse_rows
from training.data.sources import Source
from training.data.value_scale import Scale
from training.settings.checks import check

OF_STREAM = 10_000  # examples at the beginning of a stream that its scale is measured on
DIGITS = 6  # of a deviation: the last digits of a mean can differ from machine to machine
LEAST_STEPS = 100  # of float32, in which stored models answer, that a deviation has to be


def check_values(source: Source, image_column: str, columns: Sequence[str]) -> None:
    """Raise if a value is missing or not finite. The values of a stream are checked when they are read."""
    if not isinstance(source, Dataset):
        return
    for column in columns:
        refuse_rows(source, image_column, column, ~np.isfinite(numbers(source, column)), "be a finite number")


def scale_of(source: Source, columns: Sequence[str]) -> Scale:
    """The mean and standard deviation of each column; of a stream, of its first `OF_STREAM` examples.

    Raises a `ValueError` if a column has one value only, or if float32 rounds its values to a few.
    """
    if isinstance(source, Dataset):
        values = np.stack([numbers(source, column) for column in columns], axis=1)
    else:
        values = first_values(source, columns)
    mean, std = values.mean(axis=0), values.std(axis=0)
    steps = np.finfo(np.float32).eps * np.abs(values).max(axis=0)
    for column, middle, deviation, step, value in zip(columns, mean, std, steps, values[0], strict=True):
        rule = f"differ between images to be learnt, but is {value:.6g} in all {len(values):,} of them"
        check(column, value.item(), deviation > 0, rule)
        rule = f"spread more for its size: models answer in float32, in steps of up to {step:.2g} here, and the "
        rule += f"standard deviation is {deviation:.2g}. Subtract an offset from the column, such as {middle:.10g}"
        check(column, value.item(), deviation >= LEAST_STEPS * step, rule)
    return rounded(mean, std)


def first_values(source: Any, columns: Sequence[str]) -> np.ndarray:
    """The values `(N, columns)` of the first examples of a stream in float64. No image is decoded."""
    read = ValueReader(list(columns), **Scale.units(len(columns))._asdict())
    found = []
    for row in itertools.islice(source.select_columns(list(columns)), OF_STREAM):
        read(row)  # names a value that is no number
        found.append([row[column] for column in columns])
    check("dataset_name", "a stream", bool(found), "hold examples")
    return np.array(found, np.float64)


def rounded(mean: np.ndarray, std: np.ndarray) -> Scale:
    """Deviations with `DIGITS` digits, and means to the same decimal places, however large they are."""
    places = [DIGITS - 1 - math.floor(math.log10(deviation)) for deviation in std.tolist()]
    means, deviations = ([round(*pair) for pair in zip(of.tolist(), places, strict=True)] for of in (mean, std))
    return Scale(means, deviations)


def value_notes(source: Dataset, columns: Sequence[str]) -> Iterator[str]:
    """A line on each column: its range, mean and standard deviation."""
    for column in columns:
        values = numbers(source, column)
        spread = f"mean {values.mean():.6g}, standard deviation {values.std():.6g}"
        yield f"`{column}` from {values.min():.6g} to {values.max():.6g}, {spread}"
