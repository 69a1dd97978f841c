"""How well a stream is shuffled: the images of a batch beside those of a batch out of all images, by simulation.

The readers deal and shuffle as in training; instead of images they read numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from benchmarks.shared.measure import Row
from training.data.streams import Place, Reader

NUM_CLASSES = 1000
SEED = 0


@dataclass(frozen=True)
class NumberReader(Reader):
    """A reader of shards that hold the numbers from 0 to `num_images`, in order."""

    num_images: int = 0

    def rows(self, shard: int, skip: int, done: int) -> Iterator[dict[str, Any]]:
        first, end = (number * self.num_images // self.num_shards for number in (shard, shard + 1))
        return ({"number": number} for number in range(first + skip + done, end))


class Shards(NamedTuple):
    """What a reader asks of its source here."""

    num_shards: int


def batches(
    num_images: int, num_shards: int, gpus: int, workers: int, batch_size: int, buffer: int, count: int
) -> list[np.ndarray]:
    """The numbers in the first batches of all GPUs together; the workers of a GPU give its part in turn."""
    source: Any = Shards(num_shards)
    streams = [
        NumberReader(source, reader, gpus * workers, SEED, buffer, num_images).examples(Place())
        for reader in range(gpus * workers)
    ]
    found = []
    for step in range(count):
        parts = [streams[gpu * workers + step % workers] for gpu in range(gpus)]
        taken = [example.row["number"] for part in parts for example, _ in islice(part, batch_size // gpus)]
        found.append(np.array(taken))
    return found


def statistics(found: list[np.ndarray], classes: np.ndarray) -> tuple[float, float]:
    """Mean number of classes in a batch, and mean share of its images whose successor in the files is in it too."""
    distinct = [len(np.unique(classes[batch])) for batch in found]
    together = [np.isin(batch + 1, batch).mean() for batch in found]
    return float(np.mean(distinct)), float(np.mean(together))


def fully_shuffled(num_images: int, batch_size: int, count: int) -> list[np.ndarray]:
    """The first batches of a random order of all images."""
    order = np.random.default_rng(SEED).permutation(num_images)
    return [order[step * batch_size : (step + 1) * batch_size] for step in range(count)]


def compare(cases: list[tuple[int, int, int]], num_images: int, workers: int, batch_size: int, count: int) -> list[Row]:
    """A row for each case of GPUs, shards and buffer, and one for a full shuffle."""
    by_class = np.arange(num_images) * NUM_CLASSES // num_images
    mixed = np.random.default_rng(SEED).permutation(by_class)
    rows: list[Row] = []
    everything = fully_shuffled(num_images, batch_size, count)
    settings: list[tuple[Any, Any, Any]] = [("any", "full shuffle", ""), *cases]
    for gpus, num_shards, buffer in settings:
        found = (
            everything if buffer == "" else batches(num_images, num_shards, gpus, workers, batch_size, buffer, count)
        )
        classes, together = statistics(found, by_class)
        row: Row = {"GPUs": gpus, "shards": num_shards, "buffer": buffer}
        row["classes in a batch, files sorted by class"] = round(classes)
        row["classes in a batch, mixed before they were written"] = round(statistics(found, mixed)[0])
        row["images with their successor"] = f"{together:.1%}"
        rows.append(row)
        print(row, flush=True)
    return rows
