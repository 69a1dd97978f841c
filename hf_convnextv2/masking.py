"""Which cells an encoder sees in masked pre-training, and images as sequences of cells: pure functions.

Paper, section 3.

B batch, C channels, H W height and width in pixels, P side of a cell in pixels, L cells of an image (= H/P * W/P),
V visible cells of an image.
"""

from itertools import pairwise

import torch
from torch import Tensor


def count_visible(num_cells: int, mask_ratio: float) -> int:
    """Number of visible cells: `int(L * (1 - ratio))`, as in the official code (19 of 49 at 224 pixels and 0.6)."""
    num_visible = int(num_cells * (1 - mask_ratio))
    if not 0 < num_visible < num_cells:
        raise ValueError(
            f"`mask_ratio` (={mask_ratio}) must leave at least one visible and one hidden cell, but leaves "
            f"{num_visible} of {num_cells} visible. Use larger images, smaller cells or another ratio."
        )
    return num_visible


def complementary_set_sizes(num_cells: int, num_sets: int) -> tuple[int, ...]:
    """Sizes of K sets that share out the L cells of an image; they differ by at most one (49 in 4: 13, 12, 12, 12)."""
    if num_cells < num_sets:
        raise ValueError(
            f"`num_visible_sets` (={num_sets}) must leave each set a cell, but an image has {num_cells}. Use larger "
            "images, smaller cells or fewer sets."
        )
    # Set s holds the ranks r with r * K // L = s, of which s * L / K, rounded up, is the first.
    first_ranks = [(index * num_cells + num_sets - 1) // num_sets for index in range(num_sets + 1)]
    return tuple(stop - start for start, stop in pairwise(first_ranks))


def set_of_rank(ranks: Tensor, num_sets: int) -> Tensor:
    """The set, 0 to K - 1, of each cell from its rank, both `(B, L)`."""
    return ranks * num_sets // ranks.shape[1]


def rank_cells(noise: Tensor) -> Tensor:
    """Rank of each cell by its noise, `(B, L)` int64: the `ids_restore` of the MAE family."""
    return noise.argsort(dim=1, stable=True).argsort(dim=1)


def visible_ids(masked: Tensor, num_visible: int) -> Tensor:
    """Indices `(B, V)` of the visible cells, ascending, from `masked` `(B, L)` bool, True = hidden."""
    return masked.to(torch.uint8).argsort(dim=1, stable=True)[:, :num_visible]


def check_images(pixel_values: Tensor, patch_size: int, num_channels: int) -> None:
    """Raise a `ValueError` unless these are images `(B, C, H, W)` that whole patches fill."""
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != num_channels or shape[2] % patch_size or shape[3] % patch_size:
        raise ValueError(
            f"`pixel_values` (of shape {shape}) must be (batch, `num_channels` (={num_channels}), height, width), with "
            f"sides that are multiples of {patch_size}, the size of a patch."
        )


def check_patches(patches: Tensor, patch_size: int, num_channels: int, height: int, width: int) -> None:
    """Raise a `ValueError` unless these are the patches `(B, L, P * P * C)` of images of this size."""
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"`original_image_size` (={(height, width)}) must be multiples of {patch_size}, the size of a patch."
        )
    expected = (height // patch_size * (width // patch_size), patch_size**2 * num_channels)
    if patches.ndim != 3 or tuple(patches.shape[1:]) != expected:
        raise ValueError(
            f"`logits` (of shape {tuple(patches.shape)}) must be (batch, {expected[0]}, {expected[1]}), the patches of "
            f"images of {height} x {width} pixels. Give the images' height and width as `original_image_size`."
        )


def patchify(pixel_values: Tensor, patch_size: int) -> Tensor:
    """Images `(B, C, H, W)` as cells `(B, L, P * P * C)`, each in the order row, column, channel."""
    batch, channels, height, width = pixel_values.shape
    x = pixel_values.reshape(batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch_size * patch_size * channels)


def unpatchify(cells: Tensor, patch_size: int, height: int, width: int) -> Tensor:
    """Inverse of `patchify`: cells `(B, L, P * P * C)` as images `(B, C, H, W)`."""
    rows, columns = height // patch_size, width // patch_size
    x = cells.reshape(cells.shape[0], rows, columns, patch_size, patch_size, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(cells.shape[0], -1, height, width)


def check_mask(masked: Tensor, shape: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The mask as `(B, L)`; raises unless it is bool and hides as many cells of each image."""
    if masked.dtype != torch.bool or tuple(masked.shape) not in (shape, (shape[0], *grid)):
        raise ValueError(
            f"`bool_masked_pos` ({masked.dtype}, of shape {tuple(masked.shape)}) must be bool, of shape {shape} or "
            f"{(shape[0], *grid)}, True where a cell is hidden."
        )
    masked = masked.flatten(1)
    counts = masked.sum(dim=1).tolist()
    if len(set(counts)) > 1 or not 0 < counts[0] < shape[1]:
        raise ValueError(
            f"`bool_masked_pos` (hiding {counts} of {shape[1]} cells) must hide the same number of cells in each image "
            "and leave at least one visible and one hidden."
        )
    return masked


def masked_mean(errors: Tensor, counted: Tensor) -> Tensor:
    """Mean of `errors (views, L)` over the cells that count, `counted (views, L)` bool."""
    return (errors * counted).sum() / counted.sum()
