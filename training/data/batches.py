"""The endless batches of a training process: processes share no images, and a resume continues where the run stopped.

This module does not use `StatefulDataLoader` of torchdata 0.11, which Accelerate's `use_stateful_dataloader` calls:

- Without data loader workers, it loses the images of a batch when a signal interrupts the wait for that batch.
- It resumes only with the same number of data loader workers, also on a folder.
- In a data loader worker, the random numbers of the transforms start again at a resume.
- The state of a shuffling loader cannot be stored as JSON.
- It loses the same images of a stream at a resume as `datasets` does (see `streams.py`).

`tests/training/data/test_alternatives.py` shows these limits, and fails when one of them is gone.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import IterableDataset as TorchIterableDataset

from training.data.decoding import BadImageError
from training.data.samples import Batch, MapSamples, Samples, refuse_or_skip
from training.data.sampling import Shares, StepSampler, source_seed
from training.data.sources import Source
from training.data.streams import (
    DEALING,
    MAX_EMPTY_EPOCHS,
    Place,
    Reader,
    mixed,
    shards_for,
    tell_of_reads,
    was_dealt_alike,
)
from training.data.workers import can_pin_memory, worker_options
from training.settings.checks import check
from training.settings.data import TrainingDataSettings

State = dict[str, Any]
Key = Sequence[int]  # identifies an example: source, shard, and index in the shard
Problem = tuple[Key, str]  # a bad image and its error message


class ReaderState(NamedTuple):
    """The state of one reader of a stream: its number, its place in each source, and the bad images it has found."""

    number: int
    places: list[Place]
    draws: int = 0
    bad: Sequence[Key] = ()  # each bad image once, even if it is read in several epochs


class TrainBatches:
    """The batches of this training process, from one source or from several.

    `weights` are the sources' shares of the images. Do not pass this object to `accelerator.prepare`, which would split
    the batches a second time.

    `states` holds the `state_dict` of every training process of the run that is resumed; it is empty in a new run. A
    resume on map-style sources loses and repeats no sample, even with another number of training processes, data loader
    workers or images in a batch. A stream can only be resumed with the same number of readers.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        samples: Samples,
        data: TrainingDataSettings,
        collate: Callable[[list[dict[str, Any]]], Batch],
        rank: int,
        num_processes: int,
        states: Sequence[State] = (),
        weights: Sequence[float] = (1,),
    ) -> None:
        streamed = not all(isinstance(source, Dataset) for source in sources)
        self.order = {"streaming": streamed, "seed": data.seed, "mixture_weights": list(weights)}
        self.order |= {"shuffle_buffer_size": data.shuffle_buffer_size} if streamed else {}
        check_order(self.order, states)
        self.samples_seen = states[0]["samples_seen"] if states else 0
        self.total_batch_size = data.per_device_train_batch_size * num_processes
        unnamed = states[rank]["problems"] if rank < len(states) else []
        self.problems: list[Problem] = [(tuple(key), text) for key, text in unnamed]
        self.num_transparent: int = states[rank].get("num_transparent", 0) if rank < len(states) else 0  # of streams
        self.seconds_waited = 0.0
        self.waiting: Callable[[], AbstractContextManager[None]] = nullcontext
        self.readers: list[ReaderState] = []
        self.num_shards: list[int] = []
        # Give the loader its own generator: its start then draws nothing from the one that a checkpoint restores.
        options: dict[str, Any] = {"collate_fn": collate, "pin_memory": can_pin_memory()}
        options |= {"generator": torch.Generator(), **worker_options(data.num_workers)}
        batch_size = data.per_device_train_batch_size
        if not streamed:
            sizes = [len(source) for source in sources]  # type: ignore[arg-type]
            order = StepSampler(sizes, weights, batch_size, rank, num_processes, data.seed, self.samples_seen)
            loader = DataLoader(MapSamples(sources, samples), batch_sampler=order, **options)  # type: ignore[arg-type]
        else:
            num_workers = max(data.num_workers, 1)
            num_readers = num_processes * num_workers
            streams = [shards_for(source, num_readers) for source in sources]  # type: ignore[arg-type]
            self.num_shards = [stream.num_shards for stream in streams]
            for num_shards in self.num_shards if rank == 0 else ():
                tell_of_reads(num_shards, num_readers)
            self.readers = resumed_readers(states, rank, num_processes, num_workers, self.num_shards)
            stream = EndlessStream(streams, samples, data, self.readers, num_readers, weights)
            loader = DataLoader(stream, batch_size, **options)
        self.batches: Iterator[Batch] = iter(loader)

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        with self.waiting():  # an exception that ends the wait does not change the position in the data
            batch = self.fetch()
        self.seconds_waited += time.perf_counter() - start
        self.samples_seen += self.total_batch_size
        if self.readers:  # the readers take turns; the first in the list gives the next batch
            self.readers = [*self.readers[1:], batch.pop("reader")]
            self.problems += batch.pop("problems")
            self.num_transparent += batch.pop("num_transparent")
        return batch

    def fetch(self) -> Batch:
        """Return the next batch.

        If a data loader worker dies while it hands over a batch, the error names it, as PyTorch's own error does.
        """
        try:
            return next(self.batches)
        except (OSError, EOFError) as error:
            workers = {worker.sentinel: worker for worker in getattr(self.batches, "_workers", [])}
            dead = [workers[sentinel] for sentinel in wait(workers, timeout=1)]  # its connections close before it ends
            if not dead:
                raise
            for worker in dead:
                worker.join()  # without it, PyTorch would raise a second error at some later moment
            pids = ", ".join(str(worker.pid) for worker in dead)
            raise RuntimeError(f"DataLoader worker (pid(s) {pids}) exited unexpectedly") from error

    @property
    def bad(self) -> set[Key]:
        """The bad images that this process has skipped so far; the readers of other processes may find them too."""
        return {tuple(key) for reader in self.readers for key in reader.bad}

    def state_dict(self) -> State:
        """The state to resume from after the last batch, which can be stored as JSON."""
        return {
            "samples_seen": self.samples_seen,
            "order": self.order,
            "num_shards": self.num_shards,
            "dealing": DEALING,
            "readers": self.readers,
            "problems": self.problems,
            "num_transparent": self.num_transparent,
        }


def check_order(order: State, states: Sequence[State]) -> None:
    """Raise if a setting that determines the order of the images differs from the checkpoint's."""
    if not states:
        return
    # Checkpoints of earlier versions do not say whether they are of a stream, but only those of a stream have a buffer.
    stored = {"streaming": "shuffle_buffer_size" in states[0]["order"], **states[0]["order"]}
    for name, value in order.items():
        before = stored.get(name)
        check(
            name, value, value == before, f"be {before}, as in the checkpoint: the order of the images follows from it"
        )


def resumed_readers(
    states: Sequence[State], rank: int, num_processes: int, num_workers: int, num_shards: list[int]
) -> list[ReaderState]:
    """The states of this process's readers, in the order of their turns.

    Raises a `ValueError` if the checkpoint has another number of training processes, data loader workers or shards.
    """
    if not states:
        start = [Place()] * len(num_shards)
        return [ReaderState(rank * num_workers + worker, start) for worker in range(num_workers)]
    stored = states[min(rank, len(states) - 1)]
    for name, now, before in (
        ("num_processes", num_processes, len(states)),
        ("num_workers", num_workers, len(stored["readers"])),
        ("dataset_name", f"{num_shards} shards", f"{stored['num_shards']} shards"),
    ):
        check(
            name,
            now,
            now == before,
            f"be {before}, as in the checkpoint: each reader of a stream has a place of its own",
        )
    alike = stored.get("dealing") == DEALING or was_dealt_alike(num_shards, num_processes * num_workers)
    rule = "be of this version: it deals the shards of a stream in another way if they do not divide among its readers"
    check("resume_from_checkpoint", "of an earlier version", alike, rule)
    return [
        ReaderState(number, [Place(*place) for place in places], draws, bad)
        for number, places, draws, bad in stored["readers"]
    ]


class EndlessStream(TorchIterableDataset[dict[str, Any]]):
    """The samples of one training process from streams mixed by weight, each with its reader's state after it.

    `states` holds the state that each data loader worker resumes from, in the order of the workers.
    """

    def __init__(
        self,
        streams: Sequence[IterableDataset],
        samples: Samples,
        data: TrainingDataSettings,
        states: list[ReaderState],
        num_readers: int,
        weights: Sequence[float],
    ) -> None:
        self.streams = streams
        self.samples = samples
        self.data = data
        self.states = states
        self.num_readers = num_readers
        self.weights = weights

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, start, draws, bad = self.states[worker.id if worker is not None else 0]
        seed, block_size = self.data.seed, self.data.shuffle_buffer_size
        readers = [
            Reader(stream, number, self.num_readers, source_seed(seed, source), block_size)
            for source, stream in enumerate(self.streams)
        ]
        problems: list[Problem] = []  # since the last good image
        known = {tuple(key) for key in bad}
        last_good = {source: place.epoch for source, place in enumerate(start)}
        shares = Shares(self.weights, seed, number)
        for source, example, num_draws, places in mixed(readers, shares, draws, start):
            name = f"example {example.index} of shard {example.shard}"
            try:
                sample = self.samples(example.row, name, example.epoch, source, example.shard, example.index)
            except BadImageError as error:
                key = (source, example.shard, example.index)
                if key not in known:
                    known.add(key)
                    bad = (*bad, key)
                    problems.append((key, refuse_or_skip(error, self.data, len(bad))))
                if example.epoch - last_good[source] >= MAX_EMPTY_EPOCHS:
                    raise ValueError(f"A stream must hold good images for every process and worker. {error}") from error
                continue
            last_good[source] = example.epoch
            yield {**sample, "reader": ReaderState(number, places, num_draws, bad), "problems": problems}
            problems = []
