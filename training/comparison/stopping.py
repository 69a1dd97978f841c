"""Stopping a comparison: the runs under way save a checkpoint each, and no further one begins."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from signal import SIG_DFL, Signals
from threading import Event
from types import FrameType

import psutil

from training.console.signals import STOPPED, handle, handled, say


@contextmanager
def stopping_runs(is_over: Event) -> Iterator[None]:
    """Wrap a comparison: a signal sets `is_over`, stops the runs and ends the program with exit code 75."""

    def stop(number: int, frame: FrameType | None) -> None:
        handle(dict.fromkeys(handled(), SIG_DFL))  # a second signal ends the program at once
        is_over.set()
        say(f"{Signals(number).name}: the runs under way save a checkpoint. The same command goes on.")
        for process in training_processes():
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        sys.exit(STOPPED)

    before = handle(dict.fromkeys(handled(), stop))
    try:
        yield
    finally:
        handle(before)


def training_processes() -> list[psutil.Process]:
    """Those of the runs that this process has launched: the launchers' children, or launchers that have none yet."""
    found: list[psutil.Process] = []
    for launcher in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            is_launcher = any("accelerate" in word for word in launcher.cmdline())
            found += (launcher.children() or [launcher]) if is_launcher else []
    return found
