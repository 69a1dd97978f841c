"""Timing of alternatives in turn, and their peak memory, each in a process of its own.

A process of its own, because in a shared one the heap that one contender leaves behind changes what the next one pays
for its memory: on a CPU, fresh pages cost an elementwise pass more than its arithmetic.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch

Prepare = Callable[..., Callable[[], object]]


@dataclass
class Result:
    """What one contender took: seconds of each round, and MiB above what it held before its first call."""

    seconds: list[float] = field(default_factory=list)
    peak_memory: float = 0.0


def alternate(contenders: dict[str, tuple], rounds: int, warm_up: int = 2) -> dict[str, Result]:
    """Time `prepare(*arguments)()` of each contender `(prepare, *arguments)`: A B C A B C ..., one at a time.

    `prepare` makes model and batch; neither it nor the first `warm_up` rounds are timed.
    """
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, (prepare, *parameters) in contenders.items():
        connection, remote = context.Pipe()
        process = context.Process(target=_serve, args=(remote, torch.get_num_threads(), prepare, parameters))
        process.start()
        remote.close()
        connection.recv()  # made ready one after the other, so that nobody works while another one does
        workers[name] = connection, process
    results = {name: Result() for name in contenders}
    for index in range(warm_up + rounds):
        for name, (connection, _) in workers.items():
            connection.send(True)
            seconds = connection.recv()
            if index >= warm_up:
                results[name].seconds.append(seconds)
    for name, (connection, process) in workers.items():
        connection.send(False)
        results[name].peak_memory = connection.recv()
        process.join()
    return results


def _serve(connection: Connection, threads: int, prepare: Prepare, parameters: list) -> None:
    torch.set_num_threads(threads)
    call = prepare(*parameters)
    before = _reset_peak()
    connection.send(True)
    while connection.recv():
        call()  # untimed: the others have had the caches since this one's last turn
        start = time.perf_counter()
        call()
        connection.send(time.perf_counter() - start)
    connection.send((_peak_kib() - before) / 1024)


def _reset_peak() -> int:
    """Forget the peak so far where the system can (Linux), so that making the model does not hide that of the calls."""
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


def speed_up(slow: Result, fast: Result) -> str:
    """Median, least and greatest ratio slow / fast of the rounds, pair by pair."""
    ratios = [a / b for a, b in zip(slow.seconds, fast.seconds, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def parse_arguments(description: str, **defaults: object) -> argparse.Namespace:
    """Flags shared by the benchmarks: `--rounds`, `--threads`, `--output`, and one for each default given."""
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
    machine = f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"\n{machine}\n")
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
