"""Samples and loaders: rows of a source to tensors, in training (endless, resumable) and in evaluation."""

import atexit
import copy
import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset

from training.augment import BatchMixer, Transform
from training.config import DataConfig, EvaluationConfig, TrainingConfig, check
from training.images import BadImageError, Enough, content_key, decode_image, drop_bad_images
from training.sampling import StepSampler, sample_seed, seeded
from training.sources import Source, array_dtype, load_source

Batch = dict[str, Tensor]


@dataclass
class Samples:
    """How a row of a source becomes a sample: all that a worker process needs."""

    image_column: str
    num_channels: int
    dtype: str | None  # of images that come as arrays
    transform: Transform
    seed: int = 0
    num_cells: int | None = None  # pre-training: draw mask noise (num_cells,)
    label_column: str | None = None
    label_mapping: dict[Any, int] | None = None
    num_labels: int = 0
    enough: Enough | None = None  # larger images may be decoded smaller

    def __call__(self, row: dict[str, Any], *key: int) -> dict[str, Any]:
        """`pixel_values`, with `noise` or `labels`; crop, flip and noise depend on the seed and the key alone."""
        value, name = row[self.image_column], f"example {key[-1]}"
        image = decode_image(value, self.num_channels, name, self.dtype, self.enough)
        sample: dict[str, Any] = {"seed": sample_seed(self.seed, *key)}
        with seeded(sample["seed"]):
            sample["pixel_values"] = self.transform(image)
            if self.num_cells is not None:
                sample["noise"] = torch.rand(self.num_cells)
        if self.label_column is not None:
            sample["labels"] = self.label(row[self.label_column])
        return sample

    def label(self, value: Any) -> int:
        """The model's class for a value of the label column."""
        label = value if self.label_mapping is None else self.label_mapping.get(value)
        is_class = isinstance(label, int) and 0 <= label < self.num_labels
        check(str(self.label_column), value, is_class, f"be a class in [0, `num_labels` (={self.num_labels}))")
        assert isinstance(label, int)
        return int(label)  # of a bool column too


class MapSamples(TorchDataset[dict[str, Any]]):
    """A map-style source by (epoch, index), or by index in evaluation."""

    def __init__(self, source: Dataset, samples: Samples) -> None:
        columns = [column for column in (samples.image_column, samples.label_column) if column]
        self.source = source.select_columns(columns)
        self.samples = samples

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        epoch, index = (0, key) if isinstance(key, int) else key
        return self.samples(self.source[index], epoch, index)


class StreamSamples(TorchIterableDataset[dict[str, Any]]):
    """A streamed source, epoch after epoch (`epochs` None: without end), less the first `skip` samples of a worker."""

    def __init__(self, source: IterableDataset, samples: Samples, config: DataConfig, epochs: int | None, skip: int):
        self.source = source
        self.samples = samples
        self.config = config
        self.epochs = epochs
        self.skip = skip

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yielded = bad = 0
        source = copy.deepcopy(self.source)  # `datasets` shares the epoch among workers, which reach its end apart
        for epoch in itertools.count() if self.epochs is None else range(self.epochs):
            source.set_epoch(epoch)
            position = -1
            for position, row in enumerate(source):
                # A skipped image is no sample: it must be known again on resume.
                if yielded < self.skip and not self.config.skip_bad_images:
                    yielded += 1
                    continue
                try:
                    sample = self.samples(row, epoch, content_key(row[self.config.image_column]))
                except BadImageError as error:
                    bad += 1
                    self.report(error, bad, position)
                    continue
                yielded += 1
                if yielded > self.skip:
                    yield sample
            check("dataset_name", self.config.dataset_name, position >= 0, "hold examples for every process")

    def report(self, error: BadImageError, bad: int, position: int) -> None:
        """Count and name a bad image, or stop at it; each worker counts its own."""
        place = f"Position {position} of this worker's stream: {error}"
        if not self.config.skip_bad_images:
            raise ValueError(f"{place} `--skip_bad_images` skips such images.") from error
        if bad > self.config.max_bad_images:
            raise ValueError(f"`max_bad_images` (={self.config.max_bad_images}) is exceeded. {place}") from error
        print(f"Skipping bad image {bad}. {place}", flush=True)


class Collator:
    """Samples to a batch; mixup and cutmix are drawn by the seed of its first sample."""

    def __init__(self, mixer: BatchMixer | None = None) -> None:
        self.mixer = mixer

    def __call__(self, samples: list[dict[str, Any]]) -> Batch:
        seed = samples[0]["seed"]
        batch = default_collate([{key: sample[key] for key in sample if key != "seed"} for sample in samples])
        if self.mixer is None:
            return batch
        with seeded(sample_seed(seed, len(samples))):
            return self.mixer(batch)


def load_images(config: DataConfig, split: str, max_samples: int | None, num_channels: int) -> Source:
    """A split with its unreadable images found (map-style), and left out if that is allowed."""
    source = load_source(config, split, max_samples)
    if isinstance(source, Dataset):
        check("dataset_name", config.dataset_name, len(source) > 0, f"hold examples in its split `{split}`")
        if config.check_images:
            return drop_bad_images(source, config, num_channels)
    return source


def make_samples(config: DataConfig, source: Source, num_channels: int, transform: Transform, **fields: Any) -> Samples:
    """How the rows of this source become samples."""
    dtype = array_dtype(source, config.image_column)
    return Samples(config.image_column, num_channels, dtype, transform, config.seed, **fields)


def train_batches(
    source: Source,
    samples: Samples,
    config: TrainingConfig,
    collate: Callable[[list[dict[str, Any]]], Batch],
    rank: int,
    num_processes: int,
    start_step: int,
) -> Iterator[Batch]:
    """This process's batches without end, from optimizer step `start_step` (from 0) on, as if it had run up to there.

    Not for `accelerator.prepare`, which would split them a second time.
    """
    # With a generator of its own, starting the loader draws nothing from the one that a checkpoint restores.
    options: dict[str, Any] = {"collate_fn": collate, "pin_memory": torch.cuda.is_available()}
    options |= {"generator": torch.Generator(), "worker_init_fn": ignore_stop_signals}
    atexit.register(kill_workers)
    if isinstance(source, Dataset):
        sampler = StepSampler(
            len(source),
            config.per_device_train_batch_size,
            config.gradient_accumulation_steps,
            rank,
            num_processes,
            config.seed,
            start_step,
        )
        dataset = MapSamples(source, samples)
        return iter(DataLoader(dataset, batch_sampler=sampler, num_workers=config.num_workers, **options))
    shuffled = source.shuffle(seed=config.seed, buffer_size=config.shuffle_buffer_size)
    shard = split_dataset_by_node(shuffled, rank=rank, world_size=num_processes)
    num_workers = min(config.num_workers, shard.num_shards)  # `datasets` gives a worker whole shards
    # Batches come from the workers in turn: restart where it is the first worker's turn, then drop what was seen.
    done, turns = start_step * config.gradient_accumulation_steps, max(num_workers, 1)
    skip = done // turns * config.per_device_train_batch_size
    stream = StreamSamples(shard, samples, config, None, skip)
    loader = DataLoader(stream, config.per_device_train_batch_size, num_workers=num_workers, **options)
    return itertools.islice(loader, done % turns, None)


def first_samples(source: Source, samples: Samples, config: DataConfig, count: int) -> Batch:
    """A batch of the first samples of a source, as they come in the first epoch, for a picture."""
    if isinstance(source, Dataset):
        dataset = MapSamples(source, samples)
        return Collator()([dataset[index] for index in range(min(count, len(dataset)))])
    return Collator()(list(itertools.islice(StreamSamples(source, samples, config, 1, 0), count)))


def ignore_stop_signals(worker: int) -> None:
    """Keep a worker loading when its whole process group is told to stop: the step under way needs its batches."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def kill_workers() -> None:
    """End workers that are left when a program fails: it would send them the signal that they ignore, and wait."""
    for worker in multiprocessing.active_children():
        worker.kill()


def eval_loader(source: Source, samples: Samples, config: EvaluationConfig) -> DataLoader[Any]:
    """Batches of a split, once, in order: for `accelerator.prepare` and `gather_for_metrics`."""
    batch_size = config.per_device_eval_batch_size
    options: dict[str, Any] = {"collate_fn": Collator(), "generator": torch.Generator()}
    if isinstance(source, Dataset):
        return DataLoader(MapSamples(source, samples), batch_size, num_workers=config.num_workers, **options)
    stream = StreamSamples(source, samples, config, 1, 0)
    return DataLoader(stream, batch_size, num_workers=min(config.num_workers, source.num_shards), **options)
