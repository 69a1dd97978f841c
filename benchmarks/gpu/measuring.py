"""What calls are measured by: how often they are repeated, and their peak memory."""

import gc
from collections.abc import Callable

import torch

from benchmarks.shared.measure import Call


def repeated(call: Call, times: int) -> Callable[[], None]:
    def several() -> None:
        for _ in range(times):
            call()

    return several


def peak(call: Call, device: str) -> int | None:
    """Peak MiB of a call above what was held before it; only an accelerator can tell."""
    if device != "cuda":
        return None
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20)
