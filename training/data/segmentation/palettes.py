"""The colours of palettes in masks, which tell whether a number is the same class in each file."""

from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from training.data.decoding import file_of
from training.data.samples import name_of
from training.data.segmentation.masks import open_file
from training.settings.checks import check
from training.settings.data import MaskedDataSettings

Color = tuple[int, ...]


def colors_of(value: Any, numbers: np.ndarray) -> list[Color]:
    """The colours `(red, green, blue)` of numbers in a mask that can be read; empty if it has no palette."""
    path, content = file_of(value)
    if not isinstance(content, bytes | None):
        return []
    picture = open_file(path, content)
    palette = picture.getpalette("RGB") if picture.mode == "P" else None
    if palette is None:
        return []
    whole = np.zeros((256, 3), np.int64)
    whole.reshape(-1)[: len(palette)] = palette
    return [tuple(color) for color in whole[numbers].tolist()]


def refuse_other_palettes(masks: pa.Table, source: Dataset, data: MaskedDataSettings) -> None:
    """Raise if a colour is one number in some mask and another number in another one, by their records.

    Programs that reduce an image to few colours order the palette of each file anew: the masks look right, but their
    numbers are other classes in each. With `mask_values`, the user has said what the numbers are.
    """
    if data.mask_values is not None:
        return
    first: dict[Color, tuple[int, int]] = {}  # the number of a colour, and the row that has it
    for row, (numbers, colors) in enumerate(zip(masks["stored"].to_pylist(), masks["colors"].to_pylist(), strict=True)):
        of_row: dict[Color, list[int]] = {}
        for number, color in zip(numbers, map(tuple, colors), strict=False):
            of_row.setdefault(color, []).append(number)
        for color, (number, *others) in of_row.items():
            before, other_row = first.setdefault(color, (number, row))
            if number != before and not others:
                refuse_palette(color, (before, number), [source[found] for found in (other_row, row)], data)


def refuse_palette(
    color: Color, numbers: tuple[int, int], rows: list[dict[str, Any]], data: MaskedDataSettings
) -> None:
    """Raise for a colour that is one number in the mask of one row, and another in that of another row."""
    names = [name_of(row[data.image_column], "an image") for row in rows]
    told = " and ".join(f"{number} in that of {name}" for number, name in zip(numbers, names, strict=True))
    rule = (
        f"hold masks in which a colour is one number throughout, but {color} is {told}: their palettes differ. Save "
        "class numbers without a palette; if the numbers are right and the colours alone differ, list the numbers with "
        "`--mask_values`"
    )
    check("annotation_column", data.annotation_column, False, rule)
