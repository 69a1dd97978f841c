"""Timing of contenders that take turns in one process, and the peak memory of each in a process of its own.

Each case has a fresh process: the heap left by earlier cases would change the cost of memory in later ones, and on a
CPU, allocating fresh pages can cost an elementwise operation more than its arithmetic.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from training.machine.memory import peak_resident_memory

Call = Callable[[], object]
Row = dict[str, Any]
LIBRARIES = ("torch", "transformers", "timm")
PAUSE = 0.1  # seconds between two turns: the threads of the one before spin for some milliseconds


class Ratio(NamedTuple):
    """How many times as fast one contender is as another, over the rounds."""

    median: float
    least: float
    greatest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.greatest:.2f})"


def alternate(calls: Mapping[str, Call], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of every counted call: A B C A B C ..., after `warm_up` rounds that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(warm_up + rounds):
        for name, call in calls.items():
            spent = seconds_of(call)
            if index >= warm_up:
                seconds[name].append(spent)
    return seconds


def times_as_fast(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """Slow / fast, round by round."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def alternate_apart(contenders: Mapping[str, Callable[[], Call]], rounds: int, calls: int) -> dict[str, list[float]]:
    """Seconds of a call in every round, as `alternate` gives them, with each contender in a process of its own.

    For contenders that keep threads waiting for their next call, which would take time from the others. A contender
    makes its call, in its process. In a round, each has a turn of `calls` calls, after one that is not counted; the
    median counts.
    """
    with contextlib.ExitStack() as stack:
        turns = {name: stack.enter_context(_turns(prepare, calls)) for name, prepare in contenders.items()}
        spent = [{name: turn() for name, turn in turns.items()} for _ in range(1 + rounds)]
    return {name: [each[name] for each in spent[1:]] for name in turns}


@contextlib.contextmanager
def _turns(prepare: Callable[[], Call], calls: int) -> Iterator[Callable[[], float]]:
    """A process that waits for its turns, and a function that gives it one and returns the seconds of a call."""
    process, connection = _start(_take_turns, prepare, calls)
    connection.recv()  # it is ready

    def turn() -> float:
        time.sleep(PAUSE)
        connection.send(True)
        return connection.recv()

    yield turn
    connection.send(False)
    process.join()


def _take_turns(connection: Connection, prepare: Callable[[], Call], calls: int) -> None:
    call = prepare()
    connection.send(True)
    while connection.recv():
        call()
        connection.send(statistics.median(seconds_of(call) for _ in range(calls)))


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function(*arguments)` in a fresh process with the same number of threads, and return its result."""
    process, connection = _start(_answer, function, arguments)
    answer = connection.recv()
    process.join()
    return answer


def _start(target: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """A fresh process with the same number of threads that runs `target(connection, *arguments)`."""
    context = multiprocessing.get_context("spawn")
    connection, remote = context.Pipe()
    process = context.Process(target=_run, args=(remote, torch.get_num_threads(), target, arguments))
    process.start()
    remote.close()
    return process, connection


def _run(connection: Connection, threads: int, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    target(connection, *arguments)


def _answer(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    connection.send(function(*arguments))


def peak_memory(prepare: Callable[..., Call], *arguments: Any, calls: int = 3) -> float:
    """Peak MiB of a few calls in a process of their own, above its memory after `prepare` has made model and batch."""
    return apart(_peak_of, prepare, arguments, calls)


def seconds_of(call: Call) -> float:
    """The seconds of one call. On an accelerator, they are measured between two of its events."""
    if not torch.accelerator.is_available():
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    before, after = torch.Event(enable_timing=True), torch.Event(enable_timing=True)
    before.record()
    call()
    after.record()
    torch.accelerator.synchronize()
    return before.elapsed_time(after) / 1000


def _peak_of(prepare: Callable[..., Call], arguments: tuple[Any, ...], calls: int) -> float:
    call = prepare(*arguments)
    accelerated = torch.accelerator.is_available()
    if accelerated:
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.memory_allocated()
    else:
        before = _forget_peak()
    for _ in range(calls):
        call()
    after = torch.accelerator.max_memory_allocated() if accelerated else _peak()
    return (after - before) / 2**20


def _forget_peak() -> int:
    """Reset the peak memory, so that making the model does not count, and return the resident bytes.

    Only Linux can reset the peak; elsewhere the peak so far is returned.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return peak_resident_memory()


def parse_arguments(description: str, **defaults: Any) -> argparse.Namespace:
    """Flags shared by the benchmarks: `--rounds`, `--threads`, `--output`, and one for each default given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"rounds": 9, "threads": len(os.sched_getaffinity(0)), "output": ""} | defaults
    for name, value in defaults.items():
        several, kind = isinstance(value, list), type(value[0] if isinstance(value, list) else value)
        help_text = f"(default: {value})"
        parser.add_argument(f"--{name}", type=kind, default=value, nargs="+" if several else None, help=help_text)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    return parsed


def report(rows: list[Row], output: str) -> None:
    """Print rows as a Markdown table under a line about the machine, and write them to the file `output` if given."""
    machine = describe_machine()
    print("\n" + ", ".join(f"{value}" for value in machine.values()) + "\n")
    print_rows(rows)
    if output:
        path = Path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = [{key: v._asdict() if isinstance(v, Ratio) else v for key, v in row.items()} for row in rows]
        path.write_text(json.dumps({"machine": machine, "rows": plain}, indent=2) + "\n")


def print_rows(rows: list[Row]) -> None:
    """Print rows as a Markdown table."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()) + " |")


def describe_machine() -> dict[str, str]:
    """A description of the machine and of those libraries of the benchmark that it has."""
    machine = {"processor": _processor(), "threads": f"{torch.get_num_threads()} threads"}
    if torch.accelerator.is_available():
        machine["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "accelerator"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine["memory"] = f"{memory / 2**30:.0f} GiB"
    machine["instructions"] = torch.backends.cpu.get_cpu_capability()
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            machine[library] = f"{library} {importlib.import_module(library).__version__}"
    return machine


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
