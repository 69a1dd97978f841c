"""What the answers of a run depend on: an unfinished one goes on only if all of it is as it was."""

import glob
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
from accelerate import Accelerator
from datasets import Dataset

from training.data.checking.store import digest_of_files, stamps_of
from training.data.sources import Source, file_paths, fingerprint_of, listing_of, values_of
from training.models.loading import stored_config
from training.prediction.images import Images
from training.settings.model import ModelSettings
from training.settings.prediction import PredictDataSettings
from training.settings.scripts import Settings

# The files in a model's folder that its answers depend on.
OF_THE_MODEL = ("*config.json", "*.index.json", "*.safetensors", "*.bin")


def record_of(
    accelerator: Accelerator, settings: Settings, model: ModelSettings, data: PredictDataSettings, images: Images
) -> dict[str, Any]:
    """Settings, precision, files of the model and images, by their names; empty in all processes but the first.

    Files count by size and time of their last change, since reading them would take as long as the run.
    """
    if not accelerator.is_main_process:
        return {}
    facts, values = settings.facts(), settings.values()
    record = {name: value for name, value in values.items() if facts[name].affects_result}
    name = model.model_name_or_path or ""
    return {
        **record,
        "mixed_precision": accelerator.mixed_precision,  # the setting may leave it to the environment
        **{f"{file} of the model": stamp for file, stamp in stamps_of_model(name).items()},
        "revision of the model": stored_config(name, model.model_revision).get("_commit_hash"),
        "number of images": images.total,
        **stamps_of_images(images.source, data.image_column, "" if images.root else data.dataset_name),
    }


def stamps_of_images(source: Source, column: str, name: str) -> dict[str, str | None]:
    """What tells images from others without reading them: rows, and the sizes and times of image and data files.

    `name`: what the data set is called in the settings; empty if no data files count. A stream is not read.
    """
    files = file_paths(values_of(source, column)) if isinstance(source, Dataset) else None
    return {
        "images": fingerprint_of(source),
        "sizes and times of image files": digest_of_files(files) if files is not None else None,
        "sizes and times of data files": digest_of_files(pa.chunked_array([data_files(name)], pa.string())),
    }


def stamps_of_model(name: str) -> dict[str, list[int]]:
    """Size in bytes and time of the last change in ns of each file in a model's folder; none of a Hub id."""
    files = sorted(file for pattern in OF_THE_MODEL for file in Path(name).glob(pattern))
    stamps = stamps_of(pa.chunked_array([list(map(str, files))], pa.string()))
    return {
        file.name: list(pair) for file, *pair in zip(files, stamps.sizes.tolist(), stamps.times.tolist(), strict=True)
    }


def data_files(name: str) -> list[str]:
    """The local data files, such as parquet, that a name stands for: a folder, a file or a pattern."""
    if not name or "://" in name:
        return []
    path = os.path.expanduser(name)
    if not os.path.isdir(path):
        return [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True))
    listing = listing_of(path)
    runs = [*listing.tables, *listing.arrays]
    files = [os.path.join(run.folder, file) for run in runs for file in run.names.to_pylist()]
    return [os.path.join(listing.root, file) for file in (*files, *listing.metadata)]
