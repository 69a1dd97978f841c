"""Decodes every image once before training starts, and stores the result for later runs."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, Value

from training.data.checking.columns import Check, check_column
from training.data.decoding import BadImageError, decode_image, fate_of_transparency, value_range
from training.data.overview import unusable
from training.data.sources import array_dtype
from training.settings.data import DataSettings

# The record of an image: its problem (empty: none), whether it has transparent pixels, whether its EXIF data turn it,
# its size in pixels, and the range of its values, in which uint8 is 0 to 1.
RECORD = Features(
    {
        "problem": Value("string"),
        "is_transparent": Value("bool"),
        "is_turned": Value("bool"),
        "height": Value("int64"),
        "width": Value("int64"),
        "lowest": Value("float64"),
        "highest": Value("float64"),
    }
)


class CheckedImages(NamedTuple):
    """A source without its unreadable images, their problems, and of the others: how many are transparent or turned."""

    source: Dataset
    problems: list[str]
    num_transparent: int
    num_turned: int
    sizes: np.ndarray  # `(N, 2)`: height and width of each image of the source
    ranges: np.ndarray  # `(N, 2)`: lowest and highest value of each


def check_images(source: Dataset, data: DataSettings, num_channels: int) -> CheckedImages:
    """Decode every image once, except images that an earlier run has checked and that have not changed since."""
    arguments = {"num_channels": num_channels, "dtype": array_dtype(source, data.image_column)}
    records = check_column(source, data.image_column, Check("images", RECORD, check_image, arguments), data)
    is_good = pc.equal(records["problem"], "")
    good = records.filter(is_good)
    sizes, ranges = (
        np.stack([good[name].to_numpy() for name in pair], axis=1)
        for pair in (("height", "width"), ("lowest", "highest"))
    )
    source = source if len(good) == len(records) else source.select(np.flatnonzero(is_good.to_numpy()))
    problems = records["problem"].filter(pc.invert(is_good)).to_pylist()
    num_transparent, num_turned = (pc.sum(good[name]).as_py() or 0 for name in ("is_transparent", "is_turned"))
    return CheckedImages(source, problems, num_transparent, num_turned, sizes, ranges)


def check_image(value: Any, index: int, num_channels: int, dtype: str | None) -> dict[str, Any]:
    """The record of an image; raises a `WrongChannelsError` if it has a wrong number of channels."""
    try:
        decoded = decode_image(value, num_channels, f"example {index}", dtype)
    except BadImageError as error:
        nothing = {"is_transparent": False, "is_turned": False, "height": 0, "width": 0, "lowest": 0.0, "highest": 1.0}
        return {"problem": str(error), **nothing}
    height, width = decoded.pixels.shape[-2:]
    flags = {"is_transparent": decoded.is_transparent, "is_turned": decoded.is_turned}
    lowest, highest = value_range(decoded.pixels)
    return {"problem": "", **flags, "height": height, "width": width, "lowest": lowest, "highest": highest}


def image_notes(
    checked: CheckedImages | None, data: DataSettings, num_channels: int, annotations: str | None = None
) -> list[str]:
    """Lines on what becomes of the images of a split. `annotations`: what there is of each, as a text."""
    notes = transparency_note(checked, data) if num_channels in (1, 3) else []
    if checked is None:
        return notes
    if len(checked.ranges):
        notes += value_note(float(checked.ranges[:, 0].min()), float(checked.ranges[:, 1].max()))
    return notes if annotations is None else [*notes, *rotation_note(checked, annotations)]


def value_note(lowest: float, highest: float) -> list[str]:
    """A line on floats between these values; none if they are in [0, 1], which the usual normalisation is for."""
    if lowest >= 0 and highest <= 1:
        return []
    told = f"values from {lowest:g} to {highest:g} are used as they are: the mean and standard deviation of the image "
    return [f"{told}processor (`--image_mean`, `--image_std`) must be those of such values"]


def transparency_note(checked: CheckedImages | None, data: DataSettings) -> list[str]:
    """A line on what happens to transparent images; none if the check has found no transparent image."""
    if checked is None:
        return [f"images are not checked: transparent ones are {fate_of_transparency(data)}"]
    count, total = checked.num_transparent, len(checked.source)
    return [f"{count:,} of {total:,} images are transparent: {fate_of_transparency(data)}."] if count else []


def rotation_note(checked: CheckedImages, annotations: str) -> list[str]:
    """A line on images that their EXIF data turn, which their annotations must fit; none if there is no such image."""
    count, total = checked.num_turned, len(checked.source)
    told = f"{count:,} of {total:,} images are turned by their EXIF data: {annotations} must fit the turned images"
    return [told] if count else []


def refuse_bad_images(problems: list[str], data: DataSettings) -> None:
    """Raise if there are images that cannot be used and skipping is off, or if there are more than `max_bad_images`."""
    count, most = len(problems), data.max_bad_images
    listed = "\n  ".join(problems[:20]) + ("\n  ..." if count > 20 else "")
    if problems and not data.skip_bad_images:
        raise ValueError(f"{' '.join(unusable(count, data))}; `--skip_bad_images` skips such files:\n  {listed}")
    if count > most:
        raise ValueError(f"`max_bad_images` (={most}) must be at least {count} to skip these:\n  {listed}")
