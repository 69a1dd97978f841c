"""How far predicted cells are from what they stand for: pixels (paper, section 3) or a teacher's features.

K views of B images, L cells of an image, n numbers of a cell, F channels of the features.
"""

import torch.nn.functional as F
from torch import Tensor

from .grn import at_least_float32


def normalise_cells(cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cells `(B, L, n)` less their mean, the mean and the deviation (unbiased, as in the official code) `(B, L, 1)`."""
    mean = cells.mean(dim=-1, keepdim=True)
    centred = cells - mean
    # Several times as fast on a CPU as `torch.var`.
    variance = centred.square().sum(dim=-1, keepdim=True) / (cells.shape[-1] - 1)
    return centred, mean, (variance + 1e-6).sqrt()


def pixel_errors(predicted: Tensor, cells: Tensor, normalised: bool) -> Tensor:
    """Mean squared error `(K * B, L)` of predicted cells `(K * B, L, n)`, of `cells (B, L, n)` normalised or not."""
    if normalised:
        centred, _, deviation = normalise_cells(cells)
        cells = centred / deviation
    views = predicted.to(at_least_float32(predicted.dtype)).unflatten(0, (-1, cells.shape[0]))  # (K, B, L, n)
    return (views - cells).square().mean(dim=-1).flatten(0, 1)


def feature_errors(predicted: Tensor, target: Tensor, kind: str) -> Tensor:
    """Error `(K * B, L)` of predicted features `(K * B, L, F)` of cells whose features are `target (B, F, h, w)`.

    "smooth_l1" and "mse" are means over the channels, "cosine" is 1 - cosine similarity.
    """
    dtype = at_least_float32(predicted.dtype)
    target = target.to(dtype).flatten(2).mT  # (B, L, F)
    views = predicted.to(dtype).unflatten(0, (-1, target.shape[0]))  # (K, B, L, F)
    target = target.expand_as(views)
    if kind == "cosine":
        return (1 - F.cosine_similarity(views, target, dim=-1)).flatten(0, 1)
    error = F.mse_loss if kind == "mse" else F.smooth_l1_loss
    return error(views, target, reduction="none").mean(dim=-1).flatten(0, 1)


def masked_mean(errors: Tensor, counted: Tensor) -> Tensor:
    """Mean of `errors (V, L)` where `counted (V, L)`."""
    return (errors * counted).sum() / counted.sum()
