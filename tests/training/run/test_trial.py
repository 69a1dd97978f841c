"""What a dry run measures: steps as training takes them, and the wait for data once nothing is loaded ahead."""

from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from training.run import trial
from training.run.dry_run import duration, page
from training.run.plan import Plan
from training.run.trial import Trial, memory

COMPUTE = 1.0  # seconds of a forward and a backward pass


class Clock:
    """Seconds that pass only when somebody says so."""

    now = 0.0

    def perf_counter(self):
        return self.now


class Loader:
    """Batches of workers that load ahead, one in `interval` seconds; the queue is full at the start."""

    def __init__(self, clock, num_workers, interval):
        self.clock, self.interval, self.capacity = clock, interval, 2 * num_workers
        self.ready, self.since, self.seconds_waited = self.capacity, 0.0, 0.0

    def __iter__(self):
        return self

    def __next__(self):
        made = int((self.clock.now - self.since) / self.interval + 1e-9)
        if self.ready + made >= self.capacity:
            self.ready, self.since = self.capacity, self.clock.now
        else:
            self.ready, self.since = self.ready + made, self.since + made * self.interval
        if not self.ready:
            self.seconds_waited += self.since + self.interval - self.clock.now
            self.clock.now = self.since = self.since + self.interval
            self.ready = 1
        self.ready -= 1
        return {"x": torch.ones(1)}


class Model(nn.Module):
    """A weight whose gradient is the batch's number, and a clock that a pass moves on."""

    def __init__(self, clock):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.clock, self.first = clock, 20 * COMPUTE  # as when kernels are compiled: time to load ahead

    def forward(self, x):
        self.clock.now += COMPUTE + self.first
        self.first = 0.0
        return SimpleNamespace(loss=(self.weight * x).sum())


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(trial.time, "perf_counter", clock.perf_counter)
    return clock


PLAN = Plan(num_samples=100, total_batch_size=10, steps_per_epoch=10, max_steps=3600, warmup_steps=0, learning_rate=1)


@pytest.mark.parametrize("num_workers", [0, 1, 2, 8])
@pytest.mark.parametrize(("interval", "expected"), [(4 * COMPUTE, 0.75), (1.25 * COMPUTE, 0.2), (0.5 * COMPUTE, 0.0)])
@pytest.mark.parametrize("passes", [1, 3])
def test_what_was_loaded_ahead_does_not_flatter_the_wait_for_data(num_workers, interval, expected, passes, clock):
    if num_workers == 0:  # each batch is loaded when it is asked for
        expected, loader = interval / (interval + COMPUTE), Loader(clock, 1, interval)
        loader.capacity, loader.ready = 0, 0
        loader.__class__ = type("Direct", (Loader,), {"__next__": direct})
    else:
        loader = Loader(clock, num_workers, interval)
    model, tried = Model(clock), Trial(loader, PLAN, passes, num_workers)
    for _ in tried.steps():
        for batch in islice(loader, passes):
            model(**batch)
    measured = tried.measured
    assert measured["data_wait"] == pytest.approx(expected)
    seconds = passes * COMPUTE / (1 - expected)
    assert measured["seconds_per_step"] == pytest.approx(seconds)
    assert measured["images_per_second"] == pytest.approx(10 / seconds)
    assert measured["hours"] == pytest.approx(seconds)


def direct(self):
    self.clock.now += self.interval
    self.seconds_waited += self.interval
    return {"x": torch.ones(1)}


def test_passes_are_counted_in_whole_steps():
    tried = Trial(SimpleNamespace(), PLAN, passes_per_step=3, num_workers=0)
    taken = tried.take(4)
    assert [next(taken), next(taken)] == [1, 2]
    with pytest.raises(StopIteration) as end:
        next(taken)
    assert end.value.value == 2


def test_memory_counts_weights_gradients_moments_averages_and_teacher():
    model, average = nn.Linear(1000, 1000, bias=False), nn.Linear(1000, 1000, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 1000)).sum().backward()
    optimizer.step()
    held = memory(model, optimizer, [average])["weights_gradients_and_optimizer_MiB"]
    assert held == pytest.approx((2 + 2 + 1) * 4e6 / 2**20, rel=1e-4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59, "59 s"), (3600, "1 h 0 min"), (3 * 86400 + 5 * 3600 + 9, "3 days 5 h"), (754, "12 min 34 s")],
)
def test_a_duration_has_its_two_largest_units(seconds, text):
    assert duration(seconds) == text


def test_a_page_says_when_data_is_what_a_run_waits_for():
    found = {
        "settings": {"dataset_name": "me/images", "train_split": "train", "num_workers": 3, "output_dir": "out"}
        | {"model_name_or_path": None, "model_type": "convnextv2", "model_size": "atto"}
        | {"per_device_train_batch_size": 8}
        | {"gradient_accumulation_steps": 1, "min_learning_rate": 0.0, "lr_scheduler_type": "cosine"},
        "data": [{"streamed": True, "shards": 12}],
        "evaluation_data": None,
        "classes": None,
        "image": {"size": 64, "num_channels": 3},
        "plan": {"max_steps": 10, "total_batch_size": 16, "steps_per_epoch": None, "warmup_steps": 0}
        | {"learning_rate": 1e-3, "lr_steps": []},
        "processes": {"number": 2, "type": "MULTI_GPU"},
        "device": {"type": "cuda", "mixed_precision": "bf16"},
        "learning_rates": {"a": 1e-3, "b": 1e-3},
        "parameters": 1000,
        "memory": {"weights_gradients_and_optimizer_MiB": 1.0, "peak_MiB": 10.0},
        **{"seconds_per_step": 0.5, "images_per_second": 32.0, "data_wait": 0.4, "hours": 1.5},
    }
    text = page(found)
    assert "me/images: a stream of 12 shards of `train` to train on\n" in text
    assert "10 of 16 images (8 in a pass x 2 processes)\n" in text
    assert "40 % of the time for images: try more `--num_workers` than 3" in text
    assert "0.5 s a step, 32.0 images/s: 1 h 30 min for the run" in text
    assert "`--num_workers`" not in page({**found, "data_wait": 0.05}).split("Waiting")[1]
