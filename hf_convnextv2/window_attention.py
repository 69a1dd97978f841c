"""Windows of tokens and biases by relative position: attention in large images, as ConvMAE's official detector has it.

H W rows and columns of tokens; T tokens of a view, which is an image or a window.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sizes import is_certain


class RelativePositionBias(nn.Module):
    """What each head adds to the logits of a query and a key so many rows and columns apart (arXiv 2103.14030).

    The table is that of a grid of tokens; for other grids it is interpolated.
    """

    def __init__(self, grid: tuple[int, int], num_heads: int):
        super().__init__()
        self.grid = grid
        rows, columns = _num_differences(*grid)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows * columns, num_heads))

    def forward(self, height: int, width: int) -> Tensor:
        """`(heads, T, T)`: queries, then keys, of a grid of `height` x `width` tokens."""
        table, device = self._table_of(height, width), self.relative_position_bias_table.device
        by_row = table.index_select(1, _differences(height, device))  # (heads, H * H, 2 * W - 1)
        bias = by_row.index_select(2, _differences(width, device))
        bias = bias.unflatten(1, (height, height)).unflatten(3, (width, width))  # rows of both, columns of both
        return bias.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    @torch.no_grad()
    def resize(self, grid: tuple[int, int]) -> None:
        """Make another grid's table the parameter."""
        table, old = self._table_of(*grid).flatten(1).T.clone(), self.relative_position_bias_table
        self.grid, self.relative_position_bias_table = grid, nn.Parameter(table, requires_grad=old.requires_grad)

    def _table_of(self, height: int, width: int) -> Tensor:
        """`(heads, 2 * H - 1, 2 * W - 1)`."""
        table = self.relative_position_bias_table.T.unflatten(1, _num_differences(*self.grid))
        if is_certain(height == self.grid[0], width == self.grid[1]):
            return table
        size = _num_differences(height, width)
        return F.interpolate(table[None], size=size, mode="bicubic", align_corners=False)[0]


def _num_differences(height: int, width: int) -> tuple[int, int]:
    """How many differences of rows and of columns there are in a grid."""
    return 2 * height - 1, 2 * width - 1


def _differences(size: int, device: torch.device) -> Tensor:
    """`(size * size,)`: a query's position minus a key's, from 0."""
    positions = torch.arange(size, device=device)
    return (positions[:, None] - positions + size - 1).flatten()


class Windows(NamedTuple):
    """Where the tokens of images lie in windows; those at the lower and right edge may reach beyond it.

    to_windows: for each row of windows, the row of images that it is; beyond the edge, of the token nearest to it.
    to_images: for each row of images, the row of windows.
    beyond: `(windows, 1, 1, T)`, which tokens of windows lie beyond the edge; None where all lie in images.
    windows, images: how many there are of each, all windows of the first image before those of the next, and tokens of
        one.
    """

    to_windows: Tensor
    to_images: Tensor
    beyond: Tensor | None
    windows: tuple[int, int]
    images: tuple[int, int]

    def split(self, x: Tensor) -> Tensor:
        """Images `(N, H * W, C)` as windows `(windows, T, C)`."""
        return x.flatten(0, 1).index_select(0, self.to_windows).view(*self.windows, x.shape[2])

    def join(self, x: Tensor) -> Tensor:
        """Windows `(windows, T, C)` as images `(N, H * W, C)`."""
        return x.flatten(0, 1).index_select(0, self.to_images).view(*self.images, x.shape[2])

    def mask(self, bias: Tensor | None, like: Tensor) -> Tensor | None:
        """What is added to the logits, if anything: `bias (heads, T, T)` of a window, and -inf beyond the edge."""
        if self.beyond is None:
            return bias
        hidden = like.new_zeros(()).masked_fill(self.beyond, -torch.inf)
        return hidden if bias is None else bias + hidden


def locate_windows(side: int, num_images: int, height: int, width: int, device: torch.device) -> Windows:
    """Windows of `side` x `side` tokens over images of `height` x `width`.

    Rows are counted in one axis throughout: of an axis of its own, an exported program would ask whether there are more
    windows than one.
    """
    down, across, num_tokens = -(-height // side), -(-width // side), side**2
    places = torch.arange(num_images * height * width, device=device)
    image, row, column = _indices(places, height, width)
    window = (image * down + row // side) * across + column // side
    to_images = window * num_tokens + row % side * side + column % side
    places = torch.arange(num_images * down * across * num_tokens, device=device)
    image, row_of_windows, column_of_windows, row, column = _indices(places, down, across, side, side)
    row, column = row_of_windows * side + row, column_of_windows * side + column
    to_windows = (image * height + row.clamp(max=height - 1)) * width + column.clamp(max=width - 1)
    fits = is_certain(height % side == 0, width % side == 0)
    beyond = None if fits else ((row >= height) | (column >= width)).view(-1, 1, 1, num_tokens)
    windows, images = (num_images * down * across, num_tokens), (num_images, height * width)
    return Windows(to_windows, to_images, beyond, windows, images)


def _indices(places: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """Of places counted in one axis, the indices in several, of these sizes but for the first.

    Without `%`: the exporter to ONNX has no remainder by a size that stays open.
    """
    indices: tuple[Tensor, ...] = ()
    for size in reversed(sizes):
        whole = places // size
        places, indices = whole, (places - whole * size, *indices)
    return (places, *indices)
