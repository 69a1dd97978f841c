"""Global Response Normalization (arXiv 2301.00808, section 4), alone and fused with what stands beside it in a block.

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
        energy = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float32)
        scale = _scale(energy, self.weight)[0].to(x.dtype)
        return (rows * scale).view(x.shape) + self.bias.to(x.dtype)


def gelu_grn_linear(x: Tensor, grn: ConvNextV2GRN, linear: nn.Linear) -> Tensor:
    """`linear(grn(gelu(x)))` of rows `(B, T, 4C)`, `(B, T, C)`, in the fewest passes over the widest tensor of a block.

    GRN's bias passes through the linear layer: added there it touches C numbers instead of 4C a position.
    """
    bias = F.linear(grn.bias.view(1, -1), linear.weight, linear.bias).view(-1)
    out: Any = _GELUResponseLinear.apply(x, grn.weight.view(-1), linear.weight.to(x.dtype), bias.to(x.dtype))
    return out


class _GELUResponseLinear(torch.autograd.Function):
    """GELU, the scale of GRN and a linear layer; keeps its input and the energies, and recomputes the rest.

    Elementwise passes over 4C channels cost a block as much as its matrix products do. On a CPU they run over a few
    images at a time, whose numbers stay in the cache and whose buffers need no fresh memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, grn_weight: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = x.new_empty(*x.shape[:2], len(weight))
        energy = torch.empty(len(x), 1, x.shape[2], device=x.device)
        for images in _chunks(x):
            y = F.gelu(x[images])
            energy[images] = y.float().square().sum(dim=1, keepdim=True).sqrt()
            y = y * _scale(energy[images], grn_weight)[0].to(y.dtype)
            out[images] = F.linear(y, weight, bias)
        ctx.save_for_backward(x, grn_weight, weight, energy)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, grn_weight, weight, energy = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
        grad_grn = torch.zeros_like(grn_weight, dtype=torch.float32)
        for images in _chunks(x):
            scale, share, mean = _scale(energy[images], grn_weight)
            y, grad_scaled = F.gelu(x[images]), grad[images] @ weight  # (b, T, 4C)
            grad_scale = (grad_scaled * y).sum(dim=1, keepdim=True, dtype=torch.float32)  # (b, 1, 4C)
            grad_share = grad_scale * grn_weight.float()
            grad_energy = (grad_share - (grad_share * share).mean(dim=-1, keepdim=True)) / mean
            # A norm has no slope at zero: take 0 there, as torch.linalg.vector_norm does.
            pull = torch.where(energy[images] > 0, grad_energy / energy[images], 0).to(x.dtype)
            scale = scale.to(x.dtype)
            grad_y = grad_scaled.mul_(scale).addcmul_(y, pull)
            grad_x[images] = torch.ops.aten.gelu_backward(grad_y, x[images])
            grad_weight += grad[images].flatten(0, 1).T @ y.mul_(scale).flatten(0, 1)
            grad_grn += (grad_scale * share).sum(dim=(0, 1))
        return grad_x, grad_grn.to(grn_weight.dtype), grad_weight.to(weight.dtype), grad.sum(dim=(0, 1))


def _scale(energy: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factor of each channel, its share of the energy and the mean energy, from `energy (B, 1, C)` in float32."""
    mean = energy.mean(dim=-1, keepdim=True) + GRN_EPS
    share = energy / mean
    return 1 + weight.view(-1).float() * share, share, mean


def _chunks(x: Tensor) -> Iterator[slice]:
    """Slices of the images of `x (B, T, 4C)`: all at once where a launch costs more than a pass or a compiler fuses."""
    step = len(x)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        step = max(1, CHUNK_SIZE // (x.shape[1] * x.shape[2]))
    for start in range(0, len(x), step):
        yield slice(start, start + step)
