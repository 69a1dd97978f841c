"""Data loader workers: they survive a stop that is sent to all, end with their program, and are started anyhow."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tests.photographs import forget_accelerate, fresh_accelerate, quick_datasets, write_parquet, write_tiny_fcmae
from tests.small_models import run_python
from training import finetune, pretrain
from training.data import workers
from training.evaluation.pictures import read_metrics
from training.settings.scripts import FinetuneSettings, PretrainSettings

__all__ = ["fresh_accelerate", "quick_datasets"]
ROOT = Path(__file__).parents[3]

# A program of a user's own, with a child process of its own, that uses our batches and fails.
PROGRAM = """
import atexit, multiprocessing, subprocess, sys, time
from pathlib import Path

from datasets import Dataset

from training.data.batches import TrainBatches
from training.settings.scripts import PretrainSettings
from training.data.samples import Collator

class Slow:
    columns = ("image",)
    def __call__(self, row, name, *key):
        time.sleep(600)  # as one that waits for a source that does not answer

def live(file):
    time.sleep(3)
    Path(file).write_text("done")

config = PretrainSettings(dataset_name="x", output_dir="x", num_workers=2, per_device_train_batch_size=4).data
source = Dataset.from_dict({"image": ["x"] * 50})
child = multiprocessing.get_context("fork").Process(target=live, args=(sys.argv[1],))
child.start()
script = "import sys, time, pathlib; time.sleep(3); pathlib.Path(sys.argv[1]).write_text('done')"
subprocess.Popen([sys.executable, "-c", script, sys.argv[2]])
before = atexit._ncallbacks()
batches = [TrainBatches([source], Slow(), config, Collator(), 0, 1) for _ in range(3)]
print(atexit._ncallbacks() - before, *(worker.pid for each in batches for worker in each.batches._workers), flush=True)
time.sleep(1)
print("failed", flush=True)
raise SystemExit(0)
"""


def test_a_program_that_uses_our_batches_ends_with_its_own_children_left_alone(tmp_path):
    start = time.monotonic()
    said = run_python(PROGRAM, tmp_path / "child", tmp_path / "script", cwd=ROOT, timeout=120)
    assert time.monotonic() - start < 100  # the workers sleep for 600
    registered, *pids = map(int, said.splitlines()[0].split())
    assert registered == 1 and len(pids) == 6 and said.splitlines()[1] == "failed"
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert (tmp_path / "child").read_text() == "done"
    deadline = time.monotonic() + 30
    while not (tmp_path / "script").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (tmp_path / "script").read_text() == "done"


def stop_of(number: int, seconds: float) -> int | None:
    """Exit code of a worker that gets a signal, as long as its program goes on and when it ends."""
    ends = workers.RawValue("b", 0)
    ready = multiprocessing.get_context("fork").Event()

    def work():
        workers.start_worker(ends, 0)
        ready.set()
        time.sleep(600)

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    ready.wait()
    os.kill(process.pid, number)
    process.join(seconds)
    outlived = process.exitcode is None
    ends.value = 1
    process.terminate()
    process.join(20)
    assert outlived
    return process.exitcode


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_worker_outlives_signals_until_its_program_ends(name):
    assert stop_of(getattr(signal, name), 0.3) == 0


@pytest.fixture
def start_method():
    before = multiprocessing.get_start_method()
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_datasets", "fresh_accelerate", "start_method")
@pytest.mark.parametrize(("script", "streaming"), [(pretrain, False), (pretrain, True), (finetune, False)])
def test_workers_that_are_spawned_give_the_run_of_workers_that_are_forked(script, streaming, tmp_path):
    """As on macOS and Windows, and with Python 3.14 everywhere."""
    settings = {"dataset_name": str(write_parquet(tmp_path / "images", {"train": 4, "test": 2})), "num_workers": 1}
    settings |= {"streaming": streaming, "per_device_train_batch_size": 4, "max_train_steps": 4, "logging_steps": 1}
    settings |= {"with_tracking": False, "skip_bad_images": True}
    losses, fcmae = {}, str(write_tiny_fcmae(tmp_path / "fcmae"))
    for method in ("fork", "spawn"):
        multiprocessing.set_start_method(method, force=True)
        forget_accelerate()
        folder = tmp_path / method
        if script is pretrain:
            pretrain.main(PretrainSettings(**settings, output_dir=str(folder), model_name_or_path=fcmae))
        else:
            fields = {"num_stages": 2, "eval_split": "test", "mixup": 0.8, "randaugment_num_ops": 2, "image_size": 32}
            finetune.main(FinetuneSettings(**settings, output_dir=str(folder), **fields))
        lines = read_metrics(folder / "metrics.jsonl")
        losses[method] = [(line["step"], line.get("loss"), line.get("eval_loss")) for line in lines]
    assert losses["spawn"] == losses["fork"] and len(losses["fork"]) >= 4
