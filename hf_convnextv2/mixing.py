"""The pointwise part of a block: LayerNorm, linear, GELU, GRN, linear, drop path and residual, in one function.

B views of images (the visible cells that share GRN's statistics), T positions of a view, R rows of all views, C
channels of the block, 4C of its middle. Views that see fewer cells have fewer rows; each group of equal ones, which
follow one another in `(R, C)`, is computed as `(B, T, C)`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .bypass import autocast, is_batch_of_gradients
from .formula import Weights, formula, formula_gradients, normalise, passed_bias, scales_weights
from .grn import ConvNextV2GRN, Groups, at_least_float32, response_gradients, response_scale

# Numbers of the middle tensor that are worked on at a time on a CPU: 4 MiB in float32, a few of which fit its cache.
CHUNK_SIZE = 2**20


class Chunk(NamedTuple):
    """Views that are worked on at a time: which of all, and their rows of all."""

    views: slice
    rows: slice
    shape: tuple[int, int]  # B and T

    def of(self, x: Tensor) -> Tensor:
        """The chunk `(B, T, C)` of rows."""
        return x[self.rows].view(*self.shape, x.shape[-1])

    def start_of(self, buffer: Tensor) -> Tensor:
        """As much of a buffer, as `(B, T, C)`."""
        return buffer[: self.rows.stop - self.rows.start].view(*self.shape, buffer.shape[-1])


def response_mlp(
    x: Tensor,
    groups: Groups,
    up: nn.Linear,
    grn: ConvNextV2GRN,
    down: nn.Linear,
    norm: nn.LayerNorm | None = None,
    residual: Tensor | None = None,
    factor: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """`residual + factor * down(grn(gelu(up(norm(x)))))` of rows `(R, C)`, in the fewest passes over memory.

    `groups` says of which views they are: so many of so many rows each, R in all. `factor` of the length of all views
    scales the branch of a view. With `overwrite`, the result may take the memory of `x`.
    """
    linears: Any = autocast(up.weight, up.bias, grn.weight.view(-1), grn.bias.view(-1), down.weight, down.bias)
    norms: Any = (norm.weight, norm.bias) if norm is not None else (None, None)
    weights: Weights = Weights._make((*linears, *norms))
    eps = norm.eps if norm is not None else 0.0
    x = x if norm is not None else x.to(weights.up.dtype)
    factor = factor.to(weights.up.dtype)[:, None, None] if factor is not None else None
    if torch.compiler.is_compiling():
        return formula(x, groups, residual, factor, eps, weights)
    chunks = _chunks(groups, weights.up)
    inputs = (x, residual, *weights)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        out: Any = _ResponseMLP.apply(x, chunks, residual, factor, eps, *weights)
        return out
    with torch.no_grad():
        return _infer(x, chunks, residual, factor, eps, weights, overwrite)


def _infer(
    x: Tensor,
    chunks: list[Chunk],
    residual: Tensor | None,
    factor: Tensor | None,
    eps: float,
    weights: Weights,
    overwrite: bool,
) -> Tensor:
    """The formula in place, a few views at a time on a CPU, so that what one pass writes the next finds in the cache.

    The first touch of fresh memory would cost more than what is written to it.
    """
    if len(chunks) == 1:
        branch = _infer_branch(chunks[0], x, factor, eps, weights).flatten(0, 1)
        return residual + branch if residual is not None else branch
    dtype = _out_dtype(residual, weights)
    out = x if overwrite and x.dtype == dtype else x.new_empty(len(x), len(weights.down), dtype=dtype)
    for chunk in chunks:
        branch = _infer_branch(chunk, x, factor, eps, weights)
        if residual is not None:
            torch.add(chunk.of(residual), branch, out=chunk.of(out))
        else:
            chunk.of(out).copy_(branch)
    return out


def _infer_branch(chunk: Chunk, x: Tensor, factor: Tensor | None, eps: float, weights: Weights) -> Tensor:
    rows = normalise(x[chunk.rows], eps, weights)
    y = torch.addmm(weights.up_bias, rows, weights.up.T).view(*chunk.shape, -1)
    torch.ops.aten.gelu_(y)
    wide = y.to(at_least_float32(y.dtype))
    scale = response_scale(_energy(wide, torch.empty_like(wide)), weights.response)[0].to(y.dtype)
    if scales_weights(chunk.shape[1], weights):
        y = torch.baddbmm(passed_bias(weights), y, (weights.down * scale).mT)
    else:
        torch.addcmul(weights.response_bias, y, scale, out=y)
        y = torch.addmm(weights.down_bias, y.flatten(0, 1), weights.down.T).view(*chunk.shape, -1)
    return y.mul_(factor[chunk.views]) if factor is not None else y


def _forward(
    x: Tensor, chunks: list[Chunk], residual: Tensor | None, factor: Tensor | None, eps: float, weights: Weights
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_infer`; also what the backward pass needs: all of the output of `up` and the energies `(B, 1, 4C)`."""
    up, down, dtype = weights.up, weights.down, weights.up.dtype
    hidden = up.new_empty(len(x), len(up))
    energy = up.new_empty(chunks[-1].views.stop, 1, len(up), dtype=at_least_float32(dtype))
    activation, squares = _buffer(hidden, chunks), _buffer(hidden, chunks, energy.dtype)
    branch = _buffer(x, chunks, dtype)
    out = x.new_empty(len(x), len(down), dtype=_out_dtype(residual, weights))
    for chunk in chunks:
        h, y = chunk.of(hidden), chunk.start_of(activation)
        z = chunk.start_of(branch) if residual is not None else chunk.of(out)
        rows = normalise(x[chunk.rows], eps, weights)
        torch.addmm(weights.up_bias, rows, up.T, out=hidden[chunk.rows])
        torch.ops.aten.gelu.out(h, out=y)
        energy[chunk.views] = _energy(y.to(energy.dtype), chunk.start_of(squares))
        scale = response_scale(energy[chunk.views], weights.response)[0].to(dtype)
        if scales_weights(chunk.shape[1], weights):
            torch.baddbmm(passed_bias(weights), y, (down * scale).mT, out=z)
        else:
            torch.addcmul(weights.response_bias, y, scale, out=y)
            torch.addmm(weights.down_bias, y.flatten(0, 1), down.T, out=z.flatten(0, 1))
        if factor is not None:
            z.mul_(factor[chunk.views])
        if residual is not None:
            torch.add(chunk.of(residual), z, out=chunk.of(out))
    return out, hidden, energy


class _ResponseMLP(torch.autograd.Function):
    """Keeps the input, the output of `up` and the energies, and recomputes the rest.

    Elementwise passes over 4C channels can cost a block as much as its matrix products do. Gradients that are to be
    differentiated, or of which there are many at a time, come from the plain formula.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        chunks: list[Chunk],
        residual: Tensor | None,
        factor: Tensor | None,
        eps: float,
        *parameters: Tensor | None,
    ) -> Tensor:
        weights = Weights(*parameters)  # type: ignore[arg-type]
        out, hidden, energy = _forward(x, chunks, residual, factor, eps, weights)
        ctx.save_for_backward(x, factor, hidden, energy, *parameters)
        ctx.chunks, ctx.eps, ctx.residual_dtype = chunks, eps, residual.dtype if residual is not None else None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, factor, hidden, energy, *parameters = ctx.saved_tensors
        grad_residual = grad.to(ctx.residual_dtype) if ctx.residual_dtype is not None else None
        if torch.is_grad_enabled() or is_batch_of_gradients(grad):
            groups = tuple(chunk.shape for chunk in ctx.chunks)
            grad_x, *grads = formula_gradients(grad, x, groups, factor, ctx.eps, parameters)
            return grad_x, None, grad_residual, None, None, *grads
        grad = grad.contiguous()
        grad_x, grads = _backward(grad, x, ctx.chunks, factor, ctx.eps, hidden, energy, Weights(*parameters))
        cast = (g.to(p.dtype) if p is not None else None for g, p in zip(grads, parameters, strict=True))
        return grad_x, None, grad_residual, None, None, *cast


def _backward(
    grad: Tensor,
    x: Tensor,
    chunks: list[Chunk],
    factor: Tensor | None,
    eps: float,
    hidden: Tensor,
    energy: Tensor,
    weights: Weights,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Gradients of the input and of the parameters, in the order of `Weights`, from that of the output."""
    up, down = weights.up, weights.down
    grad_x, grad_up, grad_down = torch.empty_like(x), torch.empty_like(up), torch.zeros_like(down)
    grad_up_bias, grad_response = energy.new_zeros(2, len(up))
    grad_down_bias, grad_norm, grad_norm_bias = energy.new_zeros(3, len(down))
    activation, grad_activation, product = (_buffer(hidden, chunks) for _ in range(3))
    for chunk in chunks:
        h, y, grad_y = chunk.of(hidden), chunk.start_of(activation), chunk.start_of(grad_activation)
        z = chunk.of(grad).to(up.dtype)
        z = z * factor[chunk.views] if factor is not None else z
        torch.ops.aten.gelu.out(h, out=y)
        if scales_weights(chunk.shape[1], weights):
            products = torch.bmm(z.mT, y)  # (B, C, 4C)
            grad_scale = (products * down).sum(dim=1, keepdim=True, dtype=energy.dtype)
            scale, pull, part = response_gradients(grad_scale, energy[chunk.views], weights.response)
            grad_down += products.mul_(scale.to(y.dtype)).sum(dim=0)
            torch.bmm(z, down * scale.to(y.dtype), out=grad_y)
            grad_y.addcmul_(y, pull.to(y.dtype))
        else:
            torch.mm(z.flatten(0, 1), down, out=grad_y.flatten(0, 1))
            grad_scale = torch.mul(grad_y, y, out=chunk.start_of(product)).sum(dim=1, keepdim=True, dtype=energy.dtype)
            scale, pull, part = response_gradients(grad_scale, energy[chunk.views], weights.response)
            grad_y.mul_(scale.to(y.dtype)).addcmul_(y, pull.to(y.dtype))
            grad_down.addmm_(z.flatten(0, 1).T, y.mul_(scale.to(y.dtype)).flatten(0, 1))
        grad_response += part
        grad_down_bias += z.sum(dim=(0, 1), dtype=energy.dtype)
        torch.ops.aten.gelu_backward.grad_input(grad_y, h, grad_input=grad_y)
        grad_hidden = grad_y.flatten(0, 1)
        grad_up_bias += grad_hidden.sum(dim=0, dtype=energy.dtype)
        rows, norm_backward = _normalise_for_backward(x[chunk.rows], eps, weights)
        torch.addmm(grad_up, grad_hidden.T, rows, beta=0 if chunk.rows.start == 0 else 1, out=grad_up)
        grad_rows = torch.mm(grad_hidden, up)
        if norm_backward is not None:
            grad_rows, norm_part, norm_bias_part = norm_backward(grad_rows)
            grad_norm += norm_part
            grad_norm_bias += norm_bias_part
        grad_x[chunk.rows] = grad_rows
    # GRN's bias passes through `down`.
    grad_down.addr_(grad_down_bias.to(down.dtype), weights.response_bias)
    grad_response_bias = grad_down_bias.to(down.dtype) @ down
    grads = (grad_up, grad_up_bias, grad_response, grad_response_bias, grad_down, grad_down_bias)
    return grad_x, (*grads, grad_norm, grad_norm_bias)


def _normalise_for_backward(
    x: Tensor, eps: float, weights: Weights
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]] | None]:
    """The same, and what leads from its gradient to those of the input, the weight and the bias."""
    if weights.norm is None:
        return x, None
    norm, shape, wide = (weights.norm, weights.norm_bias), x.shape[-1:], x.to(weights.norm.dtype)
    rows, mean, deviation = torch.native_layer_norm(wide, shape, *norm, eps)

    def backward(grad: Tensor) -> tuple[Tensor, ...]:
        everything = [True, True, True]
        arguments = (grad.to(wide.dtype), wide, shape, mean, deviation, *norm, everything)
        return torch.ops.aten.native_layer_norm_backward(*arguments)

    return rows.to(weights.up.dtype), backward


def _out_dtype(residual: Tensor | None, weights: Weights) -> torch.dtype:
    return torch.promote_types(residual.dtype, weights.up.dtype) if residual is not None else weights.up.dtype


def _energy(y: Tensor, squares: Tensor) -> Tensor:
    """L2 norm over positions, `(B, 1, C)`; several times as fast as `torch.linalg.vector_norm` on a CPU."""
    return torch.mul(y, y, out=squares).sum(dim=1, keepdim=True).sqrt()


def _chunks(groups: Groups, up: Tensor) -> list[Chunk]:
    """Slices of each group's views, of one size or nearly; all at once where a launch costs more than a pass.

    A slice's middle tensor has no fewer numbers than `up`, or reading the weights would cost more than the rest.
    """
    chunks = []
    for group in _slices(groups):
        views, positions = group.shape
        numbers = views * positions * up.shape[0]
        count = 1
        if up.device.type == "cpu" and numbers > CHUNK_SIZE:
            count = min(views, math.ceil(numbers / max(CHUNK_SIZE, up.numel())))
        step = math.ceil(views / count)
        sizes = [min(step, views - start) for start in range(0, views, step)]
        chunks += _slices([(size, positions) for size in sizes], group.views.start, group.rows.start)
    return chunks


def _slices(groups: Sequence[tuple[int, int]], view: int = 0, row: int = 0) -> list[Chunk]:
    """Each group as one chunk, from a view and a row on."""
    chunks = []
    for views, positions in groups:
        stop, end = view + views, row + views * positions
        chunks.append(Chunk(slice(view, stop), slice(row, end), (views, positions)))
        view, row = stop, end
    return chunks


def _buffer(like: Tensor, chunks: list[Chunk], dtype: torch.dtype | None = None) -> Tensor:
    """Memory for the rows of the largest chunk."""
    return like.new_empty(max(chunk.rows.stop - chunk.rows.start for chunk in chunks), like.shape[1], dtype=dtype)
