"""Packed cells: where they lie, and how they move."""

import torch

from hf_convnextv2 import packing
from hf_convnextv2.packing import complementary_views, locate_cells, one_view, pack, take_cells, unpack
from tests.packed_cells import GRID, SIDES, VISIBLE, cut, visible_map


@SIDES
def test_packing_takes_the_visible_cells(side):
    x = torch.randn(2, 5, 2 * side, 3 * side)
    assert torch.equal(pack(x, locate_cells(VISIBLE, GRID, side)), cut(x, side))


@SIDES
def test_unpacking_puts_cells_back_with_exact_zeros_between(side):
    x, cells = torch.randn(2, 5, 2 * side, 3 * side), locate_cells(VISIBLE, GRID, side)
    assert torch.equal(unpack(pack(x, cells), cells), x * visible_map(side))
    packed = torch.randn(6, 5, side, side)
    assert torch.equal(pack(unpack(packed, cells), cells), packed)


@SIDES
def test_packing_and_unpacking_pass_gradients(side):
    cells = locate_cells(VISIBLE, GRID, side)
    x = torch.randn(2, 2, 2 * side, 3 * side, dtype=torch.double, requires_grad=True)
    packed = torch.randn(6, 2, side, side, dtype=torch.double, requires_grad=True)
    weight = torch.randn(6, 2, side, side, dtype=torch.double)
    (gradient,) = torch.autograd.grad((pack(x, cells) * weight).sum(), x)
    assert torch.equal(gradient, unpack(weight, cells))
    (gradient,) = torch.autograd.grad((unpack(packed, cells) * x.detach()).sum(), packed)
    assert torch.equal(gradient, cut(x.detach(), side))


def test_packing_handles_every_cell_visible_but_one_and_one_alone():
    for ids in (torch.tensor([[0, 1, 2, 4, 5]]), torch.tensor([[3]])):
        cells = locate_cells(one_view(ids), GRID, 4)
        packed = torch.randn(ids.numel(), 2, 4, 4)
        assert torch.equal(pack(unpack(packed, cells), cells), packed)


def test_pixels_of_visible_cells_are_taken():
    x = torch.randn(2, 3, 2 * 16, 3 * 16)
    assert torch.equal(take_cells(x, VISIBLE, GRID), cut(x, 16))


@SIDES
def test_being_a_visible_neighbour_is_symmetric(monkeypatch, side):
    monkeypatch.setattr(packing, "MIN_HALO_SIDE", 1)
    cells = locate_cells(VISIBLE, GRID, side)
    assert cells.halo is not None
    windows = cells.halo.view(6, side + 6, side + 6).unfold(1, 7, 1).unfold(2, 7, 1).reshape(-1, 49)  # (rows, 49)
    sees = torch.zeros(len(windows), len(windows) + 1).scatter(1, windows, 1)[:, :-1]
    assert torch.equal(sees, sees.T)
    assert sees.diagonal().all()


# Complementary views: four sets of the six cells of each image, of 2, 1, 2 and 1 cells.
SET_IDS = torch.tensor([[1, 0, 2, 3, 0, 2], [2, 0, 3, 1, 2, 0]])
SIZES = (2, 1, 2, 1)


def of_set(index, side):
    """`(2, 1, H, W)`, 1 where a cell of a set lies."""
    cells = (index == SET_IDS).float().view(2, 1, *GRID)
    return cells.repeat_interleave(side, 2).repeat_interleave(side, 3)


@SIDES
def test_each_view_shows_the_cells_of_its_set(side):
    visible = complementary_views(SET_IDS, SIZES)
    cells = locate_cells(visible, GRID, side)
    x = torch.randn(2, 5, 2 * side, 3 * side)
    views = torch.cat([x * of_set(index, side) for index in range(4)])  # view s * 2 + b: set s of image b
    assert torch.equal(unpack(take_cells(x, visible, GRID), cells), views)
    assert torch.equal(pack(views, cells), take_cells(x, visible, GRID))


def test_views_of_one_size_are_one_group():
    assert complementary_views(SET_IDS, SIZES).groups == ((4, 2), (4, 1))
    assert complementary_views(SET_IDS // 2, (3, 3)).groups == ((4, 3),)
    noise = torch.rand(3, 10).argsort(dim=1).argsort(dim=1)
    visible = complementary_views(noise * 4 // 10, (3, 2, 3, 2))
    assert visible.groups == ((6, 3), (6, 2))
    assert visible.views.split([18, 12])[0].view(-1, 3)[:, 0].tolist() == [0, 1, 2, 6, 7, 8]


@SIDES
def test_cells_of_another_view_are_no_neighbours(monkeypatch, side):
    monkeypatch.setattr(packing, "MIN_HALO_SIDE", 1)
    visible = complementary_views(SET_IDS, SIZES)
    halo = locate_cells(visible, GRID, side).halo
    assert halo is not None
    windows = halo.view(12, -1)  # of each cell, the packed rows around it
    around = windows // (side * side)
    views = torch.cat([visible.views, visible.views.new_full((1,), -1)])  # -1: nothing
    seen = views[around.clamp(max=12)]
    assert ((seen == visible.views[:, None]) | (seen == -1)).all()
    assert all((seen[cell] == visible.views[cell]).sum() >= side * side for cell in range(12))
