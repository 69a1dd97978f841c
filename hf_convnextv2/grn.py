"""Global Response Normalization (arXiv 2301.00808, section 4): of modules, and in parts for the fused MLP.

A view is what shares statistics: an image, or a set of visible cells of one. B views, T positions of a view, C
channels: 4 times those of the block.
"""

import torch
from torch import Tensor, nn

from .groups import Groups, join_rows, split_rows
from .precision import at_least_float32

GRN_EPS = 1e-6


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
        if groups is None:
            groups = ((x.shape[0], x.shape[1] * x.shape[2]),)
        parts = split_rows(x.reshape(-1, x.shape[-1]), groups)
        rows = join_rows([self._scale(part) for part in parts])
        return rows.view(x.shape) + self.bias.to(x.dtype)

    def _scale(self, x: Tensor) -> Tensor:
        """Views `(B, T, C)`, scaled."""
        energy = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=at_least_float32(x.dtype))
        return x * grn_scale(energy, self.weight).to(x.dtype)


def grn_scale(energy: Tensor, weight: Tensor) -> Tensor:
    """The factor `(B, 1, C)` of each channel, from the `energy (B, 1, C)`: its L2 norm over the positions."""
    share, _ = _share(energy)
    return _scale_of(share, weight)


def grn_gradients(grad_scale: Tensor, energy: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The scale `(B, 1, C)`, the slope `(B, 1, C)` and the gradient `(C,)` of the weight, from that of the scale.

    The activations y of a view reach the output y * s along two ways: as y, and through the scale s. What comes back
    the second way is y * slope. For the channels c of one view, with the weight w,

        e_c = |y_c|          energy              m = mean of e + eps
        n_c = e_c / m        share               s_c = 1 + w_c * n_c

    and so

        dL/dw_c = dL/ds_c * n_c                              summed over the views
        dL/dn_c = dL/ds_c * w_c
        dL/de_c = (dL/dn_c - mean over k of dL/dn_k * n_k) / m
        dL/dy_c = dL/de_c * y_c / e_c = y_c * slope_c

    because each energy is in its own share and, through m, in all of them.
    """
    share, mean = _share(energy)
    grad_share = grad_scale * weight.to(energy.dtype)
    grad_energy = (grad_share - (grad_share * share).mean(dim=-1, keepdim=True)) / mean
    # A norm has no slope at zero: take 0 there, as torch.linalg.vector_norm does.
    slope = torch.where(energy > 0, grad_energy / energy, 0)
    return _scale_of(share, weight), slope, (grad_scale * share).sum(dim=(0, 1))


def _share(energy: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's energy as a share of the mean, and that mean `(B, 1, 1)`."""
    mean = energy.mean(dim=-1, keepdim=True) + GRN_EPS
    return energy / mean, mean


def _scale_of(share: Tensor, weight: Tensor) -> Tensor:
    """The factor `(B, 1, C)` of each channel from its share."""
    return 1 + weight.view(-1).to(share.dtype) * share
