"""The most memory that this process has held."""

import sys

import psutil
import torch


def peak_memory() -> int:
    """Bytes on the accelerator if there is one, else in main memory."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return peak_resident_memory()
    if device.type == "mps":  # it counts what it holds now, and gives little back
        return torch.mps.driver_allocated_memory()
    return torch.accelerator.max_memory_allocated()


def peak_resident_memory() -> int:
    """Bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # Windows has none

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # kiB on Linux
