"""How long PyTorch's threads on a CPU stay awake while they wait: briefly where other work needs the cores.

PyTorch divides each operation among threads, which spin until the next one: the fastest way on a machine that does
nothing else. Beside another process, a thread that spins keeps a core from the very thread that it waits for. GNU's
OpenMP, which PyTorch has on Linux, lets threads spin for milliseconds, but for microseconds only in a process that has
more of its threads than cores. One idle thread is therefore a switch, at any time, and what is computed stays the same.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch

SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SECONDS_BETWEEN_LOOKS = 0.5
LEAST_SECONDS = 0.25  # of processor time, to tell anything from
# How often a core is taken from a thread that computes, in a second of its time: 20 times on a machine that does
# nothing else, 140 times and more beside another process, at each turn of Linux's scheduler.
FEW, MANY = 40, 80
LEAST_PARALLEL = 2**15  # numbers from which on PyTorch divides an operation


class Usage(NamedTuple):
    """What this process has used: processor time in seconds, and how often a core was taken from it."""

    seconds: float
    preemptions: int


class IdleThread(threading.Thread):
    """A thread that has so many of OpenMP's threads for itself that the process has more of them than cores."""

    def __init__(self) -> None:
        super().__init__(name="convnextv2-idle", daemon=True)
        self.all_threads = torch.get_num_threads()
        self.is_ready, self.is_over = threading.Event(), threading.Event()

    def run(self) -> None:
        try:
            torch.get_num_threads()  # a new thread takes the number of the process at its first question, once
            number = max(1, len(os.sched_getaffinity(0)) - self.all_threads + 1) + 1
            torch.set_num_threads(number)
            torch.zeros(number * LEAST_PARALLEL, device="cpu").add_(1)
            torch.set_num_threads(self.all_threads)  # that of threads to come, which was set too
        finally:
            self.is_ready.set()
        self.is_over.wait()

    def end(self) -> None:
        self.is_over.set()
        self.join()


class Waiting:
    """Whether waiting threads sleep soon, decided anew from time to time by what happened to this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle_thread: IdleThread | None = None
        self.last_look = -SECONDS_BETWEEN_LOOKS
        self.last_usage: Usage | None = None

    def adapt(self) -> None:
        """Look whether others want the cores, if the last look is long ago, and switch if that has changed."""
        now = time.monotonic()
        if now - self.last_look < SECONDS_BETWEEN_LOOKS or torch.get_num_threads() == 1:
            return
        with self.lock:
            usage, before = used_so_far(), self.last_usage
            if before is not None and usage.seconds - before.seconds < LEAST_SECONDS:
                return
            self.last_look, self.last_usage = now, usage
            if before is not None:
                self._switch((usage.preemptions - before.preemptions) / (usage.seconds - before.seconds))

    def _switch(self, rate: float) -> None:
        """Let waiting threads sleep soon or spin, by the preemptions in a second; in between, leave it as it is."""
        if rate > MANY and self.idle_thread is None:
            thread = IdleThread()
            with contextlib.suppress(RuntimeError):  # the system has no thread to spare
                thread.start()
                thread.is_ready.wait()
                self.idle_thread = thread
        elif rate < FEW and self.idle_thread is not None:
            self.idle_thread.end()
            self.idle_thread = None


def used_so_far() -> Usage:
    import resource  # Windows does not have this module

    used = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(used.ru_utime + used.ru_stime, used.ru_nivcsw)


@cache
def _waiting() -> Waiting:
    """This process's."""
    return Waiting()


def share_cores(device: torch.device) -> None:
    """Let the threads that compute on a CPU leave its cores to other processes while they wait, if any want them.

    To be called often. Nothing is done where the user has said how threads wait, by OpenMP's environment variables.
    """
    if device.type == "cpu" and IS_SWITCHABLE and not torch.compiler.is_compiling():
        _waiting().adapt()


def is_switchable(environment: Mapping[str, str]) -> bool:
    """Whether this system may have GNU's OpenMP, and the user has not said how its threads wait."""
    return sys.platform == "linux" and not any(name in environment for name in SET_BY_USER)


IS_SWITCHABLE = is_switchable(os.environ)

if hasattr(os, "register_at_fork"):  # a forked process has no thread but one
    os.register_at_fork(after_in_child=_waiting.cache_clear)
