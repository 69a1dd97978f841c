"""What the answers of a run depend on: an unfinished one goes on only if all of it is as it was."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
import glob
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from accelerate import Accelerator
from datasets import Dataset

from training.console.bars import Phase
from training.data.sources import listing_of, values_of
from training.models.loading import stored_config
from training.prediction.images import Images
from training.settings.model import ModelSettings
from training.settings.prediction import PredictDataSettings
from training.settings.scripts import Settings

ROWS = 10_000  # paths in memory


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
    stored = sorted(file for ending in ("json", "safetensors") for file in Path(name).glob(f"*.{ending}"))
    return {
        **record,
        "mixed_precision": accelerator.mixed_precision,  # the setting may leave it to the environment
        **{f"{file.name} of the model": stamp(file) for file in stored},
        "revision of the model": stored_config(name, model.model_revision).get("_commit_hash"),
        "images": images.fingerprint,
        "number of images": images.total,
        "sizes and times of image files": stamp_of_images(images, data.image_column),
        "sizes and times of data files": digest([] if images.root else data_files(data.dataset_name)),
    }


def stamp(file: str | Path) -> list[int]:
    """Size in bytes and time of the last change in ns; empty of what is no local file."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]


def digest(files: Iterable[str]) -> str:
    """A text that differs if one of the files has changed."""
    found = hashlib.sha256()
    for file in files:
        found.update(f"{stamp(file)}".encode())
    return found.hexdigest()[:16]


def stamp_of_images(images: Images, column: str) -> str | None:
    """The same of all images that are files; None of a stream."""
    if not isinstance(images.source, Dataset):
        return None
    paths = file_paths(values_of(images.source, column))
    digests = []
    with Phase("Asking for sizes and times", len(paths)) as phase:
        for start in range(0, len(paths), ROWS):
            some = paths.slice(start, ROWS).to_pylist()
            digests.append(digest(some))
            phase.update(len(some))
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def file_paths(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The paths in a column of images that are not stored in the column itself."""
    if pa.types.is_struct(values.type) and {"bytes", "path"} <= {field.name for field in values.type}:
        path = pc.struct_field(values, "path")
        return path.filter(pc.and_(pc.is_null(pc.struct_field(values, "bytes")), pc.is_valid(path)))
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return values.drop_null()
    return pa.chunked_array([], pa.string())


def data_files(name: str) -> list[str]:
    """The local data files, such as parquet, that a name stands for: a folder, a file or a pattern."""
    if "://" in name:
        return []
    path = os.path.expanduser(name)
    if not os.path.isdir(path):
        return [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True))
    listing = listing_of(path)
    runs = [*listing.tables, *listing.arrays]
    files = [os.path.join(run.folder, file) for run in runs for file in run.names.to_pylist()]
    return [os.path.join(listing.root, file) for file in (*files, *listing.metadata)]
