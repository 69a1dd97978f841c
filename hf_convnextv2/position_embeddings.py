"""Position embeddings of a grid of tokens: sines and cosines, fixed or as what training starts from (arXiv 2111.06377).

H W rows and columns of tokens, D channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .shared_config import height_and_width
from .sizes import is_certain

COMPUTED_ELSEWHERE = 1e-6  # how far sines of another library may differ


def sincos_table(height: int, width: int, dim: int) -> Tensor:
    """`(H * W, D)`: sines and cosines of the column, then of the row, at D/4 frequencies from 1 to 1/10000."""
    steps = torch.arange(dim // 4, dtype=torch.float64, device="cpu")
    frequencies = 10000 ** (-steps / (dim // 4))
    rows, columns = (
        torch.arange(side, dtype=torch.float64, device="cpu")[:, None] * frequencies for side in (height, width)
    )
    of_rows, of_columns = (torch.cat([angles.sin(), angles.cos()], dim=1) for angles in (rows, columns))
    by_column = of_columns[None].expand(height, -1, -1)
    by_row = of_rows[:, None].expand(-1, width, -1)
    return torch.cat([by_column, by_row], dim=2).flatten(0, 1).float()


class PositionEmbeddings(nn.Module):
    """Those of the grid of `image_size`: a parameter if they are `learned`, else a buffer.

    For other grids learned ones are interpolated and fixed ones computed.
    """

    weight: Tensor

    def __init__(self, image_size: int | Sequence[int], patch_side: int, dim: int, learned: bool):
        super().__init__()
        self.patch_side, self.learned = patch_side, learned
        self.grid = self.grid_of(image_size)
        weight = torch.zeros(1, self.grid[0] * self.grid[1], dim)
        if learned:
            self.weight = nn.Parameter(weight)
        else:  # not a frozen parameter: Transformers would thaw it when it loads one
            self.register_buffer("weight", weight)

    def forward(self, height: int, width: int) -> Tensor:
        """`(1, H * W, D)`; never a view of the parameter, on which `torch.utils.flop_counter` fails."""
        if is_certain(height == self.grid[0], width == self.grid[1]):
            return self.weight
        if not self.learned:
            return sincos_table(height, width, self.weight.shape[2]).to(self.weight)[None]
        map_ = self.weight.unflatten(1, self.grid).permute(0, 3, 1, 2)
        resized = F.interpolate(map_, size=(height, width), mode="bicubic", align_corners=False)
        return resized.flatten(2).mT

    def initial_weight(self) -> Tensor:
        """`(1, H * W, D)`."""
        return sincos_table(*self.grid, self.weight.shape[2])[None]

    def has_initial_weight(self) -> bool:
        """Whether the embeddings are the sines and cosines of their grid, if only as half precision rounds them."""
        if self.weight.is_meta:  # left on the disk
            return True
        initial = self.initial_weight().to(self.weight.device)
        roundings = (
            initial.to(dtype).to(self.weight.dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)
        )
        return any(torch.allclose(self.weight, rounded, rtol=0, atol=COMPUTED_ELSEWHERE) for rounded in roundings)

    @torch.no_grad()
    def restore_initial_weight(self) -> None:
        """Make the embeddings sines and cosines again."""
        self.weight.copy_(self.initial_weight())

    @torch.no_grad()
    def set_image_size(self, image_size: int | Sequence[int]) -> None:
        """Make other images' grid the parameter's."""
        grid = self.grid_of(image_size)
        weight, old = self(*grid).clone(), self.weight
        self.grid = grid
        self.weight = nn.Parameter(weight, requires_grad=old.requires_grad) if self.learned else weight

    def grid_of(self, image_size: int | Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the tokens of images of this size."""
        height, width = height_and_width(image_size)
        return height // self.patch_side, width // self.patch_side
