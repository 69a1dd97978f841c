"""The peak memory of this process."""

import sys

import psutil
import torch


def peak_memory() -> int:
    """The peak memory in bytes, on the accelerator if there is one, else in main memory."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return peak_resident_memory()
    if device.type == "mps":  # MPS reports only the memory held now, but releases little of it
        return torch.mps.driver_allocated_memory()
    return torch.accelerator.max_memory_allocated()


def peak_resident_memory() -> int:
    """The peak main memory of this process in bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # Windows does not have this module

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # kiB on Linux
