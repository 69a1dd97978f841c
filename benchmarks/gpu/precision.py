"""Precisions in which the GPU's benchmarks compute: float32 with or without TF32, and autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch


def allow_tf32(allowed: bool, device: str) -> None:
    """Allow or forbid matrix products and convolutions that round their float32 inputs to TF32."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = allowed


def autocast(device: str, dtype: str) -> AbstractContextManager[object]:
    """Autocast to a half precision; float32 is computed as it is."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(device, getattr(torch, dtype))
