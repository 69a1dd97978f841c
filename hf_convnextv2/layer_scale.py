"""LayerScale of ConvNeXt V1's blocks (arXiv 2103.17239): a learned factor g on each channel of the branch.

The fused MLP computes `g * down(y)` without a pass over the activations of its own, in one of two ways:

    (g * D) y + g * d        g multiplies the weight D and the bias d of `down`
    residual + g * down(y)   the sum with the residual, which reads and writes as much, takes the product along

R rows of all views, C channels of the block, 4C of its middle.
"""

import torch
from torch import Tensor

from .groups import Groups, join_rows, split_rows, split_views
from .precision import cast_for_autocast


def folds_layer_scale(num_rows: int, up: Tensor) -> bool:
    """Whether LayerScale multiplies `down`: it has fewer numbers, `(C, 4C)`, than the branch, `(R, C)`.

    Not where a compiler fuses the product with the sum, whose sizes may be symbolic. Nor in float16, where a fresh
    LayerScale of 1e-6 times a weight is zero, and with it the gradient that passes `down`.
    """
    if torch.compiler.is_compiling():
        return False
    (product,) = cast_for_autocast(up[:0])
    return num_rows > len(up) and product is not None and product.dtype != torch.float16


def add_scaled(
    branch: Tensor, groups: Groups, residual: Tensor | None, factor: Tensor | None, layer_scale: Tensor
) -> Tensor:
    """`residual + factor * layer_scale * branch` of rows `(R, C)`, `factor (views,)`, `layer_scale (C,)`."""
    if factor is not None:
        factors = split_views(factor.to(branch.dtype)[:, None, None], groups)
        branch = join_rows([y * each for y, each in zip(split_rows(branch, groups), factors, strict=True)])
    return layer_scale * branch if residual is None else torch.addcmul(residual, branch, layer_scale)
