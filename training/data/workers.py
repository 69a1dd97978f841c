"""Options for data loader workers, which ignore a stop signal to the process group but end with their program."""

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
    """The `DataLoader` options that start `num_workers` data loader workers."""
    if not num_workers:
        return {"num_workers": 0}
    return {"num_workers": num_workers, "worker_init_fn": functools.partial(start_worker, ending())}


@functools.cache
def ending() -> Any:
    """A flag in shared memory that becomes 1 when this program ends; only then do data loader workers obey SIGTERM.

    A program sends SIGTERM to its workers when it ends, and waits for them.
    """
    flag, program = RawValue("b", 0), os.getpid()

    def end() -> None:
        flag.value = os.getpid() == program  # a process forked from this one does not count

    atexit.register(end)  # runs before the handlers that `multiprocessing` has registered earlier
    return flag


def start_worker(ends: Any, worker: int) -> None:
    """Make a data loader worker ignore the stop signals of its process group: the current step needs its batches."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    # Exit code 0: PyTorch would raise an error for any other.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if ends.value else None)
    sys.stdout, sys.stderr = lasting(sys.stdout), lasting(sys.stderr)
    fsspec.asyn.reset_lock()  # fsspec's lock may have been held when the process was forked


def can_pin_memory() -> bool:
    """Whether batches can lie in pinned memory, from which the device copies without the CPU."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device is not None and device.type != "mps"
