"""Global Response Normalization (arXiv 2301.00808, section 4), alone and fused with the layers around it in a block.

B images, T positions of an image (the visible ones), C channels of the block, 4C of its middle.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bypass import autocast

GRN_EPS = 1e-6
# Numbers of the middle tensor that are worked on at a time on a CPU: 4 MiB in float32, a few of which fit its cache.
CHUNK_SIZE = 2**20


class ConvNextV2GRN(nn.Module):
    """Scale each channel by its share of an image's energy (paper, equations 1 to 4)."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, dim))  # 4-D as in the released checkpoints
        self.bias = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor, num_visible: int = 1) -> Tensor:
        """`x (N, H, W, C)`, N = B * `num_visible`; statistics in float32, the affine in the input's dtype."""
        rows = x.reshape(x.shape[0] // num_visible, -1, x.shape[-1])
        energy = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=_at_least_float32(x))
        scale = _scale(energy, self.weight)[0].to(x.dtype)
        return (rows * scale).view(x.shape) + self.bias.to(x.dtype)


def response_mlp(x: Tensor, up: nn.Linear, grn: ConvNextV2GRN, down: nn.Linear) -> Tensor:
    """`down(grn(gelu(up(x))))` of rows `(B, T, C)`, in the fewest passes over the 4C-wide tensor between the two."""
    parameters = (up.weight, up.bias, grn.weight.view(-1), grn.bias.view(-1), down.weight, down.bias)
    tensors: Any = autocast(x, *parameters)
    if torch.compiler.is_compiling():
        return _response_mlp(*tensors)
    if not torch.is_grad_enabled():
        return _forward(*tensors, keep=False)[0]
    out: Any = _ResponseMLP.apply(*tensors)
    return out


def _response_mlp(
    x: Tensor, up: Tensor, up_bias: Tensor, weight: Tensor, bias: Tensor, down: Tensor, down_bias: Tensor
) -> Tensor:
    """The formula, for a compiler to fuse."""
    y = F.gelu(F.linear(x, up, up_bias))
    energy = torch.linalg.vector_norm(y, dim=1, keepdim=True, dtype=_at_least_float32(y))
    scale = _scale(energy, weight)[0].to(y.dtype)
    if _scales_weights(x, down):
        return torch.baddbmm(F.linear(bias, down, down_bias), y, (down * scale).mT)
    return F.linear(y * scale + bias, down, down_bias)


def _forward(
    x: Tensor, up: Tensor, up_bias: Tensor, weight: Tensor, bias: Tensor, down: Tensor, down_bias: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The formula in place: the output, the first linear layer's (all of it with `keep`) and the energies `(B, 1, 4C)`.

    On a CPU the elementwise passes run over a few images at a time, in buffers that stay in the cache: fresh memory
    would cost more than what is written to it.
    """
    chunks = _chunks(x, up)
    hidden = x.new_empty(len(x) if keep else chunks[0].stop, x.shape[1], len(up))
    energy = x.new_empty(len(x), 1, len(up), dtype=_at_least_float32(x))
    activation = _buffer(hidden, chunks) if keep else hidden
    squares = _buffer(hidden, chunks, energy.dtype)
    out = x.new_empty(*x.shape[:2], len(down))
    # GRN's bias passes through `down`: added there it touches C numbers instead of 4C a position.
    passed_bias = F.linear(bias, down, down_bias) if _scales_weights(x, down) else None
    for images in chunks:
        size = len(x[images])
        h, y, result = hidden[images] if keep else hidden[:size], activation[:size], out[images]
        torch.addmm(up_bias, x[images].flatten(0, 1), up.T, out=h.flatten(0, 1))
        torch.ops.aten.gelu.out(h, out=y)
        energy[images] = _energy(y, squares[:size])
        scale = _scale(energy[images], weight)[0].to(y.dtype)
        if passed_bias is not None:
            torch.baddbmm(passed_bias, y, (down * scale).mT, out=result)
        else:
            torch.addcmul(bias, y, scale, out=y)
            torch.addmm(down_bias, y.flatten(0, 1), down.T, out=result.flatten(0, 1))
    return out, hidden, energy


class _ResponseMLP(torch.autograd.Function):
    """Linear, GELU, GRN, linear; keeps the first one's output and the energies, and recomputes the rest.

    Elementwise passes over 4C channels can cost a block as much as its matrix products do.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor, weight: Tensor, bias: Tensor, down: Tensor, down_bias: Tensor
    ) -> Tensor:
        out, hidden, energy = _forward(x, up, up_bias, weight, bias, down, down_bias, keep=True)
        ctx.save_for_backward(x, hidden, energy, up, weight, bias, down)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, energy, up, weight, bias, down = ctx.saved_tensors
        chunks = _chunks(x, up)
        grad, grad_x, grad_up = grad.contiguous(), torch.empty_like(x), torch.empty_like(up)
        grad_down_bias = grad.sum(dim=(0, 1))
        grad_down = torch.outer(grad_down_bias, bias)  # what GRN's bias contributes; the rest is added below
        grad_up_bias, grad_weight = energy.new_zeros(2, len(up))
        activation, grad_activation, product = (_buffer(hidden, chunks) for _ in range(3))
        for images in chunks:
            size = len(x[images])
            rows, grad_rows = x[images].flatten(0, 1), grad[images].flatten(0, 1)
            h, y, grad_y = hidden[images], activation[:size], grad_activation[:size]
            torch.ops.aten.gelu.out(h, out=y)
            if _scales_weights(x, down):
                products = torch.bmm(grad[images].mT, y)  # (images, C, 4C)
                grad_scale = (products * down).sum(dim=1, keepdim=True, dtype=energy.dtype)
                scale, pull, part = _response_gradients(grad_scale, energy[images], weight)
                grad_down += products.mul_(scale.to(y.dtype)).sum(dim=0)
                torch.bmm(grad[images], down * scale.to(y.dtype), out=grad_y)
                grad_y.addcmul_(y, pull.to(y.dtype))
            else:
                torch.mm(grad_rows, down, out=grad_y.flatten(0, 1))
                grad_scale = torch.mul(grad_y, y, out=product[:size]).sum(dim=1, keepdim=True, dtype=energy.dtype)
                scale, pull, part = _response_gradients(grad_scale, energy[images], weight)
                grad_y.mul_(scale.to(y.dtype)).addcmul_(y, pull.to(y.dtype))
                grad_down.addmm_(grad_rows.T, y.mul_(scale.to(y.dtype)).flatten(0, 1))
            grad_weight += part
            torch.ops.aten.gelu_backward.grad_input(grad_y, h, grad_input=grad_y)
            grad_hidden = grad_y.flatten(0, 1)
            torch.addmm(grad_up, grad_hidden.T, rows, beta=0 if images.start == 0 else 1, out=grad_up)
            grad_up_bias += grad_hidden.sum(dim=0, dtype=energy.dtype)
            torch.mm(grad_hidden, up, out=grad_x[images].flatten(0, 1))
        grads = (grad_x, grad_up, grad_up_bias.to(up.dtype), grad_weight.to(weight.dtype))
        return *grads, grad_down_bias @ down, grad_down, grad_down_bias


def _scales_weights(x: Tensor, down: Tensor) -> bool:
    """Whether an image has fewer numbers in `down` than in the middle tensor, so that GRN had better scale those."""
    return len(down) < x.shape[1]


def _response_gradients(grad_scale: Tensor, energy: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of the scale `(B, 1, C)`: the scale, what each activation is multiplied by to give its part
    of the gradient through the energy, and the gradient `(C,)` of GRN's weight."""
    scale, share, mean = _scale(energy, weight)
    grad_share = grad_scale * weight.to(energy.dtype)
    grad_energy = (grad_share - (grad_share * share).mean(dim=-1, keepdim=True)) / mean
    # A norm has no slope at zero: take 0 there, as torch.linalg.vector_norm does.
    pull = torch.where(energy > 0, grad_energy / energy, 0)
    return scale, pull, (grad_scale * share).sum(dim=(0, 1))


def _energy(y: Tensor, squares: Tensor) -> Tensor:
    """L2 norm over positions, `(B, 1, C)`; several times as fast as `torch.linalg.vector_norm` on a CPU."""
    wide = y.to(squares.dtype)
    return torch.mul(wide, wide, out=squares).sum(dim=1, keepdim=True).sqrt()


def _scale(energy: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factor of each channel, its share of the energy and the mean energy, from `energy (B, 1, C)`."""
    mean = energy.mean(dim=-1, keepdim=True) + GRN_EPS
    share = energy / mean
    return 1 + weight.view(-1).to(energy.dtype) * share, share, mean


def _at_least_float32(x: Tensor) -> torch.dtype:
    """The dtype of statistics: a sum of squares over a map leaves float16's range and bfloat16's precision."""
    return torch.promote_types(x.dtype, torch.float32)


def _chunks(x: Tensor, up: Tensor) -> list[slice]:
    """Slices of the images of `x (B, T, C)`, of one size or nearly; all at once where a launch costs more than a pass.

    A slice's middle tensor has no fewer numbers than `up`, or reading the weights would cost more than the rest.
    """
    count = 1
    if x.device.type == "cpu":
        count = min(len(x), math.ceil(len(x) * x.shape[1] * len(up) / max(CHUNK_SIZE, up.numel())))
    step = math.ceil(len(x) / max(count, 1))
    return [slice(start, min(start + step, len(x))) for start in range(0, len(x), step)]


def _buffer(like: Tensor, chunks: list[slice], dtype: torch.dtype | None = None) -> Tensor:
    """Memory for the largest chunk of a tensor `(B, T, 4C)`."""
    return like.new_empty(chunks[0].stop, *like.shape[1:], dtype=dtype)
