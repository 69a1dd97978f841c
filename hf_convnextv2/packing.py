"""Visible cells packed into a dense tensor, and the tables of where they and their neighbours lie.

Only the depthwise convolution (depthwise.py), GRN and attention look beyond a cell, so an encoder that sees N cells of
a batch computes on `(N, C, k, k)`: k positions a side and cell, e.g. 8, 4, 2, 1 in the stages of ConvNeXt V2. Cells see
each other if they are of the same view: a set of cells of one image. An image may have several sets, each a view of its
own.

A row is one position with all its channels, `(C,)`; index tables move rows and are shared by all blocks of a stage.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .fast_path import is_transformed
from .groups import Groups
from .triton_kernels import has_kernels

KERNEL_SIZE = 7  # of ConvNeXt V2
# Measured on CPU cores, forward and backward, for kernels of 7 and of 5: from 4 positions a side the halo costs less
# than the empty canvas.
MIN_HALO_SIDE = 4


class VisibleCells(NamedTuple):
    """The cells that an encoder sees, in the order in which they are packed.

    ids, images, views `(N,)`: each cell's place in the grid, its image and its view.
    num_views: of the batch. groups: so many views of so many cells each, in all N; the views of a group follow one
    another.
    """

    ids: Tensor
    images: Tensor
    views: Tensor
    num_views: int
    groups: Groups


class PackedCells(NamedTuple):
    """Where the rows of the packed cells of one stage lie: on a canvas for each view.

    groups: views and the cells of each. side: k. canvas: (views, H, W) at the stage's stride.
    to_canvas `(N * k * k,)`: the canvas row of each packed row.
    from_canvas `(views * H * W,)`: the packed row at each canvas row, N * k * k where the cell is hidden.
    halo `(N, k + K - 1, k + K - 1)`: likewise for each cell with what a kernel of width K sees around it; None where
        the canvas form is used.
    """

    groups: Groups
    side: int
    canvas: tuple[int, int, int]
    to_canvas: Tensor
    from_canvas: Tensor
    halo: Tensor | None

    @property
    def row_groups(self) -> Groups:
        """Views and the rows of each."""
        return tuple((views, num_cells * self.side * self.side) for views, num_cells in self.groups)


def one_view(ids: Tensor) -> VisibleCells:
    """The visible cells `ids` `(B, V)`, one view of each image."""
    batch, num_visible = ids.shape
    images = torch.arange(batch, device=ids.device).repeat_interleave(num_visible)
    return VisibleCells(ids.flatten(), images, images, batch, ((batch, num_visible),))


def complementary_views(set_ids: Tensor, sizes: tuple[int, ...]) -> VisibleCells:
    """Every cell of each image, in as many views as sets: view s * B + b is set s of image b.

    `set_ids (B, L)` holds each cell's set and `sizes` the number of cells of each, the same for every image. They
    differ by at most one, and no set is smaller than the last, as `complementary_set_sizes` makes them.
    """
    batch, device = set_ids.shape[0], set_ids.device
    # Sets of one size are one group. Nothing is sorted or hashed by size: in a compiled program sizes may be symbols.
    larger = [index for index, size in enumerate(sizes) if size > sizes[-1]]
    smaller = [index for index in range(len(sizes)) if index not in larger]
    in_order = larger + smaller
    place = torch.tensor([in_order.index(index) for index in range(len(sizes))], device=device)
    ids = place[set_ids].argsort(dim=1, stable=True)  # (B, L), set after set
    images = torch.arange(batch, device=device)[:, None].expand_as(ids)
    views = set_ids.gather(1, ids) * batch + images
    widths = [sizes[index] for index in in_order]
    groups = tuple((len(sets) * batch, sizes[sets[0]]) for sets in (larger, smaller) if sets)
    return VisibleCells(
        ids=_one_set_after_the_other(ids, widths),
        images=_one_set_after_the_other(images, widths),
        views=_one_set_after_the_other(views, widths),
        num_views=len(sizes) * batch,
        groups=groups,
    )


def _one_set_after_the_other(x: Tensor, widths: list[int]) -> Tensor:
    """`(B, L)`, whose columns are sets of these widths, as `(B * L,)`: the first set of all images, then the second."""
    return torch.cat([columns.flatten() for columns in x.split(widths, dim=1)])


def in_whole_images(visible: VisibleCells, batch: int) -> VisibleCells:
    """The same cells with one view of each image, on which its sets lie side by side."""
    return visible._replace(views=visible.images, num_views=batch)


def locate_cells(
    visible: VisibleCells, grid: tuple[int, int], side: int, with_halo: bool = True, kernel_size: int = KERNEL_SIZE
) -> PackedCells:
    """Tables for the `visible` cells of a `grid` (rows, columns) of cells, `side` positions wide.

    The halo is that of a convolution of `kernel_size`. Without one, the tables serve to pack and unpack, and a
    convolution is computed on a canvas.
    """
    ids = visible.ids
    height, width = grid[0] * side, grid[1] * side
    top = (ids // grid[1] * side)[:, None, None]
    left = (ids % grid[1] * side)[:, None, None]
    view = visible.views[:, None, None] * (height * width)

    inner = torch.arange(side, device=ids.device)
    to_canvas = (view + (top + inner[:, None]) * width + left + inner).flatten()
    num_rows = ids.shape[0] * side * side
    from_canvas = torch.full((visible.num_views * height * width,), num_rows, device=ids.device)
    from_canvas = from_canvas.scatter(0, to_canvas, torch.arange(num_rows, device=ids.device))

    halo = None
    # The kernels for GPUs read neighbours by the table, and gather nothing.
    if with_halo and (side >= MIN_HALO_SIDE or has_kernels(ids.device)):
        reach = kernel_size // 2
        around = torch.arange(-reach, side + reach, device=ids.device)
        y, x = top + around[:, None], left + around
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        place = view + y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
        halo = torch.where(inside, from_canvas[place], num_rows)
    return PackedCells(visible.groups, side, (visible.num_views, height, width), to_canvas, from_canvas, halo)


def take_cells(pixel_values: Tensor, visible: VisibleCells, grid: tuple[int, int]) -> Tensor:
    """Pixels `(N, C, P, P)` of the visible cells of images `(B, C, H, W)`."""
    batch, channels, height, width = pixel_values.shape
    sides = height // grid[0], width // grid[1]
    x = pixel_values.reshape(batch, channels, grid[0], sides[0], grid[1], sides[1]).permute(0, 2, 4, 1, 3, 5)
    return x[visible.images, visible.ids // grid[1], visible.ids % grid[1]]


def unpack(x: Tensor, cells: PackedCells) -> Tensor:
    """Packed cells `(N, C, k, k)` as maps of the views `(views, C, H, W)`, with exact zeros in their hidden cells."""
    rows = _move_rows(to_rows(x), cells.from_canvas, cells.to_canvas)
    return rows.view(*cells.canvas, x.shape[1]).permute(0, 3, 1, 2)


def pack(x: Tensor, cells: PackedCells) -> Tensor:
    """The visible cells `(N, C, k, k)` of maps of the views `(views, C, H, W)`."""
    rows = _move_rows(to_rows(x), cells.to_canvas, cells.from_canvas)
    return rows.view(-1, cells.side, cells.side, x.shape[1]).permute(0, 3, 1, 2)


def to_rows(x: Tensor) -> Tensor:
    """A map `(N, C, H, W)` as rows `(N * H * W, C)`."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """`rows[index]`, where the index one past the end reads zeros."""
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])]).index_select(0, index)


def _move_rows(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """`rows[index]` with zeros where the index is one past the end; `inverse` is the index that moves them back."""
    if is_transformed():
        return take_rows(rows, index)
    moved: Any = _MoveRows.apply(rows, index, inverse)
    return moved


class _MoveRows(torch.autograd.Function):
    """Move rows to places that each hold one row or none. The gradient moves back: no scattered addition is needed."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index, inverse)
        return _take_some_or_all(rows, index, inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return _take_some_or_all(grad, inverse, index), None, None


def _take_some_or_all(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """`take_rows`, without its zeros where there are no more places than rows: then each place holds a row."""
    if index.shape[0] > inverse.shape[0]:
        return take_rows(rows, index)
    return rows.index_select(0, index)
