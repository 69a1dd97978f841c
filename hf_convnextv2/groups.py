"""Groups of views of one size: a tensor of rows `(R, C)` as the views `(B, T, C)` of each group, and back.

A view is what shares GRN's statistics: an image, or a set of visible cells of one. B views of a group, T positions of a
view, R rows of all views, C channels. Sizes may be symbolic.
"""

import torch
from torch import Tensor

# (number of views, rows of each), group after group.
Groups = tuple[tuple[int, int], ...]


def count_views(groups: Groups) -> int:
    """Number of views of all groups."""
    return sum(views for views, _ in groups)


def split_rows(rows: Tensor, groups: Groups) -> list[Tensor]:
    """Rows `(R, C)` as the views `(B, T, C)` of each group."""
    if len(groups) == 1:
        return [rows.view(*groups[0], rows.shape[-1])]
    parts = rows.split([views * positions for views, positions in groups])
    return [part.view(*group, rows.shape[-1]) for part, group in zip(parts, groups, strict=True)]


def join_rows(parts: list[Tensor]) -> Tensor:
    """The views `(B, T, C)` of each group as rows `(R, C)`."""
    rows = [part.flatten(0, 1) for part in parts]
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def split_views(x: Tensor, groups: Groups) -> list[Tensor]:
    """`(views, ...)` as the part of each group."""
    if len(groups) == 1:
        return [x]
    return list(x.split([views for views, _ in groups]))
