"""The batches of a training process: without end or overlap, and taken up again where they stopped.

Why not `StatefulDataLoader` of torchdata 0.11, which Accelerate's `use_stateful_dataloader` calls: where no workers
load, a wait that a signal ends loses the images of its batch; it goes on with as many workers as before alone, also on
a folder; in a worker, what transforms draw begins again at a resume; the state of a shuffling loader is no JSON; what a
stream loses at a resume (`streams.py`), it loses too. `tests/training/data/test_alternatives.py` shows it, and fails
once it is no longer so.
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
from training.data.streams import MAX_EMPTY_EPOCHS, Place, Reader, mixed, shards_for
from training.data.workers import can_pin_memory, worker_options
from training.settings.checks import check
from training.settings.data import TrainingDataSettings

State = dict[str, Any]
Key = Sequence[int]  # of an example: source, shard and index in it
Problem = tuple[Key, str]  # what is said of a bad image


class ReaderState(NamedTuple):
    """Which of the readers, how far it has come in each source, and the bad images that it has met there."""

    number: int
    places: list[Place]
    draws: int = 0
    bad: Sequence[Key] = ()  # each once, however often it comes


class TrainBatches:
    """This process's batches of one source, or of several, of which `weights` is the share of the images.

    Not for `accelerator.prepare`, which would split them a second time.

    `states` are the `state_dict` of every process to go on from; none at the start. Of a map-style source, no sample is
    lost or repeated whatever the number of processes, workers and images in a batch was. A stream is taken up by as
    many readers as it was left by.
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
        self.order = {"seed": data.seed, "mixture_weights": list(weights)}
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
        # With a generator of its own, starting the loader draws nothing from the one that a checkpoint restores.
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
            self.readers = resumed_readers(states, rank, num_processes, num_workers, self.num_shards)
            stream = EndlessStream(streams, samples, data, self.readers, num_readers, weights)
            loader = DataLoader(stream, batch_size, **options)
        self.batches: Iterator[Batch] = iter(loader)

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        with self.waiting():  # what ends the wait leaves the place in the data as it was
            batch = self.fetch()
        self.seconds_waited += time.perf_counter() - start
        self.samples_seen += self.total_batch_size
        if self.readers:  # they take turns: the next one stays in front
            self.readers = [*self.readers[1:], batch.pop("reader")]
            self.problems += batch.pop("problems")
            self.num_transparent += batch.pop("num_transparent")
        return batch

    def fetch(self) -> Batch:
        """The next batch; a worker that dies while it hands one over is named as at any other moment."""
        try:
            return next(self.batches)
        except (OSError, EOFError) as error:
            workers = {worker.sentinel: worker for worker in getattr(self.batches, "_workers", [])}
            dead = [workers[sentinel] for sentinel in wait(workers, timeout=1)]  # its connections end before it does
            if not dead:
                raise
            for worker in dead:
                worker.join()  # else its end would be another error, wherever this process is by then
            pids = ", ".join(str(worker.pid) for worker in dead)
            raise RuntimeError(f"DataLoader worker (pid(s) {pids}) exited unexpectedly") from error

    @property
    def bad(self) -> set[Key]:
        """The bad images of this process that were left out of the batches so far; other readers may meet them too."""
        return {tuple(key) for reader in self.readers for key in reader.bad}

    def state_dict(self) -> State:
        """What it takes to go on after the last batch, as JSON has it."""
        return {
            "samples_seen": self.samples_seen,
            "order": self.order,
            "num_shards": self.num_shards,
            "readers": self.readers,
            "problems": self.problems,
            "num_transparent": self.num_transparent,
        }


def check_order(order: State, states: Sequence[State]) -> None:
    """Raise unless the order of the images follows from the same settings as before."""
    for name, value in order.items() if states else ():
        before = states[0]["order"].get(name)
        check(
            name, value, value == before, f"be {before}, as in the checkpoint: the order of the images follows from it"
        )


def resumed_readers(
    states: Sequence[State], rank: int, num_processes: int, num_workers: int, num_shards: list[int]
) -> list[ReaderState]:
    """The readers of this process, in the order of their turns; a `ValueError` if there were more or fewer."""
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
    return [
        ReaderState(number, [Place(*place) for place in places], draws, bad)
        for number, places, draws, bad in stored["readers"]
    ]


class EndlessStream(TorchIterableDataset[dict[str, Any]]):
    """The samples of one process out of streams mixed by weight, each with the state of its reader after it.

    `states` are those that the workers go on from, the first worker from the first.
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
