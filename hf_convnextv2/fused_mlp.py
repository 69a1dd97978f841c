"""The MLP of a block in one function: LayerNorm, linear, GELU, GRN, linear, LayerScale, drop path and residual.

A block of ConvNeXt V2 has no LayerScale, one of V1 no GRN. It computes what fused_mlp_reference.py spells out, in the
fewest passes over memory: elementwise passes over the 4C channels of the middle can cost a block as much as its matrix
products do.

B views (the positions that share GRN's statistics), T positions of a view, R rows of all views, C channels of the
block, 4C of its middle. Views of one size follow one another in `(R, C)`; each group is computed as `(B, T, C)`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .chunks import Chunk, chunk_buffer, split_into_chunks
from .fast_path import is_batch_of_gradients
from .fused_mlp_backward import mlp_gradients
from .fused_mlp_reference import (
    MLPWeights,
    normalise,
    projected_bias,
    reference_gradients,
    reference_mlp,
    scaled_down,
    scales_weights,
)
from .gpu_mlp import backward_by_kernels, forward_by_kernels
from .grn import ConvNextV2GRN, grn_scale
from .groups import Groups
from .layer_scale import add_scaled, folds_layer_scale
from .precision import HALF, at_least_float32, cast_for_autocast
from .products import linear, linear_of_views
from .triton_kernels import runs_on_kernels


def fused_mlp(
    x: Tensor,
    groups: Groups,
    up: nn.Linear,
    grn: ConvNextV2GRN | None,
    down: nn.Linear,
    norm: nn.LayerNorm | None = None,
    residual: Tensor | None = None,
    factor: Tensor | None = None,
    layer_scale: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """`residual + factor * layer_scale * down(grn(gelu(up(norm(x)))))` of rows `(R, C)`.

    Args:
        groups: number of views and rows of each, group after group.
        factor: `(views,)`, scales the branch of each view.
        layer_scale: `(C,)`, scales each channel of the branch.
        overwrite: whether the result may take the memory of `x`, where no gradient is needed.
    """
    if layer_scale is not None and not folds_layer_scale(len(x), up.weight):
        return add_scaled(fused_mlp(x, groups, up, grn, down, norm), groups, residual, factor, layer_scale)
    weights = _weights(up, grn, down, norm, layer_scale)
    dtype = weights.up.dtype
    if norm is None:
        x = x.to(dtype)
    if factor is not None:
        factor = factor.to(dtype)[:, None, None]
    if torch.compiler.is_compiling():
        return reference_mlp(x, groups, residual, factor, weights)
    chunks = split_into_chunks(groups, weights.up)
    if _needs_gradients(x, residual, *weights):
        out: Any = FusedMLP.apply(x, chunks, residual, factor, *weights)
        return out
    with torch.no_grad():
        return _infer(x, chunks, residual, factor, weights, overwrite)


def _weights(
    up: nn.Linear, grn: ConvNextV2GRN | None, down: nn.Linear, norm: nn.LayerNorm | None, layer_scale: Tensor | None
) -> MLPWeights:
    """The parameters of the layers, LayerScale multiplied into `down`.

    `up` is as autocast would cast it, the others are cast where they are used.
    """
    down_weight, down_bias = down.weight, down.bias
    if layer_scale is not None:
        down_weight, down_bias = layer_scale[:, None] * down_weight, layer_scale * down_bias
    cast: Any = cast_for_autocast(up.weight, up.bias)
    up_weight, up_bias = cast
    scale, shift = (None, None) if grn is None else (grn.weight.view(-1), grn.bias.view(-1))
    if runs_on_kernels(up_weight) and not torch.compiler.is_compiling():  # which read vectors as they are
        cast = cast_for_autocast(down_weight)
        up_bias, down_weight = up.bias, cast[0]
    else:  # both biases are part of products with `down`
        down_bias = down_bias.to(down_weight.dtype)
        shift = None if shift is None else shift.to(down_weight.dtype)
    weights = MLPWeights(up_weight, up_bias, scale, shift, down_weight, down_bias)
    if norm is None:
        return weights
    return weights._replace(norm=norm.weight, norm_bias=norm.bias, eps=norm.eps)


def _needs_gradients(*inputs: Tensor | float | None) -> bool:
    """Whether autograd records what is computed from these."""
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in inputs)


def _infer(
    x: Tensor,
    chunks: list[Chunk],
    residual: Tensor | None,
    factor: Tensor | None,
    weights: MLPWeights,
    overwrite: bool,
) -> Tensor:
    """The output alone: every chunk is computed in place, because the first touch of fresh memory is expensive."""
    if runs_on_kernels(weights.up):
        return forward_by_kernels(x, chunks, residual, factor, weights, keep_hidden=False)[0]
    wide = weights.up.T  # as wide as the middle
    squares = None if weights.grn is None else chunk_buffer(wide, chunks, at_least_float32(wide.dtype))
    buffers = chunk_buffer(wide, chunks), squares
    if len(chunks) == 1:
        branch = _infer_branch(chunks[0], x, factor, weights, *buffers).flatten(0, 1)
        return branch if residual is None else residual + branch
    dtype = _out_dtype(residual, weights)
    can_overwrite = overwrite and x.dtype == dtype
    out = x if can_overwrite else x.new_empty(len(x), len(weights.down), dtype=dtype)
    for chunk in chunks:
        branch = _infer_branch(chunk, x, factor, weights, *buffers)
        if residual is None:
            chunk.of(out).copy_(branch)
        else:
            torch.add(chunk.of(residual), branch, out=chunk.of(out))
    return out


def _infer_branch(
    chunk: Chunk, x: Tensor, factor: Tensor | None, weights: MLPWeights, activation: Tensor, squares: Tensor | None
) -> Tensor:
    """`factor * down(grn(gelu(up(norm(x)))))` of a chunk, `(B, T, C)`; the last two are overwritten."""
    rows = _normalise(x[chunk.rows], weights)
    y = linear(rows, weights.up, weights.up_bias, out=chunk.start_of(activation).flatten(0, 1)).view(*chunk.shape, -1)
    torch.ops.aten.gelu_(y)
    y = _project_down(y, None if squares is None else _energy(y, chunk.start_of(squares)), weights)
    return y if factor is None else y.mul_(factor[chunk.views])


def _forward(
    x: Tensor, chunks: list[Chunk], residual: Tensor | None, factor: Tensor | None, weights: MLPWeights
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """The output, and what its gradients need: `up`'s of each chunk `(B, T, 4C)`, and the energies `(views, 1, 4C)`.

    There are no energies without GRN.
    """
    num_views, width, dtype = chunks[-1].views.stop, len(weights.up), weights.up.dtype
    hidden, wide = [], weights.up.T  # as wide as the middle
    activation, energy, squares = chunk_buffer(wide, chunks), None, None
    if weights.grn is not None:
        energy = weights.up.new_empty(num_views, 1, width, dtype=at_least_float32(dtype))
        squares = chunk_buffer(wide, chunks, energy.dtype)
    branch = chunk_buffer(weights.down.T, chunks, dtype)
    out = x.new_empty(len(x), len(weights.down), dtype=_out_dtype(residual, weights))
    for chunk in chunks:
        y = chunk.start_of(activation)
        h = linear(_normalise(x[chunk.rows], weights), weights.up, weights.up_bias).view(y.shape)
        hidden.append(h)
        torch.ops.aten.gelu.out(h, out=y)
        found = None
        if energy is not None and squares is not None:
            energy[chunk.views] = found = _energy(y, chunk.start_of(squares))
        z = _project_down(y, found, weights, out=chunk.start_of(branch))
        if factor is not None:
            z.mul_(factor[chunk.views])
        if residual is None:
            chunk.of(out).copy_(z)
        else:
            torch.add(chunk.of(residual), z, out=chunk.of(out))
    return out, hidden, energy


def _normalise(rows: Tensor, weights: MLPWeights) -> Tensor:
    """`normalise` of the reference, which rows in half precision go through in one pass instead of three."""
    if weights.norm is None or rows.dtype != weights.up.dtype or rows.dtype not in HALF:
        return normalise(rows, weights)
    return torch.native_layer_norm(rows, rows.shape[-1:], weights.norm, weights.norm_bias, weights.eps)[0]


def _energy(y: Tensor, squares: Tensor) -> Tensor:
    """L2 norm over positions, `(B, 1, C)`; several times as fast as `torch.linalg.vector_norm` on a CPU.

    Half precision is squared and summed in float32, the dtype of `squares`.
    """
    if squares.dtype == y.dtype:
        torch.mul(y, y, out=squares)
    else:
        squares.copy_(y)
        squares.mul_(squares)
    return squares.sum(dim=1, keepdim=True).sqrt()


def _project_down(y: Tensor, energy: Tensor | None, weights: MLPWeights, out: Tensor | None = None) -> Tensor:
    """`down(grn(y))`, `(B, T, C)`, of `y (B, T, 4C)`, which it may overwrite; the result may lie in `out`.

    Without energies there is no GRN.
    """
    down, bias = weights.down, weights.down_bias
    if energy is None or weights.grn is None or weights.grn_bias is None:
        down, bias = down.to(y.dtype), bias.to(y.dtype)
    else:
        scale = grn_scale(energy, weights.grn)
        if scales_weights(y.shape[1], weights):
            return linear_of_views(y, scaled_down(weights, scale), projected_bias(weights), out=out)
        if down.dtype == y.dtype:
            torch.addcmul(weights.grn_bias, y, scale.to(y.dtype), out=y)
        else:  # under autocast, where `scale - 1` and the bias that is projected in float32 are rounded least
            y.addcmul_(y, (scale - 1).to(y.dtype))
            down, bias = down.to(y.dtype), projected_bias(weights)
    rows = None if out is None else out.flatten(0, 1)
    return linear(y.flatten(0, 1), down, bias, out=rows).view(*y.shape[:2], -1)


def _out_dtype(residual: Tensor | None, weights: MLPWeights) -> torch.dtype:
    """The dtype of `residual + branch`."""
    dtype = weights.up.dtype
    return dtype if residual is None else torch.promote_types(residual.dtype, dtype)


class FusedMLP(torch.autograd.Function):
    """Saves the input, the outputs of `up` and the energies, and recomputes the rest for the gradients.

    Gradients that are to be differentiated, or several at a time, come from the reference.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        chunks: list[Chunk],
        residual: Tensor | None,
        factor: Tensor | None,
        *weights: Any,
    ) -> Tensor:
        *parameters, eps = weights
        forward = forward_by_kernels if runs_on_kernels(weights[0]) else _forward
        out, hidden, energy = forward(x, chunks, residual, factor, MLPWeights(*weights))
        ctx.save_for_backward(x, factor, energy, *parameters, *hidden)
        ctx.chunks, ctx.eps = chunks, eps
        ctx.residual_dtype = None if residual is None else residual.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, factor, energy, *rest = ctx.saved_tensors
        count = len(MLPWeights._fields) - 1
        weights, hidden = MLPWeights._make((*rest[:count], ctx.eps)), rest[count:]
        grad_residual = None if ctx.residual_dtype is None else grad.to(ctx.residual_dtype)
        if torch.is_grad_enabled() or is_batch_of_gradients(grad):
            groups = tuple(chunk.shape for chunk in ctx.chunks)
            grad_x, grad_weights = reference_gradients(grad, x, groups, factor, weights)
        else:
            gradients = backward_by_kernels if runs_on_kernels(weights.up) else mlp_gradients
            grad_x, grad_weights = gradients(grad.contiguous(), x, ctx.chunks, factor, hidden, energy, weights)
        return grad_x, None, grad_residual, None, *grad_weights
