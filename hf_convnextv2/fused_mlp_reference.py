"""The MLP of a block written in plain operations: the reference of fused_mlp.py, which computes the same faster.

This is what `torch.compile` gets to fuse, what derivatives of derivatives come from, and what tests compare with.
B views, T positions of a view, R rows of all views, C channels of the block, 4C of its middle.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .grn import grn_scale
from .groups import Groups, join_rows, split_rows, split_views
from .precision import at_least_float32


class MLPWeights(NamedTuple):
    """The parameters of the MLP and of the LayerNorm before it; without a norm, the input is taken as it is.

    Without GRN, in a block of ConvNeXt V1, what is between GELU and `down` is left out.
    """

    up: Tensor  # (4C, C)
    up_bias: Tensor
    grn: Tensor | None  # (4C,)
    grn_bias: Tensor | None
    down: Tensor  # (C, 4C)
    down_bias: Tensor
    norm: Tensor | None = None  # (C,)
    norm_bias: Tensor | None = None
    eps: float = 0.0  # the norm's

    def in_dtype_of_products(self) -> "MLPWeights":
        """With all of the MLP in the dtype of its products, that of `up`."""
        names = ("up_bias", "grn", "grn_bias", "down", "down_bias")
        tensors = {name: getattr(self, name) for name in names}
        return self._replace(**{name: t.to(self.up.dtype) for name, t in tensors.items() if t is not None})


def reference_mlp(
    x: Tensor, groups: Groups, residual: Tensor | None, factor: Tensor | None, weights: MLPWeights
) -> Tensor:
    """`residual + factor * down(grn(gelu(up(norm(x)))))` of rows `(R, C)`, `factor (views, 1, 1)`."""
    branches = [_branch(views, weights) for views in split_rows(x, groups)]
    if factor is not None:
        branches = [y * scale for y, scale in zip(branches, split_views(factor, groups), strict=True)]
    out = join_rows(branches)
    return out if residual is None else residual + out


def _branch(x: Tensor, weights: MLPWeights) -> Tensor:
    """`down(grn(gelu(up(norm(x)))))` of the views `(B, T, C)` of one group."""
    y = F.gelu(F.linear(normalise(x, weights), weights.up, weights.up_bias))
    if weights.grn is None or weights.grn_bias is None:
        return F.linear(y, weights.down, weights.down_bias)
    energy = torch.linalg.vector_norm(y, dim=1, keepdim=True, dtype=at_least_float32(y.dtype))
    scale = grn_scale(energy, weights.grn)
    # A size that is to stay symbolic must not decide.
    if statically_known_true(scales_weights(x.shape[1], weights)):
        return torch.baddbmm(projected_bias(weights), y, scaled_down(weights, scale).mT)
    return F.linear((y * scale + weights.grn_bias).to(y.dtype), weights.down, weights.down_bias)


def reference_gradients(
    grad: Tensor, x: Tensor, groups: Groups, factor: Tensor | None, weights: MLPWeights
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients by the input and each of `weights` (None for what is no tensor), themselves differentiable."""
    given = {name: value for name, value in weights._asdict().items() if isinstance(value, Tensor)}

    def branch(x: Tensor, *tensors: Tensor) -> Tensor:
        """What is differentiated, as a function of tensors alone."""
        replaced = dict(zip(given, tensors, strict=True))
        return reference_mlp(x, groups, None, factor, weights._replace(**replaced).in_dtype_of_products())

    with torch.autocast(x.device.type, enabled=False):  # what it would cast has been cast
        vjp: Any = torch.func.vjp(branch, x, *given.values())
        out, pull_back = vjp
        grad_x, *grads = pull_back(grad.to(out.dtype))
    found = dict(zip(given, grads, strict=True))
    return grad_x, [found.get(name) for name in weights._fields]


def normalise(x: Tensor, weights: MLPWeights) -> Tensor:
    """LayerNorm in the dtype of its parameters, the result in that of the products."""
    if weights.norm is None:
        return x
    wide = x.to(weights.norm.dtype)
    return F.layer_norm(wide, wide.shape[-1:], weights.norm, weights.norm_bias, weights.eps).to(weights.up.dtype)


def scales_weights(positions: int, weights: MLPWeights) -> bool:
    """Whether to multiply GRN's scale into `down` and not the activations: `down` has fewer numbers than a view's."""
    return len(weights.down) < positions


def scaled_down(weights: MLPWeights, scale: Tensor) -> Tensor:
    """`down` times GRN's scale of each view, `(B, C, 4C)`, rounded to the dtype of the products once."""
    return (weights.down * scale).to(weights.up.dtype)


def projected_bias(weights: MLPWeights) -> Tensor:
    """GRN's bias passed through `down`, where it is C numbers of a position instead of 4C, plus `down`'s own."""
    assert weights.grn_bias is not None
    return torch.addmv(weights.down_bias, weights.down, weights.grn_bias).to(weights.up.dtype)
