"""The pixels of hidden cells as targets, as in FCMAE (arXiv 2301.00808, section 3) and MAE (arXiv 2111.06377).

K views of B images, L cells of an image, n numbers of a cell.
"""

import torch
from torch import Tensor

from .precision import at_least_float32


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


def paint_cells(cells: Tensor, predicted: Tensor, masked: Tensor, normalised: bool) -> Tensor:
    """`cells (V, L, n)` with the hidden ones, `masked (V, L)` bool, as predicted; normalised predictions are undone."""
    predicted = predicted.to(cells.dtype)
    if normalised:
        _, mean, deviation = normalise_cells(cells)
        predicted = predicted * deviation + mean
    return torch.where(masked[..., None], predicted, cells)
