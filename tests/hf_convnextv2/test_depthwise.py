"""The depthwise convolution: of packed cells it sees visible neighbours alone; its gradients are the true ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_convnextv2 import depthwise, packing
from hf_convnextv2.depthwise import depthwise_conv
from hf_convnextv2.packing import locate_cells, pack, unpack
from tests.packed_cells import GRID, SIDES, VISIBLE, cut, visible_map
from tests.small_models import assert_close, difference


@pytest.fixture(params=["halo", "canvas"])
def locate(request, monkeypatch):
    """`locate_cells` made to choose one form of the convolution for every side."""
    monkeypatch.setattr(packing, "MIN_HALO_SIDE", 1 if request.param == "halo" else 99)
    return locate_cells


@SIDES
def test_convolution_of_packed_cells_is_the_sum_over_visible_neighbours(locate, side):
    conv = nn.Conv2d(2, 2, 7, padding=3, groups=2).double()
    packed = torch.randn(6, 2, side, side, dtype=torch.double)
    x, visible = unpack(packed, locate_cells(VISIBLE, GRID, side)), visible_map(side)
    expected = torch.zeros_like(x) + conv.bias.view(2, 1, 1)
    height, width = x.shape[2:]
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            ys, xs = torch.arange(height) + dy, torch.arange(width) + dx
            inside = ((ys >= 0) & (ys < height))[:, None] & ((xs >= 0) & (xs < width))
            neighbour = (x * visible)[:, :, ys.clamp(0, height - 1)][..., xs.clamp(0, width - 1)] * inside
            expected = expected + conv.weight[:, 0, dy + 3, dx + 3].view(2, 1, 1) * neighbour
    actual = depthwise_conv(conv, packed, locate(VISIBLE, GRID, side))
    assert_close(actual, cut(expected, side), tolerance=1e-12)  # float64


@SIDES
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_of_packed_cells_has_the_gradients_of_a_masked_one(locate, side, bias):
    conv = nn.Conv2d(3, 3, 7, padding=3, groups=3, bias=bias).double()
    dense = torch.randn(2, 3, 2 * side, 3 * side, dtype=torch.double, requires_grad=True)
    upstream = torch.randn(6, 3, side, side, dtype=torch.double)
    cells = locate(VISIBLE, GRID, side)
    results = [
        torch.autograd.grad(out, [dense, *conv.parameters()], upstream)
        for out in (
            depthwise_conv(conv, pack(dense, cells), cells),
            cut(F.conv2d(dense * visible_map(side), conv.weight, conv.bias, padding=3, groups=3), side),
        )
    ]
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, tolerance=1e-12)


@SIDES
def test_convolution_that_sees_hidden_cells_is_another_one(locate, side):
    conv, dense = nn.Conv2d(3, 3, 7, padding=3, groups=3), torch.randn(2, 3, 2 * side, 3 * side)
    cells = locate(VISIBLE, GRID, side)
    masked = depthwise_conv(conv, pack(dense, cells), cells)
    assert difference(cut(conv(dense), side), masked) > 1e-2


@SIDES
def test_a_module_with_a_hook_is_called(side):
    conv, calls = nn.Conv2d(3, 3, 7, padding=3, groups=3), []
    cells, packed = locate_cells(VISIBLE, GRID, side), torch.randn(6, 3, side, side)
    gathered = depthwise_conv(conv, packed, cells)
    conv.register_forward_hook(lambda *_: calls.append(1))
    assert_close(depthwise_conv(conv, packed, cells), gathered)
    assert_close(depthwise_conv(conv, packed), conv(packed))
    assert calls == [1, 1, 1]


def test_convolution_of_packed_cells_runs_under_autocast(locate):
    conv, packed = nn.Conv2d(3, 3, 7, padding=3, groups=3), torch.randn(6, 3, 8, 8)
    cells = locate(VISIBLE, GRID, 8)
    expected = depthwise_conv(conv, packed, cells)
    with torch.autocast("cpu", torch.bfloat16):
        actual = depthwise_conv(conv, packed, cells)
    actual.float().sum().backward()
    assert actual.dtype == torch.bfloat16
    assert_close(actual.float(), expected, tolerance=0.02)  # 49 products of 8 bits
    assert conv.weight.grad.dtype == torch.float32


# Dense maps: PyTorch's own gradients are the oracle.


@pytest.mark.parametrize("chunk_size", [1, 3 * 5 * 63, 2**18])  # 1 image, 5 of 6 and all in one convolution
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_a_dense_map_are_those_of_a_convolution(bias, memory_format, chunk_size, monkeypatch):
    monkeypatch.setattr(depthwise, "CHUNK_SIZE", chunk_size)
    conv = nn.Conv2d(3, 3, 7, padding=3, groups=3, bias=bias).double()
    for size in ((7, 9), (1, 1), (2, 13)):
        x = torch.randn(6, 3, *size, dtype=torch.double).to(memory_format=memory_format).requires_grad_()
        upstream = torch.randn(6, 3, *size, dtype=torch.double)
        results = [
            torch.autograd.grad(out, [x, *conv.parameters()], upstream) for out in (depthwise_conv(conv, x), conv(x))
        ]
        for actual, expected in zip(*results, strict=True):
            assert_close(actual, expected, tolerance=1e-12)


def test_gradients_are_computed_only_for_what_asks_for_them():
    conv = nn.Conv2d(3, 3, 7, padding=3, groups=3)
    conv.requires_grad_(False)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    depthwise_conv(conv, x).sum().backward()
    assert x.grad is not None and conv.weight.grad is None and conv.bias.grad is None
