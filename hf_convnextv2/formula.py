"""The pointwise part of a block in plain operations, which compilers fuse and autograd differentiates again.

Letters as in mixing.py, which computes the same in fewer passes over memory.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .grn import Groups, at_least_float32, response_scale, split_groups


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


def formula(
    x: Tensor, groups: Groups, residual: Tensor | None, factor: Tensor | None, eps: float, weights: Weights
) -> Tensor:
    """The formula in plain operations: for a compiler to fuse, and for derivatives of derivatives."""
    branches = [_branch_of_views(views, eps, weights) for views in split_groups(x, groups)]
    if factor is not None:
        factors = factor.split([views for views, _ in groups]) if len(groups) > 1 else (factor,)
        branches = [y * scale for y, scale in zip(branches, factors, strict=True)]
    parts = [y.flatten(0, 1) for y in branches]
    out = torch.cat(parts) if len(parts) > 1 else parts[0]
    return residual + out if residual is not None else out


def _branch_of_views(x: Tensor, eps: float, weights: Weights) -> Tensor:
    """The branch of views `(B, T, C)` of one size."""
    y = F.gelu(F.linear(normalise(x, eps, weights), weights.up, weights.up_bias))
    energy = torch.linalg.vector_norm(y, dim=1, keepdim=True, dtype=at_least_float32(y.dtype))
    scale = response_scale(energy, weights.response)[0].to(y.dtype)
    # A size that is to stay symbolic must not decide.
    if statically_known_true(scales_weights(x.shape[1], weights)):
        return torch.baddbmm(passed_bias(weights), y, (weights.down * scale).mT)
    return F.linear(y * scale + weights.response_bias, weights.down, weights.down_bias)


def formula_gradients(
    grad: Tensor, x: Tensor, groups: Groups, factor: Tensor | None, eps: float, parameters: list[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of the branch of `formula` by the input and the parameters, themselves differentiable."""
    given = [parameter for parameter in parameters if parameter is not None]
    missing = len(parameters) - len(given)  # those of the norm, at the end

    def branch(x: Tensor, *given: Tensor) -> Tensor:
        return formula(x, groups, None, factor, eps, Weights._make((*given, *[None] * missing)))

    with torch.autocast(x.device.type, enabled=False):  # what it would cast has been cast
        vjp: Any = torch.func.vjp(branch, x, *given)
        out, pull = vjp
        return [*pull(grad.to(out.dtype)), *[None] * missing]


def normalise(x: Tensor, eps: float, weights: Weights) -> Tensor:
    """LayerNorm in the dtype of its parameters, the result in that of the products."""
    if weights.norm is None:
        return x
    wide = x.to(weights.norm.dtype)
    return F.layer_norm(wide, wide.shape[-1:], weights.norm, weights.norm_bias, eps).to(weights.up.dtype)


def scales_weights(positions: int, weights: Weights) -> bool:
    """Whether a view has fewer numbers in `down` than in the middle tensor, so that GRN had better scale those."""
    return weights.down.shape[0] < positions


def passed_bias(weights: Weights) -> Tensor:
    """GRN's bias after `down`, where it touches C numbers of a position instead of 4C, and that of `down`."""
    return torch.addmv(weights.down_bias, weights.down, weights.response_bias)
