"""Kernels of the depthwise convolution of packed cells for GPUs, in Triton.

A table says where the neighbours of a row (a position) lie, so that cells are neither gathered with their surroundings
nor put back in place. A thread block works on some channels of some tiles, rectangles of HEIGHT x WIDTH positions of a
cell, which divide its sides: a value is read once for all positions of a tile that see it. N cells of SIDE x SIDE
positions, R = N * SIDE * SIDE rows, C channels, K the kernel's width; `halo (N, SIDE + K - 1, SIDE + K - 1)` holds
rows, and R where none is visible.

Tensors are `(tiles, positions or taps, channels)`. Loads leave the middle axis at 1, so that a thread holds all of it:
a value then meets its sums in one thread, and the compiler decides each `tl.where`.
"""

# pyright: reportInvalidTypeForm=false
from importlib import import_module
from typing import Any

# Not by statements: Transformers would ask for Triton on every machine that loads published code.
triton: Any = import_module("triton")
tl: Any = import_module("triton.language")


@triton.jit
def first_rows(tiles, SIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """The row of the first position of each tile."""
    return tiles // (SIDE // WIDTH) * (HEIGHT * SIDE) + tiles % (SIDE // WIDTH) * WIDTH


@triton.jit
def corners(rows, SIDE: tl.constexpr, K: tl.constexpr):
    """Where in the table what the kernel sees of each row begins."""
    cells = rows // (SIDE * SIDE)
    return (cells * (SIDE + K - 1) + rows // SIDE % SIDE) * (SIDE + K - 1) + rows % SIDE


@triton.jit
def neighbours(x, halo, rows, corner, columns, i, j, R, C, SIDE: tl.constexpr, K: tl.constexpr):
    """The values `(tiles, 1, columns)` under the place (i, j) that the tiles see, zeros where no cell is visible."""
    found = tl.load(halo + corner + i * (SIDE + K - 1) + j, mask=rows < R, other=R)
    seen = (found < R)[:, None, None] & (columns < C)[None, None, :]
    return tl.load(x + found[:, None, None] * C + columns[None, None, :], mask=seen, other=0).to(tl.float32)


@triton.jit
def convolve(
    x,
    weight,
    bias,
    halo,
    out,
    R,
    C,
    SIDE: tl.constexpr,
    K: tl.constexpr,
    IS_TURNED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`out (R, C)`, the convolution of `x (R, C)` with `weight (K * K, C)`, turned by 180 degrees if asked."""
    tiles = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = first_rows(tiles, SIDE, HEIGHT, WIDTH)
    corner = corners(first, SIDE, K)
    position = tl.arange(0, HEIGHT * WIDTH)[None, :, None]
    total = tl.zeros((BLOCK_T, HEIGHT * WIDTH, BLOCK_C), tl.float32)
    for i in range(HEIGHT + K - 1):
        for j in tl.static_range(WIDTH + K - 1):
            value = neighbours(x, halo, first, corner, columns, i, j, R, C, SIDE, K)
            for p in tl.static_range(HEIGHT * WIDTH):
                if j >= p % WIDTH and j < p % WIDTH + K:
                    row = i - p // WIDTH
                    tap = row * K + j - p % WIDTH
                    if IS_TURNED:
                        tap = K * K - 1 - tap
                    is_tap = (columns < C) & (row >= 0) & (row < K)
                    w = tl.load(weight + tap * C + columns, mask=is_tap, other=0).to(tl.float32)
                    total = tl.where(position == p, total + value * w[None, None, :], total)
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=columns < C, other=0).to(tl.float32)[None, None, :]
    rows = first[:, None, None] + position // WIDTH * SIDE + position % WIDTH
    inside = (rows < R) & (columns < C)[None, None, :]
    tl.store(out + rows * C + columns[None, None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def weight_gradient(
    x,
    grad,
    halo,
    sums,
    R,
    C,
    steps,
    SIDE: tl.constexpr,
    K: tl.constexpr,
    PLACES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`sums (blocks, K, K + 1, C)`: parts of the gradients of the kernel and, in each last place, of the bias.

    A thread block works on `steps` times BLOCK_T tiles, of 1 x WIDTH positions, for one row of the kernel. PLACES is
    the first power of two from K + 1.
    """
    block, i = tl.program_id(0).to(tl.int64) // K, tl.program_id(0) % K
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    place = tl.arange(0, PLACES)[None, :, None]
    total = tl.zeros((BLOCK_T, PLACES, BLOCK_C), tl.float32)
    for step in range(steps):
        first = ((block * steps + step) * BLOCK_T + tl.arange(0, BLOCK_T)) * WIDTH
        corner = corners(first, SIDE, K)
        inside = (first < R)[:, None, None] & (columns < C)[None, None, :]
        of_first = grad + first[:, None, None] * C + columns[None, None, :]
        for j in tl.static_range(WIDTH + K - 1):
            value = neighbours(x, halo, first, corner, columns, i, j, R, C, SIDE, K)
            for p in tl.static_range(WIDTH):
                if j >= p and j < p + K:
                    g = tl.load(of_first + p * C, mask=inside, other=0).to(tl.float32)
                    total = tl.where(place == j - p, total + value * g, total)
        for p in tl.static_range(WIDTH):
            g = tl.load(of_first + p * C, mask=inside, other=0).to(tl.float32)
            total = tl.where(place == K, total + g, total)
    part = sums + tl.program_id(0).to(tl.int64) * (K + 1) * C
    places = tl.arange(0, PLACES)[:, None]
    tl.store(part + places * C + columns[None, :], tl.sum(total, 0), mask=(places <= K) & (columns < C)[None, :])
