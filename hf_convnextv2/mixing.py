"""The pointwise part of a block: LayerNorm, linear, GELU, GRN, linear, drop path and residual, in one function.

B images, T positions of an image (the visible ones), C channels of the block, 4C of its middle.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .bypass import autocast
from .grn import ConvNextV2GRN, at_least_float32, response_gradients, response_scale

# Numbers of the middle tensor that are worked on at a time on a CPU: 4 MiB in float32, a few of which fit its cache.
CHUNK_SIZE = 2**20


class Weights(NamedTuple):
    """The parameters; without those of a norm, the input is taken for normalised."""

    up: Tensor  # (4C, C)
    up_bias: Tensor
    response: Tensor  # GRN's, (4C,)
    response_bias: Tensor
    down: Tensor  # (C, 4C)
    down_bias: Tensor
    norm: Tensor | None  # (C,)
    norm_bias: Tensor | None


def response_mlp(
    x: Tensor,
    up: nn.Linear,
    grn: ConvNextV2GRN,
    down: nn.Linear,
    norm: nn.LayerNorm | None = None,
    residual: Tensor | None = None,
    factor: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """`residual + factor * down(grn(gelu(up(norm(x)))))` of rows `(B, T, C)`, in the fewest passes over memory.

    `factor (B,)` scales the branch of an image. With `overwrite`, the result may take the memory of `x`.
    """
    linears: Any = autocast(up.weight, up.bias, grn.weight.view(-1), grn.bias.view(-1), down.weight, down.bias)
    norms: Any = (norm.weight, norm.bias) if norm is not None else (None, None)
    weights: Weights = Weights._make((*linears, *norms))
    eps = norm.eps if norm is not None else 0.0
    x = x if norm is not None else x.to(weights.up.dtype)
    factor = factor.to(weights.up.dtype)[:, None, None] if factor is not None else None
    if torch.compiler.is_compiling():
        return _formula(x, residual, factor, eps, weights)
    inputs = (x, residual, *weights)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        out: Any = _ResponseMLP.apply(x, residual, factor, eps, *weights)
        return out
    with torch.no_grad():
        return _infer(x, residual, factor, eps, weights, overwrite)


def _formula(x: Tensor, residual: Tensor | None, factor: Tensor | None, eps: float, weights: Weights) -> Tensor:
    """The formula in plain operations, for a compiler to fuse."""
    y = F.gelu(F.linear(_normalise(x, eps, weights), weights.up, weights.up_bias))
    energy = torch.linalg.vector_norm(y, dim=1, keepdim=True, dtype=at_least_float32(y.dtype))
    scale = response_scale(energy, weights.response)[0].to(y.dtype)
    if _scales_weights(x, weights):
        y = torch.baddbmm(_passed_bias(weights), y, (weights.down * scale).mT)
    else:
        y = F.linear(y * scale + weights.response_bias, weights.down, weights.down_bias)
    y = y * factor if factor is not None else y
    return residual + y if residual is not None else y


def _infer(
    x: Tensor, residual: Tensor | None, factor: Tensor | None, eps: float, weights: Weights, overwrite: bool
) -> Tensor:
    """The formula in place, a few images at a time on a CPU, so that what one pass writes the next finds in the cache.

    The first touch of fresh memory would cost more than what is written to it.
    """
    chunks = _chunks(x, weights.up)
    if len(chunks) == 1:
        branch = _infer_branch(x, factor, eps, weights)
        return residual + branch if residual is not None else branch
    dtype = _out_dtype(residual, weights)
    out = x if overwrite and x.dtype == dtype else x.new_empty(*x.shape[:2], len(weights.down), dtype=dtype)
    for images in chunks:
        branch = _infer_branch(x[images], factor[images] if factor is not None else None, eps, weights)
        if residual is not None:
            torch.add(residual[images], branch, out=out[images])
        else:
            out[images] = branch
    return out


def _infer_branch(x: Tensor, factor: Tensor | None, eps: float, weights: Weights) -> Tensor:
    rows = _normalise(x, eps, weights)
    y = torch.addmm(weights.up_bias, rows.flatten(0, 1), weights.up.T).view(*x.shape[:2], -1)
    torch.ops.aten.gelu_(y)
    wide = y.to(at_least_float32(y.dtype))
    scale = response_scale(_energy(wide, torch.empty_like(wide)), weights.response)[0].to(y.dtype)
    if _scales_weights(x, weights):
        y = torch.baddbmm(_passed_bias(weights), y, (weights.down * scale).mT)
    else:
        torch.addcmul(weights.response_bias, y, scale, out=y)
        y = torch.addmm(weights.down_bias, y.flatten(0, 1), weights.down.T).view(*x.shape[:2], -1)
    return y.mul_(factor) if factor is not None else y


def _forward(
    x: Tensor, residual: Tensor | None, factor: Tensor | None, eps: float, weights: Weights
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_infer`; also what the backward pass needs: all of the output of `up` and the energies `(B, 1, 4C)`."""
    up, down, dtype = weights.up, weights.down, weights.up.dtype
    chunks = _chunks(x, up)
    hidden = up.new_empty(*x.shape[:2], len(up))
    energy = up.new_empty(len(x), 1, len(up), dtype=at_least_float32(dtype))
    activation, squares = _buffer(hidden, chunks), _buffer(hidden, chunks, energy.dtype)
    branch = up.new_empty(chunks[0].stop, x.shape[1], len(down))
    out = x.new_empty(*x.shape[:2], len(down), dtype=_out_dtype(residual, weights))
    for images in chunks:
        h = hidden[images]
        y = activation[: len(h)]
        z = branch[: len(h)] if residual is not None else out[images]
        rows = _normalise(x[images], eps, weights).flatten(0, 1)
        torch.addmm(weights.up_bias, rows, up.T, out=h.flatten(0, 1))
        torch.ops.aten.gelu.out(h, out=y)
        energy[images] = _energy(y.to(energy.dtype), squares[: len(h)])
        scale = response_scale(energy[images], weights.response)[0].to(dtype)
        if _scales_weights(x, weights):
            torch.baddbmm(_passed_bias(weights), y, (down * scale).mT, out=z)
        else:
            torch.addcmul(weights.response_bias, y, scale, out=y)
            torch.addmm(weights.down_bias, y.flatten(0, 1), down.T, out=z.flatten(0, 1))
        if factor is not None:
            z.mul_(factor[images])
        if residual is not None:
            torch.add(residual[images], z, out=out[images])
    return out, hidden, energy


class _ResponseMLP(torch.autograd.Function):
    """Keeps the input, the output of `up` and the energies, and recomputes the rest.

    Elementwise passes over 4C channels can cost a block as much as its matrix products do.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, factor: Tensor | None, eps: float, *parameters: Tensor | None
    ) -> Tensor:
        weights = Weights(*parameters)  # type: ignore[arg-type]
        out, hidden, energy = _forward(x, residual, factor, eps, weights)
        ctx.save_for_backward(x, factor, hidden, energy, *parameters)
        ctx.eps, ctx.residual_dtype = eps, residual.dtype if residual is not None else None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, factor, hidden, energy, *parameters = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x, grads = _backward(grad, x, factor, ctx.eps, hidden, energy, Weights(*parameters))
        grad_residual = grad.to(ctx.residual_dtype) if ctx.residual_dtype is not None else None
        cast = (g.to(p.dtype) if p is not None else None for g, p in zip(grads, parameters, strict=True))
        return grad_x, grad_residual, None, None, *cast


def _backward(
    grad: Tensor, x: Tensor, factor: Tensor | None, eps: float, hidden: Tensor, energy: Tensor, weights: Weights
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Gradients of the input and of the parameters, in the order of `Weights`, from that of the output."""
    up, down = weights.up, weights.down
    chunks, scales_weights = _chunks(x, up), _scales_weights(x, weights)
    grad_x, grad_up, grad_down = torch.empty_like(x), torch.empty_like(up), torch.zeros_like(down)
    grad_up_bias, grad_response = energy.new_zeros(2, len(up))
    grad_down_bias, grad_norm, grad_norm_bias = energy.new_zeros(3, len(down))
    activation, grad_activation, product = (_buffer(hidden, chunks) for _ in range(3))
    for images in chunks:
        size = len(x[images])
        h, y, grad_y = hidden[images], activation[:size], grad_activation[:size]
        z = grad[images].to(up.dtype)
        z = z * factor[images] if factor is not None else z
        torch.ops.aten.gelu.out(h, out=y)
        if scales_weights:
            products = torch.bmm(z.mT, y)  # (images, C, 4C)
            grad_scale = (products * down).sum(dim=1, keepdim=True, dtype=energy.dtype)
            scale, pull, part = response_gradients(grad_scale, energy[images], weights.response)
            grad_down += products.mul_(scale.to(y.dtype)).sum(dim=0)
            torch.bmm(z, down * scale.to(y.dtype), out=grad_y)
            grad_y.addcmul_(y, pull.to(y.dtype))
        else:
            torch.mm(z.flatten(0, 1), down, out=grad_y.flatten(0, 1))
            grad_scale = torch.mul(grad_y, y, out=product[:size]).sum(dim=1, keepdim=True, dtype=energy.dtype)
            scale, pull, part = response_gradients(grad_scale, energy[images], weights.response)
            grad_y.mul_(scale.to(y.dtype)).addcmul_(y, pull.to(y.dtype))
            grad_down.addmm_(z.flatten(0, 1).T, y.mul_(scale.to(y.dtype)).flatten(0, 1))
        grad_response += part
        grad_down_bias += z.sum(dim=(0, 1), dtype=energy.dtype)
        torch.ops.aten.gelu_backward.grad_input(grad_y, h, grad_input=grad_y)
        grad_hidden = grad_y.flatten(0, 1)
        grad_up_bias += grad_hidden.sum(dim=0, dtype=energy.dtype)
        rows, norm_backward = _normalise_for_backward(x[images], eps, weights)
        torch.addmm(grad_up, grad_hidden.T, rows.flatten(0, 1), beta=0 if images.start == 0 else 1, out=grad_up)
        grad_rows = torch.mm(grad_hidden, up).view(rows.shape)
        if norm_backward is not None:
            grad_rows, norm_part, norm_bias_part = norm_backward(grad_rows)
            grad_norm += norm_part
            grad_norm_bias += norm_bias_part
        grad_x[images] = grad_rows
    # GRN's bias passes through `down`.
    grad_down.addr_(grad_down_bias.to(down.dtype), weights.response_bias)
    grad_response_bias = grad_down_bias.to(down.dtype) @ down
    grads = (grad_up, grad_up_bias, grad_response, grad_response_bias, grad_down, grad_down_bias)
    return grad_x, (*grads, grad_norm, grad_norm_bias)


def _normalise(x: Tensor, eps: float, weights: Weights) -> Tensor:
    """LayerNorm in the dtype of its parameters, the result in that of the products."""
    if weights.norm is None:
        return x
    wide = x.to(weights.norm.dtype)
    return F.layer_norm(wide, wide.shape[-1:], weights.norm, weights.norm_bias, eps).to(weights.up.dtype)


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


def _scales_weights(x: Tensor, weights: Weights) -> bool:
    """Whether an image has fewer numbers in `down` than in the middle tensor, so that GRN had better scale those."""
    return weights.down.shape[0] < x.shape[1]


def _passed_bias(weights: Weights) -> Tensor:
    """GRN's bias after `down`, where it touches C numbers of a position instead of 4C, and that of `down`."""
    return torch.addmv(weights.down_bias, weights.down, weights.response_bias)


def _energy(y: Tensor, squares: Tensor) -> Tensor:
    """L2 norm over positions, `(B, 1, C)`; several times as fast as `torch.linalg.vector_norm` on a CPU."""
    return torch.mul(y, y, out=squares).sum(dim=1, keepdim=True).sqrt()


def _chunks(x: Tensor, up: Tensor) -> list[slice]:
    """Slices of the images of `x (B, T, C)`, of one size or nearly; all at once where a launch costs more than a pass.

    A slice's middle tensor has no fewer numbers than `up`, or reading the weights would cost more than the rest.
    """
    images, numbers = x.shape[0], x.shape[0] * x.shape[1] * up.shape[0]
    if x.device.type != "cpu" or numbers <= CHUNK_SIZE:
        return [slice(0, images)]
    count = min(images, math.ceil(numbers / max(CHUNK_SIZE, up.numel())))
    step = math.ceil(images / count)
    return [slice(start, min(start + step, images)) for start in range(0, images, step)]


def _buffer(like: Tensor, chunks: list[slice], dtype: torch.dtype | None = None) -> Tensor:
    """Memory for the largest chunk of a tensor `(B, T, 4C)`."""
    return like.new_empty(chunks[0].stop, *like.shape[1:], dtype=dtype)
