"""The depthwise convolution of packed cells on a GPU, by the kernels of depthwise_kernels.py.

N visible cells of all images, C channels, k positions a side of a cell, K the kernel's width.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .triton_kernels import launch

# Rows and channels that a thread block works on: the fastest of five and of four on an H200.
TILE = (32, 64)
GRADIENT_TILE = (256, 32)


def convolve_cells(x: Tensor, weight: Tensor, bias: Tensor | None, halo: Tensor, turned: bool = False) -> Tensor:
    """The convolution of cells `(N, C, k, k)` with `weight (C, 1, K, K)`, turned by 180 degrees if asked.

    `halo (N, k + K - 1, k + K - 1)` is that of packing.py. `torch.compile` sees one operation.
    """
    run = _convolution if torch.compiler.is_compiling() else _convolve
    return run(x, weight, bias, halo, turned)


def parameter_gradients(x: Tensor, grad: Tensor, halo: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """Gradients `(C, 1, K, K)` and `(C,)` float32 of kernel and bias, from input and the output's gradient."""
    run = _gradient if torch.compiler.is_compiling() else _parameter_gradients
    return run(x, grad, halo, kernel_size)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, halo: Tensor, turned: bool) -> Tensor:
    x, (count, channels, side, _) = _channels_last(x), x.shape
    rows, kernel_size, out = count * side * side, weight.shape[-1], torch.empty_like(x)
    taps = weight.flatten(1).T.contiguous()  # (K * K, C): a thread block reads neighbouring channels
    grid = (math.ceil(rows / TILE[0]), math.ceil(channels / TILE[1]))
    tensors = (x, taps, taps if bias is None else bias, halo, out)  # without a bias, none is read
    with torch.cuda.device_of(x):
        arguments = (*tensors, rows, channels, side, kernel_size, turned, bias is not None)
        launch("convolve", grid, *arguments, *TILE)
    return out


def _parameter_gradients(x: Tensor, grad: Tensor, halo: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    x, grad, (count, channels, side, _) = _channels_last(x), _channels_last(grad), x.shape
    rows, taps = count * side * side, kernel_size**2
    grid = (math.ceil(rows / GRADIENT_TILE[0]), math.ceil(channels / GRADIENT_TILE[1]))
    sums = x.new_empty(grid[0], taps + 1, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        arguments = (x, grad, halo, sums, rows, channels, side, kernel_size)
        launch("weight_gradient", grid, *arguments, *GRADIENT_TILE)
    of_weight, of_bias = sums.sum(dim=0).split([taps, 1])
    return of_weight.T.reshape(channels, 1, kernel_size, kernel_size).contiguous(), of_bias[0].clone()


def _channels_last(x: Tensor) -> Tensor:
    """The cells with their rows `(N * k * k, C)` one after the other in memory."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


_convolution: Any = torch.library.custom_op("hf_convnextv2::depthwise", _convolve, mutates_args=())
_gradient: Any = torch.library.custom_op("hf_convnextv2::depthwise_gradients", _parameter_gradients, mutates_args=())


@_convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, halo: Tensor, turned: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@_gradient.register_fake
def _(x: Tensor, grad: Tensor, halo: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    channels = x.shape[1]
    of_weight = x.new_empty((channels, 1, kernel_size, kernel_size), dtype=torch.float32)
    return of_weight, x.new_empty(channels, dtype=torch.float32)
