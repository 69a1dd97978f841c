"""Numbers in a column of a source, and an error that names the rows whose values break a rule."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from training.data.samples import name_of
from training.data.sources import values_of
from training.settings.checks import check

MOST_NAMED = 5


def numbers(source: Dataset, column: str) -> np.ndarray:
    """A column `(N,)` in float64; a missing value is NaN."""
    return values_of(source, column).cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()


def refuse_rows(source: Dataset, image_column: str, column: str, bad: np.ndarray, rule: str) -> None:
    """Raise if there are bad rows, with the values and the images of the first ones.

    Args:
        bad: for each row whether it is bad, `(N,)` bool.
    """
    rows = np.flatnonzero(bad)
    if len(rows) == 0:
        return
    first = rows[:MOST_NAMED].tolist()
    few = source.select_columns([image_column, column]).select(first)
    images = [name_of(value, f"example {row}") for value, row in zip(few[image_column], first, strict=True)]
    more = ", ..." if len(rows) > len(first) else ""
    where = f"wrong for {len(rows):,} of {len(source):,} images: {', '.join(images)}{more}"
    check(column, listed(few[column]), False, f"{rule}; {where}")


def listed(values: Sequence[Any]) -> str:
    """Values as text."""
    return ", ".join("missing" if value is None else str(value) for value in values)
