"""Packed cells: where they lie, and how they move."""

import torch

from hf_convnextv2 import packing
from hf_convnextv2.packing import locate_cells, pack, take_cells, unpack
from tests.packed_cells import GRID, IDS, SIDES, cut, visible_map


@SIDES
def test_packing_takes_the_visible_cells(side):
    x = torch.randn(2, 5, 2 * side, 3 * side)
    assert torch.equal(pack(x, locate_cells(IDS, GRID, side)), cut(x, side))


@SIDES
def test_unpacking_puts_cells_back_with_exact_zeros_between(side):
    x, cells = torch.randn(2, 5, 2 * side, 3 * side), locate_cells(IDS, GRID, side)
    assert torch.equal(unpack(pack(x, cells), cells), x * visible_map(side))
    packed = torch.randn(6, 5, side, side)
    assert torch.equal(pack(unpack(packed, cells), cells), packed)


@SIDES
def test_packing_and_unpacking_pass_gradients(side):
    cells = locate_cells(IDS, GRID, side)
    x = torch.randn(2, 2, 2 * side, 3 * side, dtype=torch.double, requires_grad=True)
    packed = torch.randn(6, 2, side, side, dtype=torch.double, requires_grad=True)
    weight = torch.randn(6, 2, side, side, dtype=torch.double)
    (gradient,) = torch.autograd.grad((pack(x, cells) * weight).sum(), x)
    assert torch.equal(gradient, unpack(weight, cells))
    (gradient,) = torch.autograd.grad((unpack(packed, cells) * x.detach()).sum(), packed)
    assert torch.equal(gradient, cut(x.detach(), side))


def test_packing_handles_every_cell_visible_but_one_and_one_alone():
    for ids in (torch.tensor([[0, 1, 2, 4, 5]]), torch.tensor([[3]])):
        cells = locate_cells(ids, GRID, 4)
        packed = torch.randn(ids.numel(), 2, 4, 4)
        assert torch.equal(pack(unpack(packed, cells), cells), packed)


def test_pixels_of_visible_cells_are_taken():
    x = torch.randn(2, 3, 2 * 16, 3 * 16)
    assert torch.equal(take_cells(x, IDS, GRID), cut(x, 16))


@SIDES
def test_being_a_visible_neighbour_is_symmetric(monkeypatch, side):
    monkeypatch.setattr(packing, "MIN_HALO_SIDE", 1)
    cells = locate_cells(IDS, GRID, side)
    windows = cells.halo.view(6, side + 6, side + 6).unfold(1, 7, 1).unfold(2, 7, 1).reshape(-1, 49)  # (rows, 49)
    sees = torch.zeros(len(windows), len(windows) + 1).scatter(1, windows, 1)[:, :-1]
    assert torch.equal(sees, sees.T)
    assert sees.diagonal().all()
