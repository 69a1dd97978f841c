"""Kernels of the fused MLP for GPUs, in Triton: what lies between its matrix products, in the fewest passes.

A thread block works on some rows of one view and some of the W = 4C channels of the middle, or on some rows and all C
channels of the block. B views, T rows of a view, R rows of all views. All arithmetic is in float32. Sums over rows are
written in parts, one for each thread block, and added up afterwards: the order of additions is fixed, so that equal
inputs give equal bits.
"""

# pyright: reportInvalidTypeForm=false
from importlib import import_module
from typing import Any

# Not by statements: Transformers would ask for Triton on every machine that loads published code.
triton: Any = import_module("triton")
tl: Any = import_module("triton.language")

SQRT_HALF = tl.constexpr(0.7071067811865476)
DENSITY_AT_ZERO = tl.constexpr(0.3989422804014327)  # of the normal distribution


@triton.jit
def gelu(x):
    return 0.5 * x * (1 + tl.erf(x * SQRT_HALF))


@triton.jit
def gelu_slope(x):
    return 0.5 * (1 + tl.erf(x * SQRT_HALF)) + x * DENSITY_AT_ZERO * tl.exp(-0.5 * x * x)


@triton.jit
def view_tile(T, W, splits, rows_per_split, BLOCK_W: tl.constexpr):
    """The view, the first and the end row (of those of all views), and the channels of a thread block."""
    view = tl.program_id(0) // splits
    start = tl.program_id(0) % splits * rows_per_split
    columns = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    first = view.to(tl.int64) * T
    return view, first + start, first + tl.minimum(start + rows_per_split, T), columns


@triton.jit
def layer_norm(x, weight, bias, out, R, C, eps, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """`out = layer_norm(x)`, rows `(R, C)`."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_C)
    inside = (rows < R)[:, None] & (columns < C)[None, :]
    places = rows[:, None] * C + columns[None, :]
    value = tl.load(x + places, mask=inside, other=0).to(tl.float32)
    centred = tl.where(inside, value - (tl.sum(value, 1) / C)[:, None], 0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
    w = tl.load(weight + columns, mask=columns < C, other=0).to(tl.float32)
    b = tl.load(bias + columns, mask=columns < C, other=0).to(tl.float32)
    result = centred * scale[:, None] * w[None, :] + b[None, :]
    tl.store(out + places, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def layer_norm_backward(
    grad, x, weight, grad_x, sums, R, C, eps, rows_per_block, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Fill `grad_x (R, C)`, and `sums (blocks, 2, C)` with parts of the gradients of `weight` and of the bias."""
    columns = tl.arange(0, BLOCK_C)
    w = tl.load(weight + columns, mask=columns < C, other=0).to(tl.float32)
    grad_weight = tl.zeros((BLOCK_C,), tl.float32)
    grad_bias = tl.zeros((BLOCK_C,), tl.float32)
    start = tl.program_id(0).to(tl.int64) * rows_per_block
    end = tl.minimum(start + rows_per_block, R)
    for row in range(start, end, BLOCK_R):
        rows = row + tl.arange(0, BLOCK_R)
        inside = (rows < end)[:, None] & (columns < C)[None, :]
        places = rows[:, None] * C + columns[None, :]
        value = tl.load(x + places, mask=inside, other=0).to(tl.float32)
        g = tl.load(grad + places, mask=inside, other=0).to(tl.float32)
        centred = tl.where(inside, value - (tl.sum(value, 1) / C)[:, None], 0)
        scale = 1 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
        normalised = centred * scale[:, None]
        grad_weight += tl.sum(g * normalised, 0)
        grad_bias += tl.sum(g, 0)
        g = g * w[None, :]
        along = tl.sum(g * normalised, 1) / C
        result = (g - (tl.sum(g, 1) / C)[:, None] - normalised * along[:, None]) * scale[:, None]
        tl.store(grad_x + places, result.to(grad_x.dtype.element_ty), mask=inside)
    part = sums + tl.program_id(0) * 2 * C + columns
    tl.store(part, grad_weight, mask=columns < C)
    tl.store(part + C, grad_bias, mask=columns < C)


@triton.jit
def squares(hidden, up_bias, sums, T, W, splits, rows_per_split, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr):
    """`sums (B * splits, W)`: parts of the sum of `gelu(hidden + up_bias) ** 2` over the rows of a view."""
    _, start, end, columns = view_tile(T, W, splits, rows_per_split, BLOCK_W)
    bias = tl.load(up_bias + columns, mask=columns < W, other=0).to(tl.float32)
    total = tl.zeros((BLOCK_T, BLOCK_W), tl.float32)
    for row in range(start, end, BLOCK_T):
        rows = row + tl.arange(0, BLOCK_T)
        inside = (rows < end)[:, None] & (columns < W)[None, :]
        h = tl.load(hidden + rows[:, None] * W + columns[None, :], mask=inside, other=0).to(tl.float32)
        y = tl.where(inside, gelu(h + bias[None, :]), 0)
        total += y * y
    tl.store(sums + tl.program_id(0) * W + columns, tl.sum(total, 0), mask=columns < W)


@triton.jit
def scale(sums, grn_weight, energy, scale, splits, W, eps, BLOCK_W: tl.constexpr):
    """GRN's `energy (B, W)` and `scale (B, W)` of a view, from the parts `sums (B * splits, W)` of its squares."""
    view = tl.program_id(0)
    columns = tl.arange(0, BLOCK_W)
    inside = columns < W
    total = tl.zeros((BLOCK_W,), tl.float32)
    for part in range(splits):
        total += tl.load(sums + (view * splits + part) * W + columns, mask=inside, other=0)
    root = tl.sqrt(total)
    mean = tl.sum(root, 0) / W + eps
    w = tl.load(grn_weight + columns, mask=inside, other=0).to(tl.float32)
    tl.store(energy + view * W + columns, root, mask=inside)
    tl.store(scale + view * W + columns, 1 + w * (root / mean), mask=inside)


@triton.jit
def activation(
    hidden,
    up_bias,
    scale,
    grn_bias,
    out,
    T,
    W,
    splits,
    rows_per_split,
    BLOCK_T: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """`out = gelu(hidden + up_bias) * scale + grn_bias`; `out` may be `hidden`."""
    view, start, end, columns = view_tile(T, W, splits, rows_per_split, BLOCK_W)
    bias = tl.load(up_bias + columns, mask=columns < W, other=0).to(tl.float32)
    s = tl.load(scale + view * W + columns, mask=columns < W, other=0)
    shift = tl.load(grn_bias + columns, mask=columns < W, other=0).to(tl.float32)
    for row in range(start, end, BLOCK_T):
        rows = row + tl.arange(0, BLOCK_T)
        inside = (rows < end)[:, None] & (columns < W)[None, :]
        places = rows[:, None] * W + columns[None, :]
        h = tl.load(hidden + places, mask=inside, other=0).to(tl.float32)
        y = gelu(h + bias[None, :]) * s[None, :] + shift[None, :]
        tl.store(out + places, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def residual(
    branch,
    down_bias,
    factor,
    residual,
    out,
    R,
    T,
    C,
    HAS_FACTOR: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`out = residual + factor * (branch + down_bias)`, rows `(R, C)`, one factor for the T rows of a view."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (rows < R)[:, None] & (columns < C)[None, :]
    places = rows[:, None] * C + columns[None, :]
    bias = tl.load(down_bias + columns, mask=columns < C, other=0).to(tl.float32)
    y = tl.load(branch + places, mask=inside, other=0).to(tl.float32) + bias[None, :]
    if HAS_FACTOR:
        y = y * tl.load(factor + rows // T, mask=rows < R, other=0).to(tl.float32)[:, None]
    if HAS_RESIDUAL:
        y = y + tl.load(residual + places, mask=inside, other=0).to(tl.float32)
    tl.store(out + places, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def residual_backward(
    grad,
    factor,
    out,
    sums,
    R,
    T,
    C,
    rows_per_block,
    HAS_FACTOR: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`out = grad * factor` in the dtype of the products; `sums (blocks, C)` are parts of its sum over the rows."""
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    start = tl.program_id(0).to(tl.int64) * rows_per_block
    end = tl.minimum(start + rows_per_block, R)
    for row in range(start, end, BLOCK_R):
        rows = row + tl.arange(0, BLOCK_R)
        inside = (rows < end)[:, None] & (columns < C)[None, :]
        places = rows[:, None] * C + columns[None, :]
        z = tl.load(grad + places, mask=inside, other=0).to(tl.float32)
        if HAS_FACTOR:
            z = z * tl.load(factor + rows // T, mask=rows < end, other=0).to(tl.float32)[:, None]
        total += z
        tl.store(out + places, z.to(out.dtype.element_ty), mask=inside)
    tl.store(sums + tl.program_id(0) * C + columns, tl.sum(total, 0), mask=columns < C)


@triton.jit
def grad_scale(hidden, up_bias, grad, sums, T, W, splits, rows_per_split, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr):
    """`sums (B * splits, W)`: parts of the gradient of GRN's scale, the sum of `grad * gelu(hidden + up_bias)`."""
    _, start, end, columns = view_tile(T, W, splits, rows_per_split, BLOCK_W)
    bias = tl.load(up_bias + columns, mask=columns < W, other=0).to(tl.float32)
    total = tl.zeros((BLOCK_T, BLOCK_W), tl.float32)
    for row in range(start, end, BLOCK_T):
        rows = row + tl.arange(0, BLOCK_T)
        inside = (rows < end)[:, None] & (columns < W)[None, :]
        places = rows[:, None] * W + columns[None, :]
        h = tl.load(hidden + places, mask=inside, other=0).to(tl.float32)
        total += gelu(h + bias[None, :]) * tl.load(grad + places, mask=inside, other=0).to(tl.float32)
    tl.store(sums + tl.program_id(0) * W + columns, tl.sum(total, 0), mask=columns < W)


@triton.jit
def grn_backward(sums, grn_weight, energy, scale, slope, grad_weight, splits, W, eps, BLOCK_W: tl.constexpr):
    """GRN's `scale`, `slope` and its part of the gradient of `grn_weight`, each `(B, W)`: see `grn_gradients`."""
    view = tl.program_id(0)
    columns = tl.arange(0, BLOCK_W)
    inside = columns < W
    grad = tl.zeros((BLOCK_W,), tl.float32)
    for part in range(splits):
        grad += tl.load(sums + (view * splits + part) * W + columns, mask=inside, other=0)
    e = tl.load(energy + view * W + columns, mask=inside, other=0)
    w = tl.load(grn_weight + columns, mask=inside, other=0).to(tl.float32)
    mean = tl.sum(e, 0) / W + eps
    share = e / mean
    grad_share = grad * w
    grad_energy = (grad_share - tl.sum(grad_share * share, 0) / W) / mean
    tl.store(scale + view * W + columns, 1 + w * share, mask=inside)
    tl.store(slope + view * W + columns, tl.where(e > 0, grad_energy / tl.where(e > 0, e, 1), 0), mask=inside)
    tl.store(grad_weight + view * W + columns, grad * share, mask=inside)


@triton.jit
def activation_backward(
    hidden,
    up_bias,
    scale,
    slope,
    grn_bias,
    grad,
    out,
    sums,
    T,
    W,
    splits,
    rows_per_split,
    BLOCK_T: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Turn `grad`, of GRN's output, into that of `hidden`, in place, and fill `out` with GRN's output.

    `sums (B * splits, W)` are parts of the gradient of `up_bias`.
    """
    view, start, end, columns = view_tile(T, W, splits, rows_per_split, BLOCK_W)
    bias = tl.load(up_bias + columns, mask=columns < W, other=0).to(tl.float32)
    s = tl.load(scale + view * W + columns, mask=columns < W, other=0)
    t = tl.load(slope + view * W + columns, mask=columns < W, other=0)
    shift = tl.load(grn_bias + columns, mask=columns < W, other=0).to(tl.float32)
    total = tl.zeros((BLOCK_T, BLOCK_W), tl.float32)
    for row in range(start, end, BLOCK_T):
        rows = row + tl.arange(0, BLOCK_T)
        inside = (rows < end)[:, None] & (columns < W)[None, :]
        places = rows[:, None] * W + columns[None, :]
        h = tl.load(hidden + places, mask=inside, other=0).to(tl.float32) + bias[None, :]
        g = tl.load(grad + places, mask=inside, other=0).to(tl.float32)
        y = gelu(h)
        grad_hidden = tl.where(inside, (g * s[None, :] + y * t[None, :]) * gelu_slope(h), 0)
        total += grad_hidden
        tl.store(grad + places, grad_hidden.to(grad.dtype.element_ty), mask=inside)
        tl.store(out + places, (y * s[None, :] + shift[None, :]).to(out.dtype.element_ty), mask=inside)
    tl.store(sums + tl.program_id(0) * W + columns, tl.sum(total, 0), mask=columns < W)
