"""The processor's cores that a run may use, and how its threads wait for each other.

This module does not import PyTorch: `wait_briefly` has an effect only before somebody does.
"""

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of all cores in a period, and that period
# Some ten microseconds, as long as between two operations. The default of GNU's OpenMP, 300,000, is milliseconds,
# in which a thread that waits keeps a core from other processes and from the thread that it waits for.
SPINS = "10000"
SET_BY_USER = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_briefly() -> None:
    """Let PyTorch's threads, which is to be imported after this, sleep where they wait long for each other."""
    if not any(name in os.environ for name in SET_BY_USER):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def usable_cores() -> int:
    """The cores that this process may run on, or as many as its container may use the time of."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not QUOTA.is_file():
        return cores
    allowed, period = QUOTA.read_text().split()
    return cores if allowed == "max" else min(cores, max(1, int(allowed) // int(period)))
