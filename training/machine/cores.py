"""The processor's cores that a run may use."""

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def usable_cores() -> int:
    """The cores that this process may run on, or as many as its container may use the time of."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for folder in control_groups() for quota in quotas(folder))]))


def control_groups() -> Iterator[Path]:
    """The folders of Linux's control groups that this process may be in, of their first and their second version.

    A group that is absent here is known by its path on the host, as in Docker without a namespace for them.
    """
    groups = ROOT / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            mount = ROOT / "sys/fs/cgroup" / ("cpu" if controllers else "")
            group = mount / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def quotas(folder: Path) -> Iterator[float]:
    """The cores, in time, that a control group allows: microseconds of all cores in a period, over that period."""
    first, second = folder / "cpu.cfs_quota_us", folder / "cpu.max"
    if first.is_file() and int(first.read_text()) > 0:
        yield int(first.read_text()) / int((folder / "cpu.cfs_period_us").read_text())
    if second.is_file():
        allowed, period = second.read_text().split()
        if allowed != "max":
            yield int(allowed) / int(period)
