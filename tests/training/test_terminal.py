"""Runs in a real terminal: Ctrl-C under `accelerate launch`, which ends first, and a terminal that is closed."""

import contextlib
import os
import pty
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.photographs import write_folder, write_tiny_fcmae
from training.evaluation.pictures import read_metrics
from training.run.checkpoints import find_damage, numbered_folders

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
LAUNCH = {1: ["-m", "accelerate.commands.launch", "--cpu"], 2: ["-m", "torch.distributed.run", "--nproc_per_node", "2"]}


def start_in_terminal(command: list[str], environment: dict[str, str]) -> tuple[int, int]:
    """A command as the leader of a terminal of its own: its process id, and the terminal's other end."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, *command], environment)
    return pid, terminal


def processes_of(folder: Path) -> list[psutil.Process]:
    """The training processes and their workers that still run."""
    found = [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"]]
    return [each for each in found if f"--output_dir={folder}" in each.info["cmdline"]]


def wait_until(holds, terminal: int | None, seconds: float = 240) -> None:
    """Wait, and read what a terminal shows meanwhile: full, it would hold up the run."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        if terminal is not None:
            os.set_blocking(terminal, False)
            with contextlib.suppress(BlockingIOError, OSError):
                os.read(terminal, 1 << 16)
        time.sleep(0.05)


def steps_of(folder: Path) -> list[int]:
    log = folder / "metrics.jsonl"
    return [line["step"] for line in read_metrics(log)] if log.exists() else []


@pytest.mark.parametrize(
    ("processes", "how"), [(1, "Ctrl-C"), (1, "close"), (1, "Ctrl-C and close"), (1, "nohup"), (2, "Ctrl-C and close")]
)
def test_a_run_in_a_terminal_keeps_what_it_has_trained(processes, how, tmp_path):
    out = tmp_path / "out"
    settings = {"model_name_or_path": write_tiny_fcmae(tmp_path / "fcmae"), "max_train_steps": 100_000}
    settings |= {"dataset_name": write_folder(tmp_path / "images", {"train": 6}), "output_dir": out}
    settings |= {"per_device_train_batch_size": 2, "logging_steps": 1, "num_workers": 1, "with_tracking": False}
    command = [*LAUNCH[processes], "training/pretrain.py", *(f"--{key}={value}" for key, value in settings.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    if how == "nohup":
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    pid, terminal = start_in_terminal(command, {**environment, "HF_DATASETS_CACHE": str(tmp_path / "cache")})
    if how == "nohup":
        signal.signal(signal.SIGHUP, before)
    wait_until(lambda: len(steps_of(out)) > 3, terminal)
    if "Ctrl-C" in how:
        os.write(terminal, b"\x03")
    if how != "Ctrl-C":
        os.close(terminal)
        terminal = None
    if how == "nohup":
        wait_until(lambda: len(steps_of(out)) > 20, None)
        assert not numbered_folders(out)
        for process in processes_of(out):
            process.terminate()
    wait_until(lambda: not [each for each in processes_of(out) if each.status() != psutil.STATUS_ZOMBIE], terminal)
    os.waitpid(pid, 0)
    (checkpoint,) = numbered_folders(out)
    assert checkpoint.name == f"checkpoint-{max(steps_of(out))}" and not find_damage(checkpoint)
