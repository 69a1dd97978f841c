"""How long PyTorch's threads on a CPU stay awake while they wait: briefly where other work needs the cores.

PyTorch divides each operation among threads, which spin until the next one: the fastest way on a machine that does
nothing else. Beside another process, a thread that spins keeps a core from the very thread that it waits for. GNU's
OpenMP, which PyTorch has on Linux, lets threads spin for milliseconds, but for microseconds only in a process that has
more of its threads than cores. Idle threads, one where each core has a thread that computes, are therefore a switch, at
any time. What is computed stays the same.

Alone, threads that sleep take 1.3 to 1.7 times as long: waking up costs time, and Linux then often runs two of them on
one core. That other processes want the cores shows in how long threads wait for a core, but only while they spin: those
that sleep wait for one at each wake-up. So from time to time they spin again for a moment, to see.
"""

import contextlib
import ctypes
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SECONDS_BETWEEN_CHECKS = 0.5
LEAST_SECONDS = 0.25  # of computing between two checks
MOST = 32  # OpenMP threads of an idle thread; on a machine with more cores to spare, threads spin
# How long all threads together are delayed, in a second in which one of them computes: 0.04 to 0.3 s where nothing else
# is done, 0.7 s and more beside another process.
TOO_LONG = 0.4
SLEEP_TIMES = 8  # threads sleep for so many times the processor time that it took to see that they should
LEAST_PARALLEL = 2**15  # numbers from which on PyTorch divides an operation
THREADS = "/proc/self/task"
TORCH_LIBRARY = "libtorch_cpu.so"  # finds the functions of the OpenMP that it was linked with


class Usage(NamedTuple):
    """Seconds that a thread has computed, and that it was delayed because it had no core."""

    computing: float
    delayed: float


class IdleThread(threading.Thread):
    """A thread that starts OpenMP threads of its own, so many that the process has more of them than cores.

    beside: the number of threads that each operation is divided among, which the number of its own follows from.
    works: whether they could be started.
    """

    def __init__(self) -> None:
        super().__init__(name="convnextv2-idle", daemon=True)
        self.beside, self.works = torch.get_num_threads(), False
        self.is_ready, self.is_over = threading.Event(), threading.Event()

    def run(self) -> None:
        try:
            with contextlib.suppress(RuntimeError, OSError, AttributeError):  # of threads, a library, its function
                start_openmp_threads(num_own_threads(self.beside))
                self.works = True
        finally:
            self.is_ready.set()
        if self.works:
            self.is_over.wait()

    def begin(self) -> None:
        """Start the thread, and return once its own are there, or it is over because they could not be started."""
        self.start()
        self.is_ready.wait()
        if not self.works:
            self.join()

    def end(self) -> None:
        self.is_over.set()
        self.join()


def num_own_threads(beside: int) -> int:
    """How many OpenMP threads of an idle thread, itself among them, it takes to have more than cores."""
    return max(2, len(os.sched_getaffinity(0)) - beside + 2)


def start_openmp_threads(number: int) -> None:
    """Start as many OpenMP threads as belong to the calling one, itself among them, or raise an error.

    torch.set_num_threads would change the number of every thread of the process that begins meanwhile.
    """
    torch.get_num_threads()  # what PyTorch does in a new thread first, and would undo the number with
    library = ctypes.CDLL(TORCH_LIBRARY, mode=os.RTLD_NOLOAD)
    check_room(number)
    library.omp_set_num_threads(number)
    if torch.get_num_threads() != number:
        raise RuntimeError("PyTorch computes with another OpenMP than the one that it was linked with.")
    torch.zeros(number * LEAST_PARALLEL, device="cpu").add_(1)


def check_room(number: int) -> None:
    """Raise a RuntimeError if the system refuses as many threads: OpenMP, refused one, would end the process."""
    is_over, threads = threading.Event(), []
    try:
        for _ in range(number):
            thread = threading.Thread(target=is_over.wait, daemon=True)
            thread.start()
            threads.append(thread)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
            wait_until_gone(thread)


def wait_until_gone(thread: threading.Thread) -> None:
    """Return once Linux no longer counts a thread that has ended, which it does for a moment."""
    while os.path.exists(f"/proc/self/task/{thread.native_id}"):
        time.sleep(1e-4)


class Waiting:
    """Whether waiting threads sleep soon, decided anew from time to time by what happened to this process.

    last_check, last_usage: when a decision was last made, and what the threads had used by then.
    rest_until: the processor time of this process, those of its threads that have ended included, at which threads that
        sleep spin again.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle_thread: IdleThread | None = None
        self.last_check = -SECONDS_BETWEEN_CHECKS
        self.last_usage: dict[str, Usage] = {}
        self.rest_until = 0.0

    def adapt(self) -> None:
        """Check whether others want the cores, if the last check is long ago, and switch if that has changed."""
        now, threads = time.monotonic(), torch.get_num_threads()
        with self.lock:
            if self.idle_thread is not None and self.idle_thread.beside != threads:
                self._let_spin()
            if now - self.last_check >= SECONDS_BETWEEN_CHECKS and threads > 1 and num_own_threads(threads) <= MOST:
                self._check(now)

    def _check(self, now: float) -> None:
        if self.idle_thread is not None:
            if time.process_time() >= self.rest_until:
                self._let_spin()
            return
        usage = used_so_far()
        spent = spent_between(self.last_usage, usage)
        longest = max((sum(each) for each in spent), default=0.0)
        if self.last_usage and longest < LEAST_SECONDS:
            return
        self.last_check, self.last_usage = now, usage
        if sum(each.delayed for each in spent) > TOO_LONG * longest:
            self.rest_until = time.process_time() + SLEEP_TIMES * sum(each.computing for each in spent)
            self._let_sleep()

    def _let_sleep(self) -> None:
        thread = IdleThread()
        with contextlib.suppress(RuntimeError):  # the system has no thread to spare
            thread.begin()
        if thread.works:
            self.idle_thread = thread
        else:
            self.last_check = math.inf  # never again: the attempt itself takes what others may want to start

    def _let_spin(self) -> None:
        assert self.idle_thread is not None
        self.idle_thread.end()
        self.idle_thread = None
        self.last_check, self.last_usage = time.monotonic(), used_so_far()  # what was used while threads slept is past


def used_so_far() -> dict[str, Usage]:
    """By the threads of this process; nothing where the system does not say."""
    found = {}
    with contextlib.suppress(OSError):
        for thread in os.listdir(THREADS):
            with contextlib.suppress(OSError):  # it has ended
                computing, delayed, _ = Path(THREADS, thread, "schedstat").read_text().split()
                found[thread] = Usage(int(computing) / 1e9, int(delayed) / 1e9)
    return found


def spent_between(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> list[Usage]:
    """By the threads that were there both times."""
    both = [(before[thread], used) for thread, used in after.items() if thread in before]
    return [Usage(used.computing - old.computing, used.delayed - old.delayed) for old, used in both]


@cache
def _waiting() -> Waiting:
    """This process's."""
    return Waiting()


def share_cores(device: torch.device) -> None:
    """Let the threads that compute on a CPU leave its cores to other processes while they wait, if any want them.

    To be called often. Nothing is done in compiled programs, or where the user's environment says how threads wait.
    """
    if device.type == "cpu" and IS_SWITCHABLE and not torch.compiler.is_compiling():
        _waiting().adapt()


def is_switchable(environment: Mapping[str, str]) -> bool:
    """Whether this system may have GNU's OpenMP, and the user has not said how its threads wait."""
    return sys.platform == "linux" and not any(name in environment for name in SET_BY_USER)


IS_SWITCHABLE = is_switchable(os.environ)

if hasattr(os, "register_at_fork"):  # a forked process has no thread but one
    os.register_at_fork(after_in_child=_waiting.cache_clear)
