"""Each group of Triton kernels next to the plain form: time, and the error of each against float32.

The layers are those of an FCMAE step, a row for each stage. On a processor the kernels run in Triton's interpreter, if
at all, so that only a GPU's times mean something.
"""

import argparse
import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.contenders import OURS, Case, contenders
from benchmarks.gpu.kernel_pairs import Pair, Results, convolutions, have_kernels, mlps, without_kernels
from benchmarks.gpu.precision import allow_tf32
from benchmarks.gpu.profile import kernels_of, synchronize
from benchmarks.gpu.rows import Rows
from benchmarks.shared.measure import Call, seconds_of
from hf_convnextv2.configuration_convnextv2 import SIZES

BOUND = 3e-2  # of the error of the kernels, as in `correct`
NO_FURTHER = 1.25  # times the plain form's error: both are chance
REPEATS = 5
CALLS = 100  # whose launches are timed
LEAST_SECONDS = {"layers": 3.0, "step": 10.0}


def run(settings: argparse.Namespace, rows: Rows) -> None:
    """The layers of each stage, then their launches, and then a whole eager step, with the kernels and without."""
    allow_tf32(False, settings.device)  # the error is that against float32
    widths = SIZES[settings.kernels_size][1]
    sides = [2**stage for stage in reversed(range(len(widths)))]
    for create in (convolutions, mlps):
        for width, side in zip(widths, sides, strict=True):
            what = f"{create.__name__}, {width} channels"
            attempt(rows, what, "layers", lambda: add_pairs(create, settings, width, side, rows))  # noqa: B023
    for create in (convolutions, mlps):
        what = f"launches of {create.__name__}"
        attempt(rows, what, "layers", lambda: add_launches(create, settings, widths[-1], rows))  # noqa: B023
    attempt(rows, f"step of {settings.kernels_size}", "step", lambda: add_step(settings, rows))


def attempt(rows: Rows, what: str, kind: str, add: Callable[[], None]) -> None:
    """Add rows if there is time; an error of some leaves the others."""
    if rows.seconds_left() < LEAST_SECONDS[kind]:
        rows.leave_out(what)
        return
    try:
        with torch.no_grad() if kind == "layers" else nullcontext():
            add()
    except Exception as error:
        rows.add(what=what, error=f"{type(error).__name__}: {error}".splitlines()[0][:200], ok=False)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def add_pairs(
    create: Callable[..., list[Pair]], settings: argparse.Namespace, width: int, side: int, rows: Rows
) -> None:
    for pair in create(settings, width, side, settings.kernels_batch):
        exact = pair.exact()
        errors = {"error plain": error_of(pair.plain(), exact)}
        row: dict[str, Any] = {"what": pair.what, "channels": width}
        times: dict[str, Call] = {"plain": pair.plain}
        if pair.kernels is not None:
            errors["error kernels"], times["kernels"] = error_of(pair.kernels(), exact), pair.kernels
        if pair.products is not None:
            times["products"] = pair.products
        del exact
        row |= compared("ms", {name: milliseconds(call, settings.device) for name, call in times.items()})
        bound = max(BOUND, NO_FURTHER * errors["error plain"])
        ok = {} if pair.kernels is None else {"ok": errors["error kernels"] <= bound}
        rows.add(**row, **errors, **ok)


def compared(unit: str, values: dict[str, float]) -> dict[str, float]:
    """Columns for the values, and how many times as fast the kernels are."""
    columns = {f"{unit} {name}": value for name, value in values.items()}
    return columns | ({"times as fast": values["plain"] / values["kernels"]} if "kernels" in values else {})


def error_of(actual: Results, expected: Results) -> float:
    """The largest ||a - b|| / ||b|| of several results."""
    pairs = zip(actual, expected, strict=True)
    return max(((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in pairs)


def milliseconds(call: Call, device: str) -> float:
    """On a GPU of calls replayed as a CUDA graph: small kernels are over before the next could be launched."""
    if device != "cuda":
        return 1000 * min(seconds_of(call) for _ in range(REPEATS))
    from triton.testing import do_bench_cudagraph

    found: Any = do_bench_cudagraph(call)
    return found


def add_launches(create: Callable[..., list[Pair]], settings: argparse.Namespace, width: int, rows: Rows) -> None:
    """Microseconds that a processor needs for a call on one image, while the GPU computes what was launched before."""
    for pair in create(settings, width, 1, 1):
        calls = {"plain": pair.plain} | ({} if pair.kernels is None else {"kernels": pair.kernels})
        spent = {name: microseconds_to_launch(call, settings.device) for name, call in calls.items()}
        rows.add(what=f"{pair.what}, launches", channels=width, **compared("µs", spent))


def microseconds_to_launch(call: Call, device: str) -> float:
    call()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    spent = time.perf_counter() - start
    synchronize(device)
    return 1e6 * spent / CALLS


def add_step(settings: argparse.Namespace, rows: Rows) -> None:
    """An eager FCMAE step with the kernels and without: milliseconds, and number of kernels of all kinds."""
    allow_tf32(True, settings.device)
    case = Case("step", settings.kernels_size, settings.kernels_batch, "bfloat16")
    what = f"eager step of {case.size}, {case.batch} images"
    forms: dict[str, Any] = {"plain": without_kernels}
    if have_kernels(settings.device):
        forms["kernels"] = nullcontext
    call, spent, counts = contenders(case, settings, "eager")[OURS](), {}, {}
    for name, form in forms.items():
        with form():
            for _ in range(2):
                call()
            spent[name] = 1000 * median(seconds_of(call) for _ in range(REPEATS))
    rows.add(what=what, **compared("ms", spent))
    for name, form in forms.items():
        with form():
            counts[f"launches {name}"] = len(kernels_of(call, settings.device))
    rows.add(what=what, **counts)
