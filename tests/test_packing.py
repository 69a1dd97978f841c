"""Packed cells: where they lie, and the convolution that knows their neighbours."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_convnextv2 import packing
from hf_convnextv2.packing import depthwise_conv, locate_cells, pack, take_cells, unpack
from tests.small_models import assert_close, difference

GRID = (2, 3)
IDS = torch.tensor([[0, 1, 5], [2, 3, 4]])  # of 2 images; in the first, cells 0 and 1 touch and 5 is apart
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


@pytest.fixture(params=["halo", "canvas"])
def locate(request, monkeypatch):
    """`locate_cells` made to choose one form of the convolution for every side."""
    monkeypatch.setattr(packing, "MIN_HALO_SIDE", 1 if request.param == "halo" else 99)
    return locate_cells


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
def test_convolution_of_packed_cells_is_the_sum_over_visible_neighbours(locate, side):
    conv = nn.Conv2d(2, 2, 7, padding=3, groups=2).double()
    packed = torch.randn(6, 2, side, side, dtype=torch.double)
    x, visible = unpack(packed, locate_cells(IDS, GRID, side)), visible_map(side)
    expected = torch.zeros_like(x) + conv.bias.view(2, 1, 1)
    height, width = x.shape[2:]
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            ys, xs = torch.arange(height) + dy, torch.arange(width) + dx
            inside = ((ys >= 0) & (ys < height))[:, None] & ((xs >= 0) & (xs < width))
            neighbour = (x * visible)[:, :, ys.clamp(0, height - 1)][..., xs.clamp(0, width - 1)] * inside
            expected = expected + conv.weight[:, 0, dy + 3, dx + 3].view(2, 1, 1) * neighbour
    actual = depthwise_conv(conv, packed, locate(IDS, GRID, side), use_halo=True)
    assert_close(actual, cut(expected, side), tolerance=1e-12)  # float64


@SIDES
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_of_packed_cells_has_the_gradients_of_a_masked_one(locate, side, bias):
    conv = nn.Conv2d(3, 3, 7, padding=3, groups=3, bias=bias).double()
    dense = torch.randn(2, 3, 2 * side, 3 * side, dtype=torch.double, requires_grad=True)
    upstream = torch.randn(6, 3, side, side, dtype=torch.double)
    cells = locate(IDS, GRID, side)
    results = [
        torch.autograd.grad(out, [dense, *conv.parameters()], upstream)
        for out in (
            depthwise_conv(conv, pack(dense, cells), cells, use_halo=True),
            cut(F.conv2d(dense * visible_map(side), conv.weight, conv.bias, padding=3, groups=3), side),
        )
    ]
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, tolerance=1e-12)


@SIDES
def test_convolution_that_sees_hidden_cells_is_another_one(locate, side):
    conv, dense = nn.Conv2d(3, 3, 7, padding=3, groups=3), torch.randn(2, 3, 2 * side, 3 * side)
    cells = locate(IDS, GRID, side)
    masked = depthwise_conv(conv, pack(dense, cells), cells, use_halo=True)
    assert difference(cut(conv(dense), side), masked) > 1e-2


def test_halo_is_left_where_the_module_has_to_be_called():
    conv, calls = nn.Conv2d(3, 3, 7, padding=3, groups=3), []
    conv.register_forward_hook(lambda *_: calls.append(1))
    cells, packed = locate_cells(IDS, GRID, 8), torch.randn(6, 3, 8, 8)
    called, gathered = (depthwise_conv(conv, packed, cells, use_halo=use_halo) for use_halo in (False, True))
    assert_close(called, gathered)
    assert calls == [1]


@SIDES
def test_being_a_visible_neighbour_is_symmetric(monkeypatch, side):
    monkeypatch.setattr(packing, "MIN_HALO_SIDE", 1)
    cells = locate_cells(IDS, GRID, side)
    windows = cells.halo.view(6, side + 6, side + 6).unfold(1, 7, 1).unfold(2, 7, 1).reshape(-1, 49)  # (rows, 49)
    sees = torch.zeros(len(windows), len(windows) + 1).scatter(1, windows, 1)[:, :-1]
    assert torch.equal(sees, sees.T)
    assert sees.diagonal().all()


def test_convolution_of_packed_cells_runs_under_autocast(locate):
    conv, packed = nn.Conv2d(3, 3, 7, padding=3, groups=3), torch.randn(6, 3, 8, 8)
    cells = locate(IDS, GRID, 8)
    expected = depthwise_conv(conv, packed, cells, use_halo=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = depthwise_conv(conv, packed, cells, use_halo=True)
    actual.float().sum().backward()
    assert actual.dtype == torch.bfloat16
    assert_close(actual.float(), expected, tolerance=0.02)  # 49 products of 8 bits
    assert conv.weight.grad.dtype == torch.float32
