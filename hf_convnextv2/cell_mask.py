"""The mask of a batch of images as the encoder needs it: what is hidden, and the cells that each view sees.

B batch, L cells of an image (h * w of them), K sets of visible cells, each of which a view of the image shows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .masking import check_mask, complementary_set_sizes, count_visible, rank_cells, set_of_rank, visible_ids
from .packing import VisibleCells, complementary_views, one_view


class CellMask(NamedTuple):
    """`masked (K * B, L)` bool, True = hidden, `ids_restore (B, L)`, the visible cells and the grid (h, w)."""

    masked: Tensor
    ids_restore: Tensor
    visible: VisibleCells
    grid: tuple[int, int]


def random_masking(noise: Tensor, num_sets: int, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """`masked (K * B, L)` and `ids_restore (B, L)`: the cells of least `noise (B, L)` are the first set."""
    ids_restore = rank_cells(noise)
    if num_sets == 1:
        return ids_restore >= count_visible(noise.shape[1], mask_ratio), ids_restore
    sets = torch.arange(num_sets, device=noise.device)[:, None, None]
    return (set_of_rank(ids_restore, num_sets) != sets).flatten(0, 1), ids_restore


def drawn_mask(
    masked: Tensor, ids_restore: Tensor, grid: tuple[int, int], num_sets: int, mask_ratio: float
) -> CellMask:
    """The mask that `random_masking` made."""
    num_cells = ids_restore.shape[1]
    if num_sets == 1:
        visible = one_view(visible_ids(masked, count_visible(num_cells, mask_ratio)))
    else:
        sizes = complementary_set_sizes(num_cells, num_sets)
        visible = complementary_views(set_of_rank(ids_restore, num_sets), sizes)
    return CellMask(masked, ids_restore, visible, grid)


def given_mask(masked: Tensor, batch: int, grid: tuple[int, int]) -> CellMask:
    """The mask that a caller chose, `(B, L)` or `(B, h, w)` bool, for one view of each image."""
    num_cells = grid[0] * grid[1]
    masked = check_mask(masked, (batch, num_cells), grid)
    num_visible = num_cells - int(masked[0].sum())
    ids_restore = rank_cells(masked.to(torch.uint8))
    return CellMask(masked, ids_restore, one_view(visible_ids(masked, num_visible)), grid)


def divide_cells(masked: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """`masked (views, L)` of a grid (h, w) of cells as the mask of patches, `side * side` to a cell, row after row."""
    if side == 1:
        return masked
    return masked.view(-1, *grid).repeat_interleave(side, 1).repeat_interleave(side, 2).flatten(1)
