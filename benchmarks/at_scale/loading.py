"""What a data loader worker gives and holds, on shards of photographs, and how long a GPU would wait for it."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from datasets import IterableDataset

from benchmarks.at_scale.quantities import BATCH_MEASURED, SHUFFLE_BUFFER, STEP_MEASURED, WORKER_MEASURED
from benchmarks.at_scale.shards import jpeg_photographs, sizes, write_parquet_shards, write_shards
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


def measure(folder: Path, num_shards: int, images_each: int, seconds: float) -> dict[str, list[Row]]:
    """What a worker gives and holds for each form of shard; the waiting of a GPU with several workers; a hand-over."""
    sources = write(folder, num_shards, images_each)
    rates = [rate_of(form, *sources[form], buffer, seconds) for form in sources for buffer in BUFFERS]
    waits = [wait_of(sources["tar"][0], workers, seconds) for workers in WORKERS]
    return {"loader": rates, "waiting": waits, "handing_over": [handing_over(sources["tar"][0], 5)]}


def write(folder: Path, num_shards: int, images_each: int) -> dict[str, tuple[PretrainDataSettings, float]]:
    """Tar and parquet files of the same photographs: how they are read, and the bytes of an image."""
    encode, count = jpeg_photographs(), num_shards * images_each
    tars = write_shards(folder / "tar", num_shards, images_each, encode)
    parquet = write_parquet_shards(folder / "parquet", num_shards, images_each, encode)
    found = {"tar": (tars, "jpg"), "parquet": (parquet, "image")}
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


def handing_over(data: PretrainDataSettings, rounds: int) -> Row:
    """The time in which the training process takes a batch that a worker has ready; the GPU may compute meanwhile."""
    batches = loader(data, BUFFERS[0], BATCH_MEASURED)
    first = next(batches)
    seconds = []
    for _ in range(rounds):
        time.sleep(2 * BATCH_MEASURED / WORKER_MEASURED)  # until the next one is ready
        start = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - start)
    end(batches)
    taken = statistics.median(seconds)
    row: Row = {"images of a batch": BATCH_MEASURED, "MB": first["pixel_values"].nbytes / 1e6, "ms": 1000 * taken}
    return row | {"images/s at most": round(BATCH_MEASURED / taken)}


def loader(data: PretrainDataSettings, buffer: int, batch_size: int = BATCH) -> TrainBatches:
    """The batches of pre-training at 224 pixels with one data loader worker."""
    data = replace(data, per_device_train_batch_size=batch_size, shuffle_buffer_size=buffer)
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
