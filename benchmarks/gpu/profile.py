"""The kernels of one step: how many, how long the device is busy with them, and which are the longest."""

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.contenders import OURS, Case, contenders
from benchmarks.gpu.precision import allow_tf32
from benchmarks.gpu.rows import Rows
from benchmarks.shared.measure import Call, seconds_of

LONGEST = 10
NAME_LENGTH = 100
WARM_UP = 3
LEAST_SECONDS = 20  # for a compiled step, which `speed` may have left in the compiler's cache
ON_DEVICE = {"cuda": ("kernel", "gpu_memcpy", "gpu_memset"), "cpu": ("cpu_op",)}


def run(settings: argparse.Namespace, rows: Rows) -> None:
    """One step eager, one compiled. On a processor, operations stand for kernels, and contain each other."""
    allow_tf32(True, settings.device)
    case = Case.parse(settings.profile_case)
    for mode in settings.modes:
        if mode == "compiled" and rows.seconds_left() < LEAST_SECONDS:
            rows.leave_out(f"{settings.profile_case}:{mode}")
            continue
        call = contenders(case, settings, mode)[OURS]()
        for _ in range(WARM_UP):
            call()
        milliseconds = 1000 * min(seconds_of(call) for _ in range(3))
        rows.add(case=settings.profile_case, mode=mode, **{"ms without the profiler": milliseconds})
        kernels = kernels_of(call, settings.device)
        busy, span = busy_and_span(kernels)
        row: dict[str, Any] = {"case": settings.profile_case, "mode": mode, "kernels": len(kernels)}
        row |= {"ms busy": busy / 1000, "ms from first to last": span / 1000}
        rows.add(**row, **{"share of gaps": share_of_gaps(busy / 1000, milliseconds)})
        for name, (spent, count) in longest(kernels):
            rows.add(mode=mode, kernel=name[:NAME_LENGTH], count=count, ms=spent / 1000)
        torch.compiler.reset()


def kernels_of(call: Call, device: str) -> list[tuple[str, float, float]]:
    """Name, start and microseconds of each kernel and copy of a call."""
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]):
        call()  # the profiler's own start is slow
        synchronize(device)
    with profile(activities=[activity]) as profiler:
        call()
        synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    found = [(e["name"], float(e["ts"]), float(e["dur"])) for e in events if e.get("cat") in ON_DEVICE[device]]
    if not found:
        raise RuntimeError("The profiler saw no kernel: CUPTI must be usable, see the warnings above.")
    return found


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def busy_and_span(kernels: list[tuple[str, float, float]]) -> tuple[float, float]:
    """Time in which at least one kernel runs, and from the first one's start to the last one's end."""
    ends = first = min(start for _, start, _ in kernels)
    busy = 0.0
    for _, start, length in sorted(kernels, key=lambda kernel: kernel[1]):
        busy += max(0.0, start + length - max(start, ends))
        ends = max(ends, start + length)
    return busy, ends - first


def share_of_gaps(busy: float, milliseconds: float) -> float:
    """The share of a call without the profiler, which slows launches down, in which no kernel runs."""
    return max(0.0, 1 - busy / milliseconds)


def longest(kernels: list[tuple[str, float, float]]) -> list[tuple[str, tuple[float, int]]]:
    """The names with the most time, with their time and number."""
    spent: dict[str, list[float]] = defaultdict(list)
    for name, _, length in kernels:
        spent[name].append(length)
    totals = {name: (sum(lengths), len(lengths)) for name, lengths in spent.items()}
    return sorted(totals.items(), key=lambda item: -item[1][0])[:LONGEST]
