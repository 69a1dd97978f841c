"""Runs of the training script through `accelerate launch`, on images that are made here, and what became of them."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).parents[2]
SIDE = 256  # pixels of an image
STOPPED = 75  # exit status of a run that saved and stopped
LINES_BEFORE_STOP = 3
OF_LAUNCHERS = ("CalledProcessError", "ChildFailedError")  # they say no more than that a run failed
LATE = "left out: did not end in its time"
SAME: tuple[dict[str, Any], dict[str, Any]] = ({"mixed_precision": "bf16"}, {"full_determinism": "true"})


class Run(NamedTuple):
    """A started run, its output folder, what it prints, and when it must have ended."""

    process: subprocess.Popen[bytes]
    output: Path
    log: Path
    end: float


class Launcher:
    """Starts runs of `training/pretrain.py` on one folder of images."""

    def __init__(self, settings: argparse.Namespace, folder: Path, end: float) -> None:
        self.end, self.settings, self.folder, self.images = end, settings, folder, folder / "images"
        self.on_gpu = settings.device == "cuda"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.first: Run | None = None

    def __call__(self, name: str, launch: dict[str, Any], flags: dict[str, Any]) -> Run:
        """Start a run with these flags of `accelerate launch` and of the script."""
        output, log, of_script = self.folder / name, self.folder / f"{name}.log", {**self.flags(), **flags}
        if not self.on_gpu:
            launch = {"cpu": None, **launch}
        elif "config_file" not in launch:
            launch = {"config_file": "training/accelerate/one_gpu.yaml", **launch}
        words = [sys.executable, "-m", "accelerate.commands.launch", *as_flags({"num_processes": 1, **launch})]
        words += ["training/pretrain.py", *as_flags({**of_script, "output_dir": output})]
        environment = {**os.environ, "HF_DATASETS_CACHE": str(self.folder / "cache"), "HF_HUB_OFFLINE": "1"}
        with log.open("ab") as file:
            process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=file, stderr=file)
        self.processes.append(process)
        return Run(process, output, log, self.end)

    def whole(self) -> Run:
        """The run that others must be equal to, started when it is first asked for."""
        if self.first is None:
            self.first = self("whole", *SAME)
        return self.first

    def kill_late_runs(self) -> None:
        """Kill what still runs, with the processes that it started."""
        for process in self.processes:
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                process.wait()
                for child in children:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()

    def flags(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "dataset_name": self.images,
            "model_size": settings.training_size,
            "image_size": settings.training_image_size,
            "per_device_train_batch_size": settings.training_batch,
            "max_train_steps": settings.training_steps,
            "warmup_steps": 2,
            "num_workers": settings.training_workers,
            "logging_steps": 1,
            "with_tracking": "false",
        }


def as_flags(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", *([] if value is None else [str(value)]))]


def write_images(folder: Path, count: int) -> None:
    """JPEG files of coarse colours with fine noise: they take as long to decode as photographs."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for index in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = smooth + random.integers(-20, 21, smooth.shape, dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.jpg")


def stop(started: Run) -> str | None:
    """Send SIGTERM to the training process when it has logged a few steps; what went wrong, if something did."""
    while len(lines_of(started)) < LINES_BEFORE_STOP:
        if started.process.poll() is not None:
            return f"ended before it could be stopped: {last_line(started)}"
        if time.monotonic() > started.end:
            return LATE
        time.sleep(0.01)
    children = psutil.Process(started.process.pid).children()
    if not children:
        return "ended before it could be stopped"
    children[0].terminate()
    if not ends_in_time(started):
        return LATE
    said = started.log.read_text(errors="replace")
    if f"exit code {STOPPED}" in said or f"exit status {STOPPED}" in said:
        return None
    return f"did not stop with exit status {STOPPED}: {last_line(started)}"


def finish(started: Run) -> str | None:
    """Wait for a run, and say what went wrong, if something did."""
    if not ends_in_time(started):
        return LATE
    if started.process.returncode != 0:
        return last_line(started)
    losses = [line["loss"] for line in lines_of(started)]
    if not losses or not all(map(isfinite, losses)):
        return f"losses are not finite: {losses[-3:]}"
    return None if (started.output / "model.safetensors").is_file() else "there is no model.safetensors"


def ends_in_time(started: Run) -> bool:
    try:
        started.process.wait(timeout=max(0.0, started.end - time.monotonic()))
    except subprocess.TimeoutExpired:  # the part's own end ends it
        return False
    return True


def difference(one: Run, other: Run) -> str | None:
    """How the losses or the weights of two runs differ, None if they are equal to the bit."""
    losses, others = ({line["step"]: line["loss"] for line in lines_of(each)} for each in (one, other))
    if losses != others:
        step = min(step for step in losses.keys() | others.keys() if losses.get(step) != others.get(step))
        return f"losses differ from step {step} on: {losses.get(step)} and {others.get(step)}"
    equal = (one.output / "model.safetensors").read_bytes() == (other.output / "model.safetensors").read_bytes()
    return None if equal else "weights differ"


def lines_of(started: Run) -> list[dict[str, Any]]:
    """The whole lines of a run's log that report training steps."""
    path = started.output / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if "data_wait" in line]


def last_line(started: Run) -> str:
    lines = [line for line in started.log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if "rror:" in line and not any(name in line for name in OF_LAUNCHERS)]
    return (told or lines or ["it said nothing"])[-1].strip()[:300]


def last_loss(started: Run) -> str:
    lines = lines_of(started)
    return f"last loss {lines[-1]['loss']:.6f}" if lines else ""
