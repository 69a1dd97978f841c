"""The processor's cores that a run may use."""

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of all cores in a period, and that period


def usable_cores() -> int:
    """The cores that this process may run on, or as many as its container may use the time of."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not QUOTA.is_file():
        return cores
    allowed, period = QUOTA.read_text().split()
    return cores if allowed == "max" else min(cores, max(1, int(allowed) // int(period)))
