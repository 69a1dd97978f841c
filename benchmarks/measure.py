"""Timing of alternatives in turn, in one process, and peak memory of each in a process of its own."""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def alternate(contenders: dict[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each call, `rounds` of them for each contender, A B C A B C ..., after `warm_up` uncounted rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(warm_up + rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            if index >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def speed_up(slow: list[float], fast: list[float]) -> tuple[float, float, float]:
    """Least, median and greatest ratio slow / fast of the rounds, pair by pair."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return min(ratios), statistics.median(ratios), max(ratios)


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments: object, calls: int = 2) -> float:
    """MiB by which `calls` calls of what `prepare(*arguments)` returns raise the largest resident size.

    In a fresh process: `prepare` makes model and batch, and what they take is not counted.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_measure_peak, args=(queue, torch.get_num_threads(), prepare, arguments, calls))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"The process that measures memory ended with exit code {process.exitcode}.")
    return queue.get()


def _measure_peak(queue, threads: int, prepare: Callable, arguments: tuple, calls: int) -> None:
    torch.set_num_threads(threads)
    call = prepare(*arguments)
    before = _reset_peak()
    for _ in range(calls):
        call()
    queue.put((_peak_kib() - before) / 1024)


def _reset_peak() -> int:
    """Forget the peak so far where the system can (Linux), so that building the model does not hide the calls' peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _peak_kib()


def _peak_kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def arguments(description: str, **defaults: object) -> argparse.Namespace:
    """Flags shared by the benchmarks: `--rounds`, `--threads`, `--output` and one for each default given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds of alternating calls")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="torch threads")
    parser.add_argument("--output", type=Path, help="also write the rows to this JSON file")
    for name, value in defaults.items():
        if isinstance(value, list):
            parser.add_argument(f"--{name}", type=type(value[0]), nargs="+", default=value)
        else:
            parser.add_argument(f"--{name}", type=type(value), default=value)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    return parsed


def report(rows: list[dict[str, object]], output: Path | None) -> None:
    """Print rows as a Markdown table under a line about the machine, and write them to `output` if given."""
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"\n{machine}\n")
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
