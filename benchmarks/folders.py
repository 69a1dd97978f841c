"""Seconds from the start to the first step on a folder of images, by phase, beside `load_dataset("imagefolder")`.

    python -m benchmarks.folders
    python -m benchmarks.folders --files 10000 100000 1000000 --limit 900

The files are hard links to photographs of 64 x 64 pixels in 1,000 folders of classes at most. A second run finds what
the first one kept. Processor time includes the processes that decode, and is the better figure on a busy machine.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.shared.measure import Call, Row, parse_arguments, peak_memory, report
from benchmarks.shared.photographs import photographs
from training.data.folders.listing import list_folder
from training.data.folders.rows import image_rows

LINKS = 60_000  # hard links to one file; ext4 allows 65,000
LOAD = (
    "import json, sys, time; from datasets import disable_progress_bars, load_dataset; "
    "disable_progress_bars(); start = time.perf_counter(); load_dataset('imagefolder', data_dir=sys.argv[1]); "
    "print(json.dumps(time.perf_counter() - start))"
)


COLUMNS = {
    "rows": "rows, s",
    "check": "check, s",
    "first batch": "first batch, s",
    "first step": "first step, s",
    "processor": "of these, processor time, s",
    "second process": "rows and check of the second process, s",
}


def main() -> None:
    args = parse_arguments(str(__doc__), files=[10_000], processes=[1, 2], num_workers=2, limit=900, folder="")
    rows: list[Row] = []
    for count in args.files:
        with tempfile.TemporaryDirectory(dir=args.folder or None) as scratch:
            folder = Path(scratch, "images")
            write_folder(folder, count)
            rows += starts(folder, Path(scratch), args, f"{count:,}")
            walk = {"rows": plain_walk(folder)}
            rows.append(as_row(f"{count:,}", "os.walk, sorted", "", walk))
            memory = peak_memory(prepare_rows, str(folder), scratch)
            print(f"Memory of listing {count:,} files: {memory:.0f} MiB", flush=True)
            for run in ("first", "second"):
                listed = stock_load(folder, Path(scratch, "cache_stock"), args.limit)
                rows.append(as_row(f"{count:,}", "load_dataset", run, {"rows": listed}))
    report(rows, args.output)


def starts(folder: Path, scratch: Path, args: Any, count: str) -> list[Row]:
    """A first and a second start with each number of training processes."""
    rows = []
    for processes in args.processes:
        for run in ("first", "second"):
            phases = start_of(folder, scratch / f"cache_{processes}", processes, args.num_workers)
            rows.append(as_row(count, f"ours, {processes} process{'es' if processes > 1 else ''}", run, phases))
            print(rows[-1], flush=True)
    return rows


def as_row(count: str, what: str, run: str, phases: dict[str, Any]) -> Row:
    """A line of the table."""
    return {"files": count, "what": what, "run": run} | {name: phases.get(key, "") for key, name in COLUMNS.items()}


def write_folder(folder: Path, count: int) -> None:
    """Write `count` links to photographs, distributed over the class folders."""
    num_classes = min(1000, count // 100)
    for label in range(num_classes):
        (folder / f"class_{label:04d}").mkdir(parents=True)
    source = folder.parent / "photograph"
    for number in range(count):
        if number % LINKS == 0:
            source = folder.parent / f"photograph_{number}.jpg"
            kinds = photographs()
            kinds[number // LINKS % len(kinds)].resize((64, 64), Image.Resampling.BICUBIC).save(source)
        os.link(source, folder / f"class_{number % num_classes:04d}/{number:07d}.jpg")


def start_of(folder: Path, cache: Path, processes: int, num_workers: int) -> dict[str, float]:
    """Seconds of each phase up to the end of the first step, in fresh processes."""
    output = cache.parent / "phases.json"
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "ACCELERATE_USE_CPU": "true"}
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "benchmarks.shared.folder_phases"]
    subprocess.run([*command, str(folder), str(output), str(num_workers)], env=environment, check=True)
    return json.loads(output.read_text())


def stock_load(folder: Path, cache: Path, limit: int) -> float | str:
    """The seconds of `load_dataset`, or a text if it takes longer than `limit` seconds."""
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache)}
    command = [sys.executable, "-c", LOAD, str(folder)]
    try:
        done = subprocess.run(command, env=environment, check=True, timeout=limit, capture_output=True)
    except subprocess.TimeoutExpired:
        return f"more than {limit}"
    return json.loads(done.stdout)


def plain_walk(folder: Path) -> float:
    """The seconds that listing the file names takes."""
    start = time.perf_counter()
    for _, _, names in os.walk(folder):
        sorted(names)
    return time.perf_counter() - start


def prepare_rows(folder: str, cache: str) -> Call:
    """A call that lists the rows of the folder, to measure its memory."""
    os.environ["HF_DATASETS_CACHE"] = cache
    return lambda: image_rows(list_folder(folder), "train", ["train"])


if __name__ == "__main__":
    main()
