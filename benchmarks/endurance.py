"""Memory of a long pre-training run on a stream, and the share of its time in which it waits for data (atto).

    python -m benchmarks.endurance

Runs the training script itself, with checkpoints and pictures. Memory is that of the process and its workers, read
from the operating system twice a second.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.loader import write_photographs
from benchmarks.shared.measure import Row, parse_arguments, report
from training.evaluation.pictures import read_metrics

EVERY = 50  # steps between rows


def main() -> None:
    args = parse_arguments(str(__doc__), sizes=["atto"], batch_size=2, num_workers=1, images=2000, steps=5000)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder, "images"), (500, 375), args.images)
        output = Path(folder, "out")
        settings = {
            "dataset_name": f"{folder}/images",
            "output_dir": output,
            "model_size": args.sizes[0],
            "streaming": "true",
            "max_train_steps": args.steps,
            "per_device_train_batch_size": args.batch_size,
            "num_workers": args.num_workers,
            "logging_steps": EVERY,
            "checkpointing_steps": max(args.steps // 10, 1),
            "checkpoints_total_limit": 2,
        }
        command = [sys.executable, "training/pretrain.py", *(f"--{key}={value}" for key, value in settings.items())]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        rows = watch(process, output / "metrics.jsonl")
        logged = {line["step"]: line for line in losses(output / "metrics.jsonl")}
    if process.returncode:
        sys.exit(process.returncode)
    for row in rows:
        line = logged[row["step"]]
        row |= {"images/s": line["images_per_second"], "waiting for data": line["data_wait"]}
    report(rows, args.output)


def watch(process: subprocess.Popen[bytes], log: Path) -> list[Row]:
    """For every line of the log: the peak and mean MiB of the run and its workers since the line before."""
    rows: list[Row] = []
    held: list[float] = []
    while process.poll() is None:
        time.sleep(0.5)
        held.append(memory_of(process.pid))
        lines = losses(log) if log.exists() else []
        if lines and (not rows or lines[-1]["step"] > rows[-1]["step"]):
            rows.append({"step": lines[-1]["step"], "MiB, most": max(held), "MiB, mean": sum(held) / len(held)})
            held = []
    return rows


def losses(log: Path) -> list[dict[str, Any]]:
    """The lines of a log that report training steps."""
    return [line for line in read_metrics(log) if "data_wait" in line]


def memory_of(number: int) -> float:
    """MiB of physical memory of a process and its children. Memory that several share counts once for each."""
    try:
        process = psutil.Process(number)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 2**20
    except psutil.NoSuchProcess:
        return 0.0


if __name__ == "__main__":
    main()
