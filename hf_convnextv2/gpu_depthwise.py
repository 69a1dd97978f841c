"""The depthwise convolution of packed cells on a GPU, by the kernels of depthwise_kernels.py.

N visible cells of all images, C channels, k positions a side of a cell, K the kernel's width.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .triton_kernels import launch

# By the common divisor of a cell's side and 8: height and width of a tile of positions, and the tiles and channels that
# a thread block works on. More than 64 sums a thread (tiles * positions * channels / 128) leave too few registers. As
# many tiles, or channels, as the 128 threads would make Triton pass values between threads.
TILES = {8: (1, 8, 16, 64), 4: (1, 4, 32, 64), 2: (2, 2, 32, 64), 1: (1, 1, 32, 64)}
# Likewise width, tiles and channels. A thread block takes as many tiles up to so many times.
GRADIENT_TILES = {8: (4, 16, 64), 4: (4, 16, 64), 2: (2, 16, 64), 1: (1, 16, 64)}
GRADIENT_STEPS = 16


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
    height, width, num_tiles, num_channels = tile = TILES[math.gcd(side, 8)]
    grid = (math.ceil(rows / (height * width * num_tiles)), math.ceil(channels / num_channels))
    tensors = (x, taps, taps if bias is None else bias, halo, out)  # without a bias, none is read
    with torch.cuda.device_of(x):
        launch("convolve", grid, *tensors, rows, channels, side, kernel_size, turned, bias is not None, *tile)
    return out


def _parameter_gradients(x: Tensor, grad: Tensor, halo: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    x, grad, (count, channels, side, _) = _channels_last(x), _channels_last(grad), x.shape
    rows, places = count * side * side, 2 ** kernel_size.bit_length()  # the first power of two from K + 1
    width, num_tiles, num_channels = tile = GRADIENT_TILES[math.gcd(side, 8)]
    steps = max(1, min(GRADIENT_STEPS, math.ceil(rows / (width * num_tiles))))
    blocks = math.ceil(rows / (width * num_tiles * steps))
    sums = x.new_empty(blocks, kernel_size, kernel_size + 1, channels, dtype=torch.float32)
    grid = (blocks * kernel_size, math.ceil(channels / num_channels))
    with torch.cuda.device_of(x):
        arguments = (x, grad, halo, sums, rows, channels, steps, side, kernel_size, places)
        launch("weight_gradient", grid, *arguments, *tile)
    total = sums.sum(dim=0)  # (K, K + 1, C)
    return total[:, :-1].permute(2, 0, 1)[:, None].contiguous(), total[0, -1].clone()


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
