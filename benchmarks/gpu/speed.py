"""Time and peak memory of our calls next to the peers', which take turns, and next to the least time possible.

The compiled cases come first: those of the first few compile at the same time, each contender in a process of its own.
"""

import argparse
import gc
import time
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.bounds import Rates, measure_rates
from benchmarks.gpu.compiled import Contender, compile_together, take_turns, wait_for
from benchmarks.gpu.contenders import GRAPHS, OURS, Case, contenders, work_of
from benchmarks.gpu.measuring import peak, repeated
from benchmarks.gpu.precision import allow_tf32
from benchmarks.gpu.rows import Rows
from benchmarks.shared.measure import Call, alternate, times_as_fast

NO_TIME = "left out: no time"
WARM_UP = 1  # round, after the first calls
FIRST_GUESS = 15.0  # seconds that an eager case may take before there is one to learn from
CAUTION = 1.5  # times what a case before took


def run(settings: argparse.Namespace, rows: Rows) -> None:
    """The compiled cases, then the others in their order, but for those that take longer than what is left."""
    allow_tf32(True, settings.device)
    rates = measure_all_rates(settings, rows)
    named = [text.rsplit(":", 1) for text in settings.speed_cases]
    cases = [(Case.parse(name), mode) for name, mode in named]
    run_compiled([case for case, mode in cases if mode == "compiled"], settings, rows, rates)
    guess = FIRST_GUESS
    for case, mode in [each for each in cases if each[1] != "compiled"]:
        start = time.monotonic()
        if rows.seconds_left() < guess:
            rows.leave_out(f"{case}:{mode}")
            continue
        run_here(case, mode, settings, rows, rates)
        guess = CAUTION * (time.monotonic() - start)


def measure_all_rates(settings: argparse.Namespace, rows: Rows) -> dict[str, Rates]:
    """What the device does in a second, by dtype."""
    rates = {}
    for dtype in ("bfloat16", "float32"):
        rates[dtype] = measure_rates(settings.device, dtype, settings.matrix_size, settings.copy_mib)
        rows.add(dtype=dtype, **{"TFLOP/s": rates[dtype].operations / 1e12, "GB/s": rates[dtype].bytes / 1e9})
    return rates


def run_compiled(cases: list[Case], settings: argparse.Namespace, rows: Rows, rates: dict[str, Rates]) -> None:
    """Some cases at a time, until the share of the part's time for what is compiled is over."""
    end = time.monotonic() + settings.compiled_share * rows.seconds_left()

    def seconds_left() -> float:
        return end - time.monotonic()

    for start in range(0, len(cases), settings.compiled_at_once):
        together = cases[start : start + settings.compiled_at_once]
        if seconds_left() <= 0:
            for case in together:
                rows.leave_out(f"{case}:compiled")
            continue
        running = compile_together(together, settings)
        try:
            found = {case: wait_for(of_case, seconds_left) for case, of_case in running.items()}
            stop_late(running)
            for case, of_case in running.items():
                time_compiled(case, of_case, found[case], settings, rows, rates)
        finally:
            for of_case in running.values():
                for contender in of_case.values():
                    contender.stop()


def stop_late(running: dict[Case, dict[str, Contender]]) -> None:
    """What still compiles would slow the others down."""
    for of_case in running.values():
        for contender in of_case.values():
            if contender.compiled is None:
                contender.stop()


def time_compiled(
    case: Case,
    running: dict[str, Contender],
    found: dict[str, dict[str, Any]],
    settings: argparse.Namespace,
    rows: Rows,
    rates: dict[str, Rates],
) -> None:
    """The contenders of a case that have compiled; some may end while they are timed."""
    report_compiled(case, found, rows)
    ready = [running[name] for name, report in found.items() if "error" not in report]
    if not any(contender.name == OURS for contender in ready):
        return
    seconds, ended = take_turns(ready, settings.rounds, WARM_UP, rows.seconds_left)
    for name, error in ended.items():
        add_missing(case, "compiled", name, error, rows)
    add_rows(case, "compiled", settings, rows, rates, seconds, {name: found[name]["peak"] for name in seconds})


def report_compiled(case: Case, found: dict[str, dict[str, Any]], rows: Rows) -> None:
    """A row for each contender: the seconds to compile it, or why it is missing."""
    for name, report in found.items():
        if "error" not in report:
            rows.add(**described(case, "compiled"), contender=name, **{"s to compile": report["seconds"]})
        else:
            add_missing(case, "compiled", name, report["error"], rows)


def run_here(case: Case, mode: str, settings: argparse.Namespace, rows: Rows, rates: dict[str, Rates]) -> None:
    """The contenders of a case, eager or captured, in this process."""
    calls: dict[str, Call] = {}
    peaks: dict[str, int | None] = {}
    for name, make in contenders(case, settings, mode).items():
        try:
            call = make()
            call()
            peaks[name] = peak(call, settings.device) if mode == "eager" else None  # a graph keeps its memory
            calls[name] = call
        except Exception as error:  # of one contender: the others go on
            add_missing(case, mode, name, f"{type(error).__name__}: {error}".splitlines()[0][:200], rows)
    if OURS in calls:
        several = {name: repeated(call, settings.calls) for name, call in calls.items()}
        spent = alternate(several, settings.rounds, warm_up=WARM_UP)
        seconds = {name: [value / settings.calls for value in values] for name, values in spent.items()}
        add_rows(case, mode, settings, rows, rates, seconds, peaks)
    calls.clear()
    gc.collect()
    if settings.device == "cuda":
        torch.cuda.empty_cache()


def described(case: Case, mode: str) -> dict[str, Any]:
    return {**case._asdict(), "mode": mode}


def add_missing(case: Case, mode: str, name: str, error: str | None, rows: Rows) -> None:
    """A row for a contender that did not run; ours must, unless there was no time (no error)."""
    failed = {"ok": False} if name in (OURS, GRAPHS) and error is not None else {}
    rows.add(**described(case, mode), without=name, error=error or NO_TIME, **failed)


def add_rows(
    case: Case,
    mode: str,
    settings: argparse.Namespace,
    rows: Rows,
    rates: dict[str, Rates],
    seconds: dict[str, list[float]],
    peaks: dict[str, int | None],
) -> None:
    """A row for ours, and one for ours as CUDA graphs, with the ratios to each peer that ran."""
    rate = rates["float32" if case.dtype == "float32" else "bfloat16"]
    bounds = work_of(case, settings.image_size).seconds(rate)
    peers = [name for name in seconds if name not in (OURS, GRAPHS)]
    for name in [name for name in (OURS, GRAPHS) if name in seconds]:
        row = described(case, "CUDA graphs" if name == GRAPHS else mode)
        row["images/s"] = round(case.batch / median(seconds[name]))
        row["ms"] = 1000 * median(seconds[name])
        row |= {f"times {peer}": times_as_fast(seconds[peer], seconds[name]) for peer in peers}
        row["ms of products"], row["ms of memory"] = (1000 * bound for bound in bounds)
        row["of the bound"] = max(bounds) / median(seconds[name])
        row["peak MiB"] = peaks[name]
        row |= {f"memory / {peer}": share(peaks[name], peaks[peer]) for peer in peers}
        rows.add(**row)


def share(ours: int | None, peer: int | None) -> float | None:
    return ours / peer if ours is not None and peer else None
