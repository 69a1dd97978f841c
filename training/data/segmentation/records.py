"""What is noted of each mask of a data set before training: its size, and which numbers it holds."""

from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value

from training.data.checking.columns import Check, check_column
from training.data.checking.images import check_images
from training.data.segmentation.masks import BadMaskError, decode_mask
from training.data.segmentation.palettes import colors_of
from training.settings.data import MaskedDataSettings

# The record of a mask: its problem (empty: none), its size, and each number in it with its pixels and its colour; no
# colours if it has no palette.
RECORD = Features(
    {
        "problem": Value("string"),
        "height": Value("int64"),
        "width": Value("int64"),
        "stored": List(Value("int64")),
        "pixels": List(Value("int64")),
        "colors": List(List(Value("int64"))),
    }
)


def mask_records(source: Dataset, data: MaskedDataSettings) -> pa.Table:
    """The record of each mask of a source."""
    return check_column(source, data.annotation_column, Check("masks", RECORD, check_mask, {}), data)


def numbers_in(masks: pa.Table) -> list[int]:
    """The different numbers in masks, by their records."""
    return sorted({number for numbers in masks["stored"].to_pylist() for number in numbers or []})


def kept_records(source: Dataset, data: MaskedDataSettings, num_channels: int) -> pa.Table:
    """The records of the masks whose images can be read and have the same size; of all, if images are not checked."""
    if not data.check_images:
        return mask_records(source, data)
    checked = check_images(source, data, num_channels)
    records = mask_records(checked.source, data)
    sizes = np.stack([records[side].to_numpy() for side in ("height", "width")], axis=1)
    return records.filter(pa.array((sizes == checked.sizes).all(axis=1)))


def check_mask(value: Any, index: int) -> dict[str, Any]:
    """The record of a mask."""
    try:
        mask = decode_mask(value, f"example {index}")
    except BadMaskError as error:
        return {"problem": str(error), "height": 0, "width": 0, "stored": [], "pixels": [], "colors": []}
    numbers, pixels = np.unique(mask, return_counts=True)
    (height, width), found = mask.shape, {"stored": numbers.astype(int).tolist(), "pixels": pixels.tolist()}
    return {"problem": "", "height": height, "width": width, **found, "colors": colors_of(value, numbers)}
