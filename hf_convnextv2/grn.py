"""Global Response Normalization (arXiv 2301.00808, section 4), alone and fused with the layers around it in a block.

B images, T positions of an image (the visible ones), C channels of the block, 4C of its middle.
"""

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
    """`down(grn(gelu(up(x))))` of rows `(B, T, C)`, in the fewest passes over the 4C-wide tensor between the two.

    GRN's bias passes through `down`: added there it touches C numbers instead of 4C a position.
    """
    bias = F.linear(grn.bias.view(1, -1), down.weight, down.bias).view(-1)
    parameters = (up.weight, up.bias, grn.weight.view(-1), down.weight, bias)
    out: Any = _ResponseMLP.apply(*autocast(x, *parameters), torch.is_grad_enabled())
    return out


class _ResponseMLP(torch.autograd.Function):
    """Linear, GELU, the scale of GRN, linear; keeps the first one's output and the energies, and recomputes the rest.

    Elementwise passes over 4C channels can cost a block as much as its matrix products do. On a CPU they run over a
    few images at a time, in buffers that stay in the cache: fresh memory would cost more than what is written to it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor, grn: Tensor, down: Tensor, down_bias: Tensor, keep: bool
    ) -> Tensor:
        chunks = _chunks(x, len(up))
        hidden = x.new_empty(len(x) if keep else chunks[0].stop, x.shape[1], len(up))
        activation, out = _buffer(hidden, chunks), x.new_empty(*x.shape[:2], len(down))
        energy = x.new_empty(len(x), 1, len(up), dtype=_at_least_float32(x))
        reuse = not keep and hidden.dtype == energy.dtype
        squares = hidden if reuse else _buffer(hidden, chunks, energy.dtype)
        for images in chunks:
            size = len(x[images])
            h, y = hidden[images] if keep else hidden[:size], activation[:size]
            torch.addmm(up_bias, x[images].flatten(0, 1), up.T, out=h.flatten(0, 1))
            torch.ops.aten.gelu.out(h, out=y)
            energy[images] = _energy(y, squares[:size])
            scale = _scale(energy[images], grn)[0].to(y.dtype)
            if _scales_weights(x, down):
                torch.baddbmm(down_bias, y, (down * scale).mT, out=out[images])
            else:
                torch.addmm(down_bias, y.mul_(scale).flatten(0, 1), down.T, out=out[images].flatten(0, 1))
        ctx.save_for_backward(x, hidden if keep else None, energy, up, grn, down)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, energy, up, grn, down = ctx.saved_tensors
        chunks = _chunks(x, len(up))
        grad, grad_x, grad_up, grad_down = grad.contiguous(), torch.empty_like(x), *map(torch.zeros_like, (up, down))
        grad_up_bias, grad_grn = energy.new_zeros(2, len(up))
        activation, grad_activation, product = (_buffer(hidden, chunks) for _ in range(3))
        for images in chunks:
            size = len(x[images])
            rows, grad_rows = x[images].flatten(0, 1), grad[images].flatten(0, 1)
            h, y, grad_y = hidden[images], activation[:size], grad_activation[:size]
            torch.ops.aten.gelu.out(h, out=y)
            if _scales_weights(x, down):
                products = torch.bmm(grad[images].mT, y)  # (images, C, 4C)
                grad_scale = (products * down).sum(dim=1, keepdim=True, dtype=energy.dtype)
                scale, pull, grad_weight = _response_gradients(grad_scale, energy[images], grn)
                grad_down += (products * scale.to(y.dtype)).sum(dim=0)
                torch.bmm(grad[images], down * scale.to(y.dtype), out=grad_y)
                grad_y.addcmul_(y, pull.to(y.dtype))
            else:
                torch.mm(grad_rows, down, out=grad_y.flatten(0, 1))
                grad_scale = torch.mul(grad_y, y, out=product[:size]).sum(dim=1, keepdim=True, dtype=energy.dtype)
                scale, pull, grad_weight = _response_gradients(grad_scale, energy[images], grn)
                grad_y.mul_(scale.to(y.dtype)).addcmul_(y, pull.to(y.dtype))
                grad_down.addmm_(grad_rows.T, y.mul_(scale.to(y.dtype)).flatten(0, 1))
            grad_grn += grad_weight
            torch.ops.aten.gelu_backward.grad_input(grad_y, h, grad_input=grad_y)
            grad_up.addmm_(grad_y.flatten(0, 1).T, rows)
            grad_up_bias += grad_y.sum(dim=(0, 1), dtype=energy.dtype)
            torch.mm(grad_y.flatten(0, 1), up, out=grad_x[images].flatten(0, 1))
        grads = (grad_x, grad_up, grad_up_bias.to(up.dtype), grad_grn.to(grn.dtype), grad_down)
        return *grads, grad.sum(dim=(0, 1)), None


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


def _chunks(x: Tensor, width: int) -> list[slice]:
    """Slices of the images of `x (B, T, C)`: all at once where a launch costs more than a pass or a compiler fuses."""
    step = len(x)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        step = min(step, max(1, CHUNK_SIZE // (x.shape[1] * width)))
    return [slice(start, min(start + step, len(x))) for start in range(0, len(x), step)]


def _buffer(like: Tensor, chunks: list[slice], dtype: torch.dtype | None = None) -> Tensor:
    """Memory for the largest chunk of a tensor `(B, T, 4C)`."""
    return like.new_empty(chunks[0].stop, *like.shape[1:], dtype=dtype)
