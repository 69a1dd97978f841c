"""Whether many readers of a stream, stopped and resumed, give every image once and in the same order.

Each training process is simulated by the batches that it would get, one process after the other.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset

from benchmarks.at_scale.shards import numbered_square, write_shards
from benchmarks.shared.measure import Row
from training.data.batches import State, TrainBatches
from training.data.samples import Collator, Samples
from training.data.sources import load_source
from training.data.streams import reads_of_an_epoch
from training.settings.data import PretrainDataSettings

BATCH = 4
Key = tuple[int, int]  # epoch and number of an image


class NumberedSamples(Samples):
    """Samples that say which image and epoch they are of."""

    def __call__(self, row: dict[str, Any], name: str, *key: int) -> dict[str, Any]:
        sample = super().__call__(row, name, *key)
        digits = sample.pop("pixel_values")[:, 0, 0].tolist()
        return {**sample, "key": torch.tensor([key[0], int.from_bytes(bytes(digits), "big")])}


def resume_many(folder: Path, num_readers: int, num_shards: int, images_each: int) -> Row:
    """Read a little more than an epoch, without a stop and with one, and compare."""
    pattern = write_shards(folder / f"{num_shards}_shards", num_shards, images_each, numbered_square)
    start = time.perf_counter()
    each = num_shards * images_each / num_readers / BATCH  # batches of an epoch
    count, stop = int(1.5 * each) + 3, max(1, int(0.6 * each))
    straight = read_all(pattern, num_readers, count)
    stopped = read_all(pattern, num_readers, stop)
    resumed = read_all(pattern, num_readers, count - stop, [state for _, state in stopped])
    same = all(
        whole == before + after for (whole, _), (before, _), (after, _) in zip(straight, stopped, resumed, strict=True)
    )
    return {
        "readers": num_readers,
        "shards": num_shards,
        "images": num_shards * images_each,
        "reads of a shard in an epoch": reads_of_an_epoch(num_shards, num_readers) / num_shards,
        "every image once": each_once([keys for keys, _ in straight], num_shards * images_each),
        "stopped after batch": stop,
        "resumed as if not stopped": same,
        "s": time.perf_counter() - start,
    }


def read_all(pattern: str, num_readers: int, count: int, states: Sequence[State] = ()) -> list[tuple[list[Key], State]]:
    """What each reader gives in `count` batches, and its state after them as a checkpoint holds it."""
    fields: dict[str, Any] = {"num_workers": 0, "per_device_train_batch_size": BATCH, "shuffle_buffer_size": 16}
    data = PretrainDataSettings(dataset_name=pattern, image_column="png", streaming=True, **fields)
    source = load_source(data, "train", None)
    assert isinstance(source, IterableDataset)
    samples, found = NumberedSamples("png", 3, None, lambda image: image), []
    for rank in range(num_readers):
        batches = TrainBatches([source], samples, data, Collator(), rank, num_readers, states)
        keys = [(epoch, number) for batch in islice(batches, count) for epoch, number in batch["key"].tolist()]
        found.append((keys, json.loads(json.dumps(batches.state_dict()))))
    return found


def each_once(given: list[list[Key]], num_images: int) -> bool:
    """Whether all readers together give every image of the first epoch, and no image twice in an epoch."""
    times = Counter(key for keys in given for key in keys)
    first = {number for epoch, number in times if epoch == 0}
    return first == set(range(num_images)) and set(times.values()) == {1}
