"""Kernels of the depthwise convolution of packed cells for GPUs, in Triton.

A table says where the neighbours of a row (a position) lie, so that cells are neither gathered with their surroundings
nor put back in place. A thread block works on some rows and some channels. N cells of k x k positions, R = N * k * k
rows, C channels, K the kernel's width; `halo (N, k + K - 1, k + K - 1)` holds rows, and R where none is visible.
"""

# pyright: reportInvalidTypeForm=false
from importlib import import_module
from typing import Any

# Not by statements: Transformers would ask for Triton on every machine that loads published code.
triton: Any = import_module("triton")
tl: Any = import_module("triton.language")


@triton.jit
def corners(rows, side, K: tl.constexpr):
    """Where in the table what the kernel sees of each row begins."""
    width = side + K - 1
    return rows // (side * side) * (width * width) + rows // side % side * width + rows % side


@triton.jit
def neighbours(x, halo, rows, corner, columns, i, j, R, C, side, K: tl.constexpr):
    """The values `(rows, columns)` under the kernel's place (i, j), zeros where no cell is visible."""
    found = tl.load(halo + corner + i * (side + K - 1) + j, mask=rows < R, other=R)
    seen = (found < R)[:, None] & (columns < C)[None, :]
    return tl.load(x + found[:, None] * C + columns[None, :], mask=seen, other=0).to(tl.float32)


@triton.jit
def convolve(
    x,
    weight,
    bias,
    halo,
    out,
    R,
    C,
    side,
    K: tl.constexpr,
    IS_TURNED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`out (R, C)`, the convolution of `x (R, C)` with `weight (K * K, C)`, turned by 180 degrees if asked."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    corner = corners(rows, side, K)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for i in range(K):
        for j in tl.static_range(K):
            tap = K * K - 1 - (i * K + j) if IS_TURNED else i * K + j
            w = tl.load(weight + tap * C + columns, mask=columns < C, other=0).to(tl.float32)
            total += neighbours(x, halo, rows, corner, columns, i, j, R, C, side, K) * w[None, :]
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=columns < C, other=0).to(tl.float32)[None, :]
    inside = (rows < R)[:, None] & (columns < C)[None, :]
    tl.store(out + rows[:, None] * C + columns[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def weight_gradient(x, grad, halo, sums, R, C, side, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """`sums (blocks, K * K + 1, C)`: parts of the gradients of the kernel and, in the last place, of the bias."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    corner = corners(rows, side, K)
    inside = (rows < R)[:, None] & (columns < C)[None, :]
    g = tl.load(grad + rows[:, None] * C + columns[None, :], mask=inside, other=0).to(tl.float32)
    part = sums + tl.program_id(0).to(tl.int64) * (K * K + 1) * C + columns
    for i in range(K):
        for j in tl.static_range(K):
            value = neighbours(x, halo, rows, corner, columns, i, j, R, C, side, K)
            tl.store(part + (i * K + j) * C, tl.sum(g * value, 0), mask=columns < C)
    tl.store(part + K * K * C, tl.sum(g, 0), mask=columns < C)
