"""The check of all images before the start: each is decoded once, and what is found is kept for the next run."""

from typing import Any, NamedTuple

from accelerate import PartialState
from datasets import Dataset, Features, Value

from training.config import DataConfig
from training.images import BadImageError, decode_image, fate_of_transparency
from training.sources import array_dtype

# What is kept of each image: what is wrong with it (empty: nothing), and facts that are true or false.
RECORD = Features({"problem": Value("string"), "is_transparent": Value("bool")})


class CheckedImages(NamedTuple):
    """A source without the images that cannot be read, what is wrong with those, and how many have each fact."""

    source: Dataset
    problems: list[str]
    counts: dict[str, int]


def check_images(source: Dataset, config: DataConfig, num_channels: int) -> CheckedImages:
    """Decode every image once.

    The result is kept by `datasets`, so the same images are not checked again.
    """
    checked = source.map(
        check_image,
        with_indices=True,
        input_columns=[config.image_column],
        remove_columns=source.column_names,
        features=RECORD,
        fn_kwargs={"num_channels": num_channels, "dtype": array_dtype(source, config.image_column)},
        num_proc=config.num_workers if config.num_workers > 1 and len(source) > 1000 else None,
        desc="Checking images",
    )
    problems = list(checked["problem"])
    good = [index for index, problem in enumerate(problems) if not problem]
    counts = {name: sum(checked[name]) for name in RECORD if name != "problem"}
    source = source if len(good) == len(source) else source.select(good)
    return CheckedImages(source, [problem for problem in problems if problem], counts)


def check_image(value: Any, index: int, num_channels: int, dtype: str | None) -> dict[str, Any]:
    """The `RECORD` of an image; a wrong number of channels stops at once."""
    try:
        decoded = decode_image(value, num_channels, f"example {index}", dtype)
    except BadImageError as error:
        return {"problem": str(error), "is_transparent": False}
    return {"problem": "", "is_transparent": decoded.is_transparent}


def say_transparent(count: int, total: int, config: DataConfig) -> None:
    """Tell what becomes of the transparent images, if there are any."""
    if count and PartialState().is_main_process:
        print(f"{count:,} of {total:,} images are transparent: {fate_of_transparency(config)}.", flush=True)


def refuse_bad_images(problems: list[str], config: DataConfig) -> None:
    """Raise if there are images that cannot be read, or more than may be left out."""
    count, most = len(problems), config.max_bad_images
    listed = "\n  ".join(problems[:20]) + ("\n  ..." if count > 20 else "")
    if problems and not config.skip_bad_images:
        raise ValueError(f"{count} files cannot be read as images; `--skip_bad_images` skips them:\n  {listed}")
    if count > most:
        raise ValueError(f"`max_bad_images` (={most}) must be at least {count} to skip these:\n  {listed}")
