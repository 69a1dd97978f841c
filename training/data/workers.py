"""Data loader workers: they outlast a stop that is sent to the whole process group, but not their training process."""

import atexit
import functools
import os
import signal
import sys
from multiprocessing.sharedctypes import RawValue
from typing import Any

import fsspec.asyn
import torch

from training.console.signals import STOPPING, lasting


def worker_options(num_workers: int) -> dict[str, Any]:
    """How a `DataLoader` starts its workers."""
    if not num_workers:
        return {"num_workers": 0}
    return {"num_workers": num_workers, "worker_init_fn": functools.partial(start_worker, ending())}


@functools.cache
def ending() -> Any:
    """What workers see become 1 when this program ends: then, and only then, SIGTERM is meant for them.

    At its end a program sends SIGTERM to its workers and waits for them.
    """
    flag, program = RawValue("b", 0), os.getpid()

    def end() -> None:
        flag.value = os.getpid() == program  # not that of a process forked from this one

    atexit.register(end)  # goes before what `multiprocessing` has registered earlier
    return flag


def start_worker(ends: Any, worker: int) -> None:
    """Keep a worker loading when its whole process group is told to stop: the step under way needs its batches."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    # 0: PyTorch would make an error of any other end.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if ends.value else None)
    sys.stdout, sys.stderr = lasting(sys.stdout), lasting(sys.stderr)
    fsspec.asyn.reset_lock()  # a lock of remote files that was held when the process was forked


def can_pin_memory() -> bool:
    """Whether batches can lie in memory that the device copies from on its own."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device is not None and device.type != "mps"
