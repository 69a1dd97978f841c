"""Visible cells packed into a dense tensor, and the tables of where they and their neighbours lie.

In ConvNeXt V2 only the depthwise convolution (depthwise.py) and GRN look beyond a cell, so an encoder that sees V of
the L cells of each image computes on `(B * V, C, k, k)`: k positions a side and cell, e.g. 8, 4, 2, 1 in the stages.

A row is one position with all its channels, `(C,)`; index tables move rows and are shared by all blocks of a stage.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

KERNEL_SIZE = 7
HALO = KERNEL_SIZE // 2
# Measured on two CPU cores, forward and backward: from 4 positions a side the halo costs less than the empty canvas.
MIN_HALO_SIDE = 4


class PackedCells(NamedTuple):
    """Where the rows of the packed cells of one stage lie.

    num_visible: V. side: k. canvas: (B, H, W) at the stage's stride.
    to_canvas `(B * V * k * k,)`: the canvas row of each packed row.
    from_canvas `(B * H * W,)`: the packed row at each canvas row, B * V * k * k where the cell is hidden.
    halo `(B * V * (k + 6) ** 2,)`: likewise for each cell with its surroundings; None where the canvas form is used.
    """

    num_visible: int
    side: int
    canvas: tuple[int, int, int]
    to_canvas: Tensor
    from_canvas: Tensor
    halo: Tensor | None


def locate_cells(ids: Tensor, grid: tuple[int, int], side: int) -> PackedCells:
    """Tables for the visible cells `ids` `(B, V)` of a `grid` (rows, columns) of cells, `side` positions wide."""
    batch, num_visible = ids.shape
    height, width = grid[0] * side, grid[1] * side
    top, left = ids // grid[1] * side, ids % grid[1] * side
    image = torch.arange(batch, device=ids.device)[:, None, None, None] * (height * width)

    inner = torch.arange(side, device=ids.device)
    y, x = top[:, :, None, None] + inner[:, None], left[:, :, None, None] + inner
    to_canvas = (image + y * width + x).flatten()
    num_rows = batch * num_visible * side * side
    from_canvas = torch.full((batch * height * width,), num_rows, device=ids.device)
    from_canvas = from_canvas.scatter(0, to_canvas, torch.arange(num_rows, device=ids.device))

    halo = None
    if side >= MIN_HALO_SIDE:
        around = torch.arange(-HALO, side + HALO, device=ids.device)
        y, x = top[:, :, None, None] + around[:, None], left[:, :, None, None] + around
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        place = image + y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
        halo = torch.where(inside, from_canvas[place], num_rows).flatten()
    return PackedCells(num_visible, side, (batch, height, width), to_canvas, from_canvas, halo)


def take_cells(pixel_values: Tensor, ids: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pixels `(B * V, C, P, P)` of the visible cells `ids` `(B, V)` of images `(B, C, H, W)`."""
    batch, channels, height, width = pixel_values.shape
    sides = height // grid[0], width // grid[1]
    x = pixel_values.reshape(batch, channels, grid[0], sides[0], grid[1], sides[1]).permute(0, 2, 4, 1, 3, 5)
    image = torch.arange(batch, device=ids.device)[:, None]
    return x[image, ids // grid[1], ids % grid[1]].flatten(0, 1)


def unpack(x: Tensor, cells: PackedCells) -> Tensor:
    """Packed cells `(B * V, C, k, k)` as a map `(B, C, H, W)` with exact zeros in the hidden cells."""
    rows: Any = _MoveRows.apply(to_rows(x), cells.from_canvas, cells.to_canvas)
    return rows.view(*cells.canvas, x.shape[1]).permute(0, 3, 1, 2)


def pack(x: Tensor, cells: PackedCells) -> Tensor:
    """The visible cells `(B * V, C, k, k)` of a map `(B, C, H, W)`."""
    rows: Any = _MoveRows.apply(to_rows(x), cells.to_canvas, cells.from_canvas)
    return rows.view(-1, cells.side, cells.side, x.shape[1]).permute(0, 3, 1, 2)


def to_rows(x: Tensor) -> Tensor:
    """A map `(N, C, H, W)` as rows `(N * H * W, C)`."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """`rows[index]`, where the index one past the end reads zeros."""
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])]).index_select(0, index)


class _MoveRows(torch.autograd.Function):
    """Move rows to places that each hold one row or none. The gradient moves back: no scattered addition is needed."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index, inverse)
        return take_rows(rows, index) if len(index) > len(inverse) else rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        grad = take_rows(grad, inverse) if len(inverse) > len(index) else grad.index_select(0, inverse)
        return grad, None, None
