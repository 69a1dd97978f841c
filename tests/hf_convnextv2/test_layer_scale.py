"""Blocks with LayerScale or without GRN: the fused MLP against plain autograd, and which way LayerScale takes."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers.models.convnext import modeling_convnext as stock

from hf_convnextv2 import fused_mlp as module
from hf_convnextv2.fused_mlp import fused_mlp
from hf_convnextv2.grn import ConvNextV2GRN
from hf_convnextv2.layer_scale import folds_layer_scale
from hf_convnextv2.layers import ConvNextV2Layer
from hf_convnextv2.packing import locate_cells, one_view
from tests.hf_convnextv2.grn_formula import grn_formula
from tests.small_models import assert_close, awake, difference, small_config

DIM = 4
KINDS = {"V1": (False, True), "neither": (False, False), "GRN and LayerScale": (True, True)}
# Of more positions than `down` has columns, of fewer, in several chunks, and of one position in several chunks.
SHAPES = [(2, 9), (1, 3), (300, 256), (40_000, 2)]


class Branch(nn.Module):
    """The layers of a block after its convolution, 4 channels wide."""

    def __init__(self, has_grn: bool, has_scale: bool):
        super().__init__()
        self.up, self.down = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)
        self.norm, self.grn = nn.LayerNorm(DIM, eps=1e-6), ConvNextV2GRN(4 * DIM) if has_grn else None
        self.scale = nn.Parameter(torch.zeros(DIM)) if has_scale else None

    def fused(self, x, residual=None, factor=None):
        rows = None if residual is None else residual.flatten(0, 1)
        layers = (self.up, self.grn, self.down, self.norm)
        return fused_mlp(x.flatten(0, 1), (x.shape[:2],), *layers, rows, factor, self.scale).view(x.shape)

    def plain(self, x, residual=None, factor=None):
        y = F.gelu(self.up(self.norm(x)))
        if self.grn is not None:
            y = grn_formula(y[:, None], self.grn.weight, self.grn.bias)[:, 0].to(y.dtype)
        y = self.down(y)
        y = y if self.scale is None else self.scale * y
        y = y if factor is None else y * factor[:, None, None]
        return y if residual is None else residual + y


@pytest.fixture(params=KINDS)
def branch(request):
    return awake(Branch(*KINDS[request.param]), std=0.5)


def outputs_and_gradients(branch, shape, with_residual=True, with_factor=True, dtype=torch.float32):
    """Outputs and the gradients of inputs and parameters, of the fused function and of plain autograd."""
    results, branch = [], branch.to(dtype)
    factor = torch.arange(shape[0]).to(dtype) % 2 * 1.5 + 0.5 if with_factor else None
    for compute in (branch.fused, branch.plain):
        torch.manual_seed(0)
        x, residual = torch.randn(2, *shape, DIM, dtype=dtype).unbind()
        leaves = [x.requires_grad_(), *([residual.requires_grad_()] if with_residual else []), *branch.parameters()]
        out = compute(x, residual if with_residual else None, factor)
        upstream = torch.linspace(-1, 2, out.numel(), dtype=dtype).view(out.shape)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, upstream)))
    return zip(*results, strict=True)


@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("with_factor", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_fused_branch_has_the_gradients_of_the_formula(branch, shape, with_residual, with_factor):
    for actual, expected in outputs_and_gradients(branch, shape, with_residual, with_factor):
        assert_close(actual, expected, tolerance=2e-5)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_gradients_are_exact_in_float64(branch, shape):
    for actual, expected in outputs_and_gradients(branch, shape, dtype=torch.double):
        assert_close(actual, expected, tolerance=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_fused_branch_computes_the_same_without_gradients(branch, shape):
    x, residual = torch.randn(2, *shape, DIM).unbind()
    factor = torch.arange(shape[0]) % 2 * 1.5
    with torch.no_grad():
        assert_close(branch.fused(x, residual, factor), branch.plain(x, residual, factor))


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_compiled_formula_is_the_fused_one(branch, shape, monkeypatch):
    x, residual, factor = torch.randn(*shape, DIM), torch.randn(*shape, DIM), torch.arange(shape[0]) * 1.5
    expected = branch.fused(x, residual, factor)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_close(branch.fused(x, residual, factor), expected)


@pytest.mark.parametrize("shape", [(2, 40), (1, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_float32(branch, dtype, shape):
    x, residual = torch.randn(2, *shape, DIM).unbind()
    expected = branch.plain(x, residual)
    with torch.autocast("cpu", dtype):
        out = branch.fused(x, residual)
    assert out.dtype == torch.float32
    assert_close(out, expected, tolerance=0.02)
    halves = copy.deepcopy(branch).to(dtype)
    assert_close(halves.fused(x.to(dtype), residual.to(dtype)).float(), expected, tolerance=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fresh_layer_scale_lets_gradients_through_in_half_precision(dtype):
    """1e-6 times a weight of 0.02 is zero in float16, and so would be what passes it."""
    branch, x = Branch(False, True), torch.randn(2, 40, DIM)
    nn.init.constant_(branch.scale, 1e-6)
    nn.init.normal_(branch.down.weight, std=0.02)
    grads = []
    for compute, is_half in ((branch.fused, True), (branch.plain, False)):
        with torch.autocast("cpu", dtype, enabled=is_half):
            out = compute(x, x)
        grads.append(torch.autograd.grad(out, list(branch.parameters()), torch.full_like(out, 2.0**12)))
    for actual, expected in zip(*grads, strict=True):
        assert_close(actual, expected, tolerance=0.05)
    tiny = (1e-6 * branch.down.weight).to(dtype)
    assert (difference(tiny.float(), 1e-6 * branch.down.weight) > 0.2) is (dtype == torch.float16)


def test_layer_scale_takes_the_way_of_fewer_numbers(monkeypatch):
    up = torch.empty(4 * DIM, DIM)
    assert folds_layer_scale(4 * DIM + 1, up) and not folds_layer_scale(4 * DIM, up)
    assert not folds_layer_scale(1000, up.half())
    with torch.autocast("cpu", torch.float16):
        assert not folds_layer_scale(1000, up)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not folds_layer_scale(1000, up)


@pytest.mark.parametrize("hidden_act", ["gelu", "silu"])  # fused, and module by module
def test_block_of_v1_is_the_stock_block(hidden_act):
    config = {"hidden_act": hidden_act, "layer_scale_init_value": 0.5}
    ours = awake(ConvNextV2Layer(small_config(use_grn=False, **config), 8))
    peer = stock.ConvNextLayer(transformers.ConvNextConfig(**config), 8)
    peer.load_state_dict(ours.state_dict())
    x = torch.randn(2, 8, 9, 7)
    assert_close(ours(x), peer(x))


def test_block_of_v1_is_fused(monkeypatch):
    calls = []
    monkeypatch.setattr("hf_convnextv2.layers.fused_mlp", lambda *a, **k: calls.append(1) or module.fused_mlp(*a, **k))
    for setting in ({"layer_scale_init_value": 0.5}, {}):
        ConvNextV2Layer(small_config(use_grn=False, **setting), 8)(torch.randn(2, 8, 9, 7))
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["act", "pwconv1", "pwconv2", "dwconv", "layernorm"])
def test_hook_on_any_module_of_a_block_of_v1_is_called(name):
    block = awake(ConvNextV2Layer(small_config(use_grn=False, layer_scale_init_value=0.5), 8))
    x, calls = torch.randn(2, 8, 9, 7), []
    expected = block(x)
    block.get_submodule(name).register_forward_hook(lambda *_: calls.append(name))
    assert_close(block(x), expected)
    assert calls == [name]


def test_packed_cells_of_a_block_of_v1_are_those_of_its_modules():
    block = awake(ConvNextV2Layer(small_config(use_grn=False, layer_scale_init_value=0.5), 8))
    cells = locate_cells(one_view(torch.tensor([[0, 3], [1, 2]])), (2, 2), side=8)
    x = torch.randn(4, 8, 8, 8)
    expected = block(x, cells)
    block.act.register_forward_hook(lambda *_: None)
    assert_close(block(x, cells), expected)
