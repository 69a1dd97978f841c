"""Global Response Normalization (arXiv 2301.00808, section 4).

B views: images, or sets of visible cells of one. T positions of a view, C channels: 4 times those of the block.
"""

import torch
from torch import Tensor, nn

GRN_EPS = 1e-6
# So many views of so many rows each, group after group: what shares statistics.
Groups = tuple[tuple[int, int], ...]


class ConvNextV2GRN(nn.Module):
    """Scale each channel by its share of an image's energy (paper, equations 1 to 4)."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, dim))  # 4-D as in the released checkpoints
        self.bias = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor, groups: Groups | None = None) -> Tensor:
        """`x (N, H, W, C)`; statistics in float32, the affine in the input's dtype.

        `groups`, in rows of (N * H * W, C), says what shares statistics: each of the N maps by default.
        """
        groups = ((x.shape[0], x.shape[1] * x.shape[2]),) if groups is None else groups
        parts = split_groups(x.reshape(-1, x.shape[-1]), groups)
        scaled = [self._scale(part).flatten(0, 1) for part in parts]
        rows = torch.cat(scaled) if len(scaled) > 1 else scaled[0]
        return rows.view(x.shape) + self.bias.to(x.dtype)

    def _scale(self, x: Tensor) -> Tensor:
        """Views `(B, T, C)`, scaled."""
        energy = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=at_least_float32(x.dtype))
        return x * response_scale(energy, self.weight)[0].to(x.dtype)


def split_groups(rows: Tensor, groups: Groups) -> list[Tensor]:
    """Rows `(R, C)` as the views `(B, T, C)` of each group; sizes may be symbolic."""
    parts = rows.split([views * positions for views, positions in groups]) if len(groups) > 1 else (rows,)
    return [part.view(*group, rows.shape[-1]) for part, group in zip(parts, groups, strict=True)]


def response_scale(energy: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factor of each channel, its share of the energy and the mean energy, from `energy (B, 1, C)`."""
    mean = energy.mean(dim=-1, keepdim=True) + GRN_EPS
    share = energy / mean
    return 1 + weight.view(-1).to(energy.dtype) * share, share, mean


def response_gradients(grad_scale: Tensor, energy: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of the scale `(B, 1, C)`: the scale, what each activation is multiplied by to give its part
    of the gradient through the energy, and the gradient `(C,)` of GRN's weight."""
    scale, share, mean = response_scale(energy, weight)
    grad_share = grad_scale * weight.to(energy.dtype)
    grad_energy = (grad_share - (grad_share * share).mean(dim=-1, keepdim=True)) / mean
    # A norm has no slope at zero: take 0 there, as torch.linalg.vector_norm does.
    pull = torch.where(energy > 0, grad_energy / energy, 0)
    return scale, pull, (grad_scale * share).sum(dim=(0, 1))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics: a sum of squares over a map leaves float16's range and bfloat16's precision."""
    return torch.promote_types(dtype, torch.float32)
