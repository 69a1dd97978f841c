"""What a data loader worker gives and holds, on shards of photographs, and how long a GPU would wait for it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from datasets import Dataset, Features, IterableDataset
from datasets import Image as ImageFeature

from benchmarks.at_scale.quantities import BATCH_MEASURED, SHUFFLE_BUFFER, STEP_MEASURED
from benchmarks.at_scale.shards import jpeg_photographs, sizes, write_shards
from benchmarks.shared.measure import Row
from hf_convnextv2 import ConvNextV2FCMAEConfig, create_image_processor
from training.data.batches import TrainBatches
from training.data.samples import Batch, Collator, make_samples
from training.data.sources import load_source, rows_of
from training.data.transforms import enough_for_crops, pretraining_transform
from training.settings.augmentation import PretrainAugmentationSettings
from training.settings.data import PretrainDataSettings

BATCH = 16
BUFFERS = (100, SHUFFLE_BUFFER)
WORKERS = (8, 12, 16, 24)  # of a GPU


def measure(folder: Path, num_shards: int, images_each: int, seconds: float) -> tuple[list[Row], list[Row]]:
    """What a worker gives and holds for each form of shard; and the waiting of a GPU with several workers."""
    sources = write(folder, num_shards, images_each)
    rates = [rate_of(form, *sources[form], buffer, seconds) for form in sources for buffer in BUFFERS]
    waits = [wait_of(sources["tar"][0], workers, seconds) for workers in WORKERS]
    return rates, waits


def write(folder: Path, num_shards: int, images_each: int) -> dict[str, tuple[PretrainDataSettings, float]]:
    """Tar and parquet files of the same photographs: how they are read, and the bytes of an image."""
    encode, count = jpeg_photographs(), num_shards * images_each
    tars = write_shards(folder / "tar", num_shards, images_each, encode)
    (folder / "parquet").mkdir()
    images = {"image": [{"bytes": encode(number)[1], "path": None} for number in range(images_each)]}
    table = Dataset.from_dict(images, features=Features({"image": ImageFeature()}))
    for shard in range(num_shards):
        table.to_parquet(folder / f"parquet/train-{shard:05d}.parquet")
    found = {"tar": (tars, "jpg"), "parquet": (f"{folder}/parquet/train-*.parquet", "image")}
    return {form: (settings(name, column), sum(sizes(folder / form)) / count) for form, (name, column) in found.items()}


def settings(name: str, column: str) -> PretrainDataSettings:
    fields: dict[str, Any] = {"num_workers": 1, "per_device_train_batch_size": BATCH}
    return PretrainDataSettings(dataset_name=name, image_column=column, streaming=True, **fields)


def rate_of(form: str, data: PretrainDataSettings, image_bytes: float, buffer: int, seconds: float) -> Row:
    """Images per second of rows alone and of a worker, and the memory that is this worker's own."""
    source = load_source(data, "train", None)
    assert isinstance(source, IterableDataset)
    rows = per_second(rows_of(source.repeat(None)), 1, seconds)
    batches = loader(data, buffer)
    given = per_second(batches, BATCH, seconds)
    (worker,) = psutil.Process().children()
    row: Row = {"shards": form, "buffer": buffer, "bytes of an image": round(image_bytes)}
    row["rows alone, images/s"] = rows
    row["rows alone, MB/s"] = rows * image_bytes / 1e6
    row["worker, images/s"] = given
    row["worker, MiB of its own"] = worker.memory_full_info().uss / 2**20
    print(row, flush=True)
    end(batches)
    return row


def wait_of(data: PretrainDataSettings, workers: int, seconds: float) -> Row:
    """The share of its time that a GPU that trains base waits, if each of its workers gives its part."""
    rate = BATCH_MEASURED / STEP_MEASURED["base"] / workers
    batches = loader(data, SHUFFLE_BUFFER)
    next(batches)
    waited, start = 0.0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - before
        time.sleep(BATCH / rate)
    row: Row = {"workers of a GPU": workers, "images/s of each": rate}
    row["waiting for data"] = f"{waited / (time.perf_counter() - start):.1%}"
    print(row, flush=True)
    end(batches)
    return row


def loader(data: PretrainDataSettings, buffer: int) -> TrainBatches:
    """The batches of pre-training at 224 pixels with one data loader worker."""
    data = PretrainDataSettings(
        dataset_name=data.dataset_name,
        image_column=data.image_column,
        streaming=True,
        num_workers=1,
        per_device_train_batch_size=BATCH,
        shuffle_buffer_size=buffer,
    )
    augmentation, config = PretrainAugmentationSettings(), ConvNextV2FCMAEConfig.from_size("base")
    transform = pretraining_transform(augmentation, 224, create_image_processor(config))
    source = load_source(data, "train", None)
    fields: dict[str, Any] = {"enough": enough_for_crops(augmentation, 224), "num_cells": 49}
    return TrainBatches([source], make_samples(data, source, 3, transform, **fields), data, Collator(), 0, 1)


def per_second(items: Iterator[Batch], images: int, seconds: float) -> float:
    """Images per second after the first item, over so many seconds."""
    next(items)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(items)
        count += images
    return count / (time.perf_counter() - start)


def end(batches: TrainBatches) -> None:
    """End the data loader worker, so that it does not compute beside the next case."""
    loading: Any = batches.batches
    loading._shutdown_workers()
