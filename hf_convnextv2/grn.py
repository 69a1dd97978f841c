"""Global Response Normalization (arXiv 2301.00808, section 4), alone and fused with the layers around it in a block.

B images, T positions of an image (the visible ones), C channels of the block, 4C of its middle.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, parameters = x.to(dtype), tuple(parameter.to(dtype) for parameter in parameters)
    out: Any = _ResponseMLP.apply(x, *parameters, torch.is_grad_enabled())
    return out


class _ResponseMLP(torch.autograd.Function):
    """Linear, GELU, the scale of GRN, linear; keeps the first one's output and the energies, and recomputes the rest.

    Elementwise passes over 4C channels can cost a block as much as its matrix products do. On a CPU they run over a
    few images at a time, whose numbers stay in the cache and whose buffers need no fresh memory.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor, grn: Tensor, down: Tensor, down_bias: Tensor, keep: bool
    ) -> Tensor:
        hidden = x.new_empty(*x.shape[:2], len(up) if keep else 0)
        energy = x.new_empty(len(x), 1, len(up), dtype=_at_least_float32(x))
        out = torch.empty_like(x)
        for images in _chunks(x, len(up)):
            y = F.linear(x[images], up, up_bias)
            if keep:
                hidden[images] = y
            y = F.gelu(y)
            energy[images] = y.to(energy.dtype).square().sum(dim=1, keepdim=True).sqrt()
            y = y.mul_(_scale(energy[images], grn)[0].to(y.dtype))
            out[images] = F.linear(y, down, down_bias)
        ctx.save_for_backward(x, hidden, energy, up, grn, down)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, energy, up, grn, down = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        shapes = (up.shape, len(up), len(up), down.shape)
        grad_up, grad_up_bias, grad_grn, grad_down = (energy.new_zeros(shape) for shape in shapes)
        for images in _chunks(x, len(up)):
            scale, share, mean = _scale(energy[images], grn)
            y, grad_y = F.gelu(hidden[images]), grad[images] @ down  # (b, T, 4C)
            grad_scale = (grad_y * y).sum(dim=1, keepdim=True, dtype=energy.dtype)  # (b, 1, 4C)
            grad_share = grad_scale * grn.to(energy.dtype)
            grad_energy = (grad_share - (grad_share * share).mean(dim=-1, keepdim=True)) / mean
            # A norm has no slope at zero: take 0 there, as torch.linalg.vector_norm does.
            pull = torch.where(energy[images] > 0, grad_energy / energy[images], 0).to(x.dtype)
            scale = scale.to(x.dtype)
            grad_y = grad_y.mul_(scale).addcmul_(y, pull)
            grad_hidden = torch.ops.aten.gelu_backward(grad_y, hidden[images])
            grad_down += grad[images].flatten(0, 1).T @ y.mul_(scale).flatten(0, 1)
            grad_grn += (grad_scale * share).sum(dim=(0, 1))
            grad_up += grad_hidden.flatten(0, 1).T @ x[images].flatten(0, 1)
            grad_up_bias += grad_hidden.sum(dim=(0, 1), dtype=energy.dtype)
            grad_x[images] = grad_hidden @ up
        dtype = x.dtype
        grads = (grad_x, grad_up.to(dtype), grad_up_bias.to(dtype), grad_grn.to(dtype), grad_down.to(dtype))
        return *grads, grad.sum(dim=(0, 1)), None


def _scale(energy: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factor of each channel, its share of the energy and the mean energy, from `energy (B, 1, C)`."""
    mean = energy.mean(dim=-1, keepdim=True) + GRN_EPS
    share = energy / mean
    return 1 + weight.view(-1).to(energy.dtype) * share, share, mean


def _at_least_float32(x: Tensor) -> torch.dtype:
    """The dtype of statistics: a sum of squares over a map leaves float16's range and bfloat16's precision."""
    return torch.promote_types(x.dtype, torch.float32)


def _chunks(x: Tensor, width: int) -> Iterator[slice]:
    """Slices of the images of `x (B, T, C)`: all at once where a launch costs more than a pass or a compiler fuses."""
    step = max(1, len(x))
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        step = max(1, CHUNK_SIZE // (x.shape[1] * width))
    for start in range(0, len(x), step):
        yield slice(start, start + step)
