"""The Triton kernels, where they can run, and their launch.

Without Triton, and on other devices than NVIDIA's GPUs, the plain forms compute.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Kernels(NamedTuple):
    """The kernels of depthwise_kernels.py and mlp_kernels.py."""

    convolve: Any
    weight_gradient: Any
    layer_norm: Any
    layer_norm_backward: Any
    squares: Any
    scale: Any
    activation: Any
    residual: Any
    residual_backward: Any
    grad_scale: Any
    grn_backward: Any
    activation_backward: Any


try:  # PyTorch brings it along for GPUs on Linux
    from .depthwise_kernels import convolve, weight_gradient
    from .mlp_kernels import (
        activation,
        activation_backward,
        grad_scale,
        grn_backward,
        layer_norm,
        layer_norm_backward,
        residual,
        residual_backward,
        scale,
        squares,
    )

    KERNELS: Kernels | None = Kernels(
        *(convolve, weight_gradient, layer_norm, layer_norm_backward, squares, scale, activation, residual),
        *(residual_backward, grad_scale, grn_backward, activation_backward),
    )
except ImportError:
    KERNELS = None

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # that the kernels compute in
FIRST_CAPABILITY = 8  # of an NVIDIA GPU, major: Ampere, the first that computes in bfloat16


@torch.compiler.assume_constant_result
def has_kernels(device: torch.device) -> bool:
    """Whether the kernels run on `device`."""
    return device.type == "cuda" and KERNELS is not None and _is_new_enough(device)


def runs_on_kernels(x: Tensor) -> bool:
    """Whether the kernels run where `x` lies, on numbers like its."""
    return x.dtype in DTYPES and has_kernels(x.device)


@cache
def _is_new_enough(device: torch.device) -> bool:
    if torch.version.hip is not None:
        return False
    return torch.cuda.get_device_properties(device).major >= FIRST_CAPABILITY


# Variants of kernels, by what decides which fits: batches of ever new sizes must not fill the memory.
_variants: dict[tuple[Any, ...], Any] = {}
MAX_VARIANTS = 4096


def launch(name: str, grid: tuple[int, ...], *arguments: Any, num_warps: int = 4) -> None:
    """Run a kernel on a grid of thread blocks.

    To find the variant that fits the arguments takes Triton longer than a small kernel runs, so it is remembered.
    """
    grid = (*grid, *(1,) * (3 - len(grid)))
    key = (name, num_warps, *map(_decisive, arguments))
    variant = _variants.get(key)
    if variant is not None:
        variant[grid](*arguments)
        return
    variant = getattr(KERNELS, name)[grid](*arguments, num_warps=num_warps)
    if variant is not None:  # as the interpreter returns
        if len(_variants) >= MAX_VARIANTS:
            _variants.clear()
        _variants[key] = variant


def _decisive(argument: Any) -> Any:
    """What of an argument decides about the variant: Triton tells apart aligned addresses, and some numbers."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0, argument.device
    return argument
