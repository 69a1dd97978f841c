"""Stops by any signal, without a terminal, before the first step, while data is waited for; checkpoints by time."""

import errno
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.photographs import fcmae, forget_accelerate, fresh_accelerate, quick_datasets, write_folder
from training import pretrain
from training.console.signals import STOPPED, lasting
from training.data.batches import TrainBatches
from training.evaluation.pictures import read_metrics
from training.run import checkpoint_schedule as saving
from training.run.checkpoint_schedule import CheckpointSchedule
from training.run.stopping import stop as stopping
from training.settings.run import CheckpointSettings
from training.settings.scripts import PretrainSettings

__all__ = ["fcmae", "fresh_accelerate", "quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets", "fresh_accelerate")
SETTINGS = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 1, "max_train_steps": 5}
SETTINGS |= {"logging_steps": 1, "reconstruction_steps": 100, "with_tracking": False, "num_workers": 0}
SIGNALS = [name for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


@pytest.fixture(autouse=True)
def hangups_end_programs():
    """As in a shell; under `nohup`, which ignores them, the tests would see a run that does so too."""
    names = [name for name in SIGNALS if name == "SIGHUP"]
    before = {name: signal.signal(getattr(signal, name), signal.SIG_DFL) for name in names}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(write_folder(tmp_path_factory.mktemp("images") / "folder", {"train": 6}))


def run(folder, images, fcmae, **fields):
    forget_accelerate()
    settings = {**SETTINGS, "dataset_name": images, "output_dir": str(folder), "model_name_or_path": fcmae, **fields}
    pretrain.main(PretrainSettings(**settings))
    return folder


@pytest.fixture(scope="module")
def whole(images, fcmae, tmp_path_factory):
    """The run in one go."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        return run(tmp_path_factory.mktemp("whole") / "run", images, fcmae)


def stopped_run(*arguments, **fields):
    with pytest.raises(SystemExit) as stop:
        run(*arguments, **fields)
    assert stop.value.code == STOPPED == 75


def checkpoints(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def assert_same_run(folder, whole):
    losses = [
        [(line["step"], line.get("loss")) for line in read_metrics(each / "metrics.jsonl")] for each in (folder, whole)
    ]
    assert losses[0] == losses[1]
    assert_close(load_file(folder / "model.safetensors"), load_file(whole / "model.safetensors"), rtol=0, atol=0)


def at_batch(monkeypatch, number, action):
    """Do something when a run asks for its batch of that number."""
    fetch, fetched = TrainBatches.fetch, []

    def fetch_and_act(self):
        fetched.append(1)
        if len(fetched) == number:
            action()
        return fetch(self)

    monkeypatch.setattr(TrainBatches, "fetch", fetch_and_act)


def send(name):
    os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize("name", SIGNALS)
def test_any_of_the_signals_saves_the_step_under_way_and_says_how_to_go_on(
    name, whole, images, fcmae, tmp_path, monkeypatch, capfd
):
    with monkeypatch.context() as patched:
        at_batch(patched, 3, lambda: send(name))
        stopped_run(tmp_path / "run", images, fcmae)
    said = capfd.readouterr()
    assert f"{name}: saving after the step under way." in said.err
    saved = tmp_path / "run/checkpoint-3"
    assert f"Saved {saved}; the same command with --resume_from_checkpoint latest goes on.\n" in said.out
    assert checkpoints(tmp_path / "run") == [3]
    if name == "SIGHUP":
        assert_same_run(run(tmp_path / "run", images, fcmae, resume_from_checkpoint="latest"), whole)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP on Windows")
def test_a_hangup_that_nohup_ignores_stays_ignored(images, fcmae, tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "SAME_SIGNAL", 0)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_batch(monkeypatch, 3, lambda: send("SIGHUP"))
        run(tmp_path / "run", images, fcmae)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "run/model.safetensors").is_file() and not checkpoints(tmp_path / "run")


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_before_the_first_step_ends_the_run_with_a_word(name, images, fcmae, tmp_path, monkeypatch, capfd):
    load = pretrain.load_mixture
    monkeypatch.setattr(pretrain, "load_mixture", lambda *arguments: (send(name), load(*arguments))[1])
    before = {each: signal.getsignal(getattr(signal, each)) for each in SIGNALS}
    stopped_run(tmp_path / "run", images, fcmae)
    assert f"{name} before the first step: there is nothing to save." in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
    assert {each: signal.getsignal(getattr(signal, each)) for each in SIGNALS} == before


def test_a_second_interrupt_acts_at_once(images, fcmae, tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "SAME_SIGNAL", 0.2)
    at_batch(monkeypatch, 3, lambda: (send("SIGINT"), send("SIGINT"), time.sleep(0.3), send("SIGINT")))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", images, fcmae)
    assert not checkpoints(tmp_path / "run")


def test_an_interrupt_that_a_launcher_passes_on_is_the_same_one(images, fcmae, tmp_path, monkeypatch):
    """A terminal sends Ctrl-C to the launcher and to its processes, which then get it twice."""
    at_batch(monkeypatch, 3, lambda: (send("SIGINT"), send("SIGINT")))
    stopped_run(tmp_path / "run", images, fcmae)
    assert checkpoints(tmp_path / "run") == [3]


# Waiting for data


def wait_in_vain():
    threading.Timer(0.1, send, ["SIGTERM"]).start()
    time.sleep(60)


def test_a_stop_while_data_is_waited_for_saves_the_step_before(whole, images, fcmae, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        at_batch(patched, 3, wait_in_vain)
        started = time.monotonic()
        stopped_run(tmp_path / "run", images, fcmae)
        assert time.monotonic() - started < 30
    assert checkpoints(tmp_path / "run") == [2]
    assert_same_run(run(tmp_path / "run", images, fcmae, resume_from_checkpoint="latest"), whole)


def test_a_stop_while_the_first_batch_is_waited_for_has_nothing_to_save(images, fcmae, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        at_batch(patched, 1, wait_in_vain)
        stopped_run(tmp_path / "run", images, fcmae)
    assert not checkpoints(tmp_path / "run")
    assert "Stopped before the first step: there is nothing to save." in capsys.readouterr().out


def test_in_the_middle_of_an_accumulated_step_data_is_waited_for(images, fcmae, tmp_path, monkeypatch):
    """What was computed of it cannot be taken back."""
    monkeypatch.setattr(stopping, "PATIENCE", 0.1)
    at_batch(monkeypatch, 4, lambda: (send("SIGTERM"), time.sleep(0.5)))
    stopped_run(tmp_path / "run", images, fcmae, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert checkpoints(tmp_path / "run") == [2]


# A terminal that goes away


@contextmanager
def broken_pipe():
    """A pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1, encoding="utf-8") as stream:
        yield stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def test_a_run_goes_on_and_saves_without_a_reader(images, fcmae, tmp_path, monkeypatch):
    with broken_pipe() as stream, pytest.raises(BrokenPipeError):  # the control
        print("to nobody", file=stream, flush=True)
    at_batch(monkeypatch, 3, lambda: (print("to nobody", flush=True), send("SIGTERM")))
    with broken_pipe() as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        patched.setattr(sys, "stderr", stream)
        stopped_run(tmp_path / "run", images, fcmae)
        assert sys.stdout is sys.stderr is stream
    assert checkpoints(tmp_path / "run") == [3]


def test_what_is_lost_for_another_reason_is_an_error():
    with open("/dev/full", "w", encoding="utf-8") as full:
        stream = lasting(full)
        stream.write("too much")
        with pytest.raises(OSError) as error:
            stream.flush()
        assert error.value.errno == errno.ENOSPC
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


# Checkpoints by time


@pytest.fixture
def clock(monkeypatch):
    hands = SimpleNamespace(now=0.0)
    monkeypatch.setattr(saving, "monotonic", lambda: hands.now)
    return hands


def steps_saved(clock, seconds_to_save=0.0, **fields):
    """The checkpoints that are left of 22 steps of a minute each."""
    rules, left = CheckpointSchedule(CheckpointSettings(**fields)), []
    for step in range(1, 23):
        clock.now += 60
        if rules.is_late() or rules.is_due(step):
            assert not rules.is_late()  # not again before it is written
            rules.begin()
            clock.now += seconds_to_save
            left.append(Path(f"out/checkpoint-{step}"))
            rules.end()
            left = [path for path in left if path not in rules.superseded(left)]
    return [int(path.name.split("-")[1]) for path in left]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [10, 20]),
        ({"checkpointing_minutes": 0}, []),
        ({"checkpointing_minutes": 3}, [18, 21]),  # the newest two
        ({"checkpointing_minutes": 3, "checkpoints_total_limit": 4}, [12, 15, 18, 21]),
        ({"checkpointing_minutes": 3, "checkpointing_steps": 10}, [10, 16, 19, 20]),  # the clock starts again at 10
        ({"checkpointing_minutes": 0, "checkpointing_steps": 6}, [6, 12, 18]),
        ({"seconds_to_save": 30, "checkpointing_minutes": 2, "checkpoints_total_limit": 9}, [2, 12, 22]),  # 20 * 30 s
    ],
)
def test_checkpoints_come_by_time_and_do_not_fill_the_disk(fields, expected, clock):
    assert steps_saved(clock, **fields) == expected


def test_a_run_with_checkpoints_by_time_is_the_run_without(whole, clock, images, fcmae, tmp_path, monkeypatch):
    at_batch(monkeypatch, 3, lambda: setattr(clock, "now", 600.0))
    folder = run(tmp_path / "run", images, fcmae)
    assert checkpoints(folder) == [3] and not checkpoints(whole)
    assert_same_run(folder, whole)
    (folder / "all_results.json").unlink()  # as of a run that was killed
    assert_same_run(run(folder, images, fcmae, resume_from_checkpoint="latest"), whole)
