"""Runs that are killed at any moment, again and again: what they log in the end is what a run in one go logs."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.photographs import (
    VIEWS,
    WRITE_TINY,
    write_masked_parquet,
    write_objects_parquet,
    write_parquet,
)
from tests.training.test_distributed import as_flags
from training.evaluation.pictures import read_metrics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
KILLS = 12  # of each kind of run
HOW = ("kill at the start", "kill", "terminate", "kill while saving")
STEPS = 80
SETTINGS = {
    "max_train_steps": STEPS,
    "warmup_steps": 2,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "ema_decay": 0.9,
    "num_workers": 2,
    "shuffle_buffer_size": 5,
    "logging_steps": 3,
    "checkpointing_steps": 4,
    "checkpoints_total_limit": 2,
    "with_tracking": False,
}
PRETRAIN = {"reconstruction_steps": 7}
SEGMENT = {"num_labels": 3, "image_size": 32, "decoder_hidden_size": 8, "auxiliary_loss_weight": 0}
DETECT = {"image_size": 48, "decoder_hidden_size": 8, "box_head_size": 16, "box_batch_size": 16}
DETECT |= {"anchor_sizes": "8 16 32"}
WRITERS = {"pretrain": write_parquet, "segment": write_masked_parquet, "detect": write_objects_parquet}


def start(output: Path, processes: int, script: str, settings: dict) -> subprocess.Popen[bytes]:
    """A training run in a process group of its own; its output goes to a file beside the folder."""
    named = {**settings, "output_dir": output}
    flags = as_flags(named)
    launch = [] if processes == 1 else ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command = [sys.executable, *launch, f"training/{script}.py", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    with Path(f"{output}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def wait_for(process: subprocess.Popen[bytes], holds, log: Path) -> bool:
    """Whether something came true before the process ended."""
    end = time.monotonic() + 300
    while not holds():
        if process.poll() is not None:
            assert process.returncode in (0, 75), log.read_text()[-3000:]
            return False
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.002)
    return True


def logged(folder: Path) -> list[dict]:
    """The lines of the log without what a clock measured."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "data_wait")} for line in lines]


def interrupt(output: Path, processes: int, script: str, settings: dict, how: str, moment: random.Random) -> str:
    """Start or resume a run and kill it: once it has done a step at a random moment, or in the middle of a save.

    At the start: when its first line is logged, which is before the first checkpoint of a new run. A termination goes
    to launcher and processes alike, as a cluster sends it, and has to leave a checkpoint and the exit code 75.
    """
    log = Path(f"{output}.log")
    process = start(output, processes, script, {**settings, "resume_from_checkpoint": "latest"})
    before = changed_at(output)
    partial = lambda: any(output.glob(".checkpoint-*.partial/*"))  # noqa: E731
    # On a resume the log is cut back to the checkpoint first.
    stepped = lambda: changed_at(output) != before and last_logged(output) > newest_step(output)  # noqa: E731
    moved = partial if how == "kill while saving" else stepped
    alive = wait_for(process, moved, log)
    if not alive:
        return "had ended"
    time.sleep(moment.uniform(0, 0.6) if how in ("kill", "terminate") else 0)
    step = newest_step(output)
    number = signal.SIGTERM if how == "terminate" else signal.SIGKILL
    for each in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(number)
    process.wait(timeout=120)
    if how == "terminate":
        said = log.read_text()[-3000:]
        # torchrun has a code of its own, and now and then aborts while it ends, after its processes have.
        assert process.returncode in ((75,) if processes == 1 else (1, -signal.SIGABRT)), said
        assert newest_step(output) > step or newest_step(output) == STEPS, said
    return how


def changed_at(output: Path) -> int:
    log = output / "metrics.jsonl"
    return log.stat().st_mtime_ns if log.exists() else 0


def last_logged(output: Path) -> int:
    """The step of the last line that is whole."""
    lines = (output / "metrics.jsonl").read_text().split("\n")[:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def newest_step(output: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")), default=0)


@pytest.mark.parametrize(
    ("streaming", "processes", "script", "more", "family"),
    [
        ("false", 1, "pretrain", PRETRAIN, "convnextv2"),
        ("false", 2, "pretrain", PRETRAIN, "convnextv2"),
        ("true", 1, "pretrain", PRETRAIN, "convnextv2"),
        ("true", 2, "pretrain", PRETRAIN, "convnextv2"),
        ("true", 2, "pretrain", PRETRAIN | VIEWS, "convnextv2"),
        ("false", 1, "pretrain", PRETRAIN, "convmae"),
        ("true", 2, "pretrain", PRETRAIN | VIEWS, "convmae"),
        ("false", 1, "segment", SEGMENT, "convnextv2"),
        ("true", 2, "segment", SEGMENT, "convnextv2"),
        ("false", 2, "detect", DETECT, "convnextv2"),
        ("true", 1, "detect", DETECT, "convnextv2"),
    ],
)
def test_a_run_killed_again_and_again_logs_what_an_unbroken_run_logs(
    streaming, processes, script, more, family, tmp_path
):
    settings = {
        **SETTINGS,
        **more,
        "model_name_or_path": WRITE_TINY[family](tmp_path / "pretrained"),
        "dataset_name": WRITERS[script](tmp_path / "parquet", {"train": 9}, files=4),
        "streaming": streaming,
    }
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole, processes, script, settings).wait(timeout=600) == 0, Path(f"{whole}.log").read_text()[-3000:]
    state = json.loads((whole / f"checkpoint-{STEPS}/training_state.json").read_text())
    assert state["num_processes"] == processes and logged(whole)[-1]["step"] == STEPS
    moment, kills = random.Random(f"{streaming} {processes} {script}"), Counter()
    for index in range(KILLS):
        how = HOW[index % len(HOW)]
        kills[interrupt(broken, processes, script, settings, how, moment)] += 1
        assert (broken / "metrics.jsonl").is_file()
    final = start(broken, processes, script, {**settings, "resume_from_checkpoint": "latest"})
    assert final.wait(timeout=600) == 0, Path(f"{broken}.log").read_text()[-3000:]
    print(kills, Path(f"{broken}.log").read_text().count("Resuming from"))
    assert logged(broken) == logged(whole)
    assert "damaged" not in Path(f"{broken}.log").read_text()
    assert_close(load_file(broken / "model.safetensors"), load_file(whole / "model.safetensors"), rtol=0, atol=0)
    assert not list(broken.glob(".*partial*"))
    assert kills["had ended"] == 0
