"""The training script: compiled, stopped and resumed, in half precision, with FSDP2, and twice.

All at the same time: what they show is not how fast they are, and most of a run's time is spent on imports.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.gpu.rows import Rows
from benchmarks.gpu.training_runs import (
    LATE,
    SAME,
    Launcher,
    difference,
    finish,
    last_loss,
    lines_of,
    stop,
    write_images,
)


class Outcome(NamedTuple):
    """What went wrong, if something did, and what else there is to tell."""

    error: str | None
    figure: str = ""


class Check(NamedTuple):
    """What is shown by some runs."""

    what: str
    of: Callable[[Launcher], Outcome]
    on_processor: bool = True


def compiled(launch: Launcher) -> Outcome:
    """A run with the flags for speed, longer than the others, which have ended in its second half, the measured one."""
    settings = launch.settings
    steps = {"max_train_steps": 2 * settings.training_steps}
    started = launch("compiled", {"mixed_precision": "bf16", "dynamo_backend": settings.backend}, steps)
    error, figure = finish(started), ""
    if error is None:
        later = lines_of(started)[settings.training_steps :]
        rate, waited = (median(line[key] for line in later) for key in ("images_per_second", "data_wait"))
        figure = f"{rate:.0f} images/s, {waited:.0%} waiting for data, last loss {later[-1]['loss']:.4f}"
    return Outcome(error, figure)


def resumed(launch: Launcher) -> Outcome:
    """A run that is stopped by SIGTERM and resumed, next to one that is not."""
    whole = launch.whole()
    error = finish(whole)
    if error is not None:
        return Outcome(error)
    stopped = launch("stopped", *SAME)
    error = stop(stopped)
    if error is None:
        stopped = launch("stopped", SAME[0], {**SAME[1], "resume_from_checkpoint": "latest"})
        error = finish(stopped) or difference(whole, stopped)
    return Outcome(error, last_loss(stopped))


def again(launch: Launcher) -> Outcome:
    whole, other = launch.whole(), launch("again", *SAME)
    return Outcome(finish(whole) or finish(other) or difference(whole, other), last_loss(other))


def in_fp16(launch: Launcher) -> Outcome:
    started = launch("fp16", {"mixed_precision": "fp16"}, {})
    return Outcome(finish(started), last_loss(started))


def sharded(launch: Launcher) -> Outcome:
    started = launch("fsdp2", {"config_file": "training/accelerate/fsdp2.yaml"}, {})
    return Outcome(finish(started), last_loss(started))


CHECKS = {
    "compiled": Check("compiled, bf16", compiled),
    "resumed": Check("stopped by SIGTERM and resumed, equal to the bit", resumed),
    "fp16": Check("fp16 with its scaler", in_fp16, on_processor=False),
    "fsdp2": Check("FSDP2 in one process", sharded, on_processor=False),
    "again": Check("two runs are equal to the bit", again),
}


def run(settings: argparse.Namespace, rows: Rows) -> None:
    """The checks, each in a thread that waits for its runs."""
    try:
        import_module("training.pretrain")
    except ImportError as error:
        rows.add(what="training", ok=None, seconds=None, figure=f"left out: {error}")
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        launch = Launcher(settings, Path(folder), time.monotonic() + rows.seconds_left())
        write_images(launch.images, settings.training_images)
        chosen = [CHECKS[name] for name in settings.training_checks]
        launch.whole()  # before the threads, two of which wait for it
        try:
            with ThreadPoolExecutor(len(chosen)) as threads:
                list(threads.map(lambda each: check(each, launch, rows), chosen))
        finally:
            launch.kill_late_runs()


def check(each: Check, launch: Launcher, rows: Rows) -> None:
    """A row for a check: what is late fails nothing."""
    if not (each.on_processor or launch.on_gpu):
        rows.add(what=each.what, ok=None, seconds=None, figure="left out: not on a processor")
        return
    start = time.monotonic()
    error, figure = each.of(launch)
    spent = time.monotonic() - start
    rows.add(what=each.what, ok=None if error == LATE else error is None, seconds=spent, figure=error or figure)
