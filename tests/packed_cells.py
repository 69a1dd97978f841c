"""Two images of which some cells are visible, laid out by plain slicing."""

import pytest
import torch

from hf_convnextv2.packing import one_view

GRID = (2, 3)
IDS = torch.tensor([[0, 1, 5], [2, 3, 4]])  # of 2 images; in the first, cells 0 and 1 touch and 5 is apart
VISIBLE = one_view(IDS)
SIDES = pytest.mark.parametrize("side", [1, 2, 3, 4, 8])


def visible_map(side):
    """`(2, 1, H, W)`, 1 where a visible cell lies."""
    cells = torch.zeros(2, 6).scatter(1, IDS, 1).view(2, 1, *GRID)
    return cells.repeat_interleave(side, 2).repeat_interleave(side, 3)


def cut(x, side):
    """The visible cells of a map `(2, C, H, W)`, one slice after the other."""
    return torch.stack(
        [
            x[image, :, cell // 3 * side : (cell // 3 + 1) * side, cell % 3 * side : (cell % 3 + 1) * side]
            for image in range(2)
            for cell in IDS[image].tolist()
        ]
    )
