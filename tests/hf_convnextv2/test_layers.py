"""Layers against their formulas written out, and the fused path of a block against its modules."""

import copy
import re

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from accelerate import cpu_offload
from torch import nn
from transformers.models.convnextv2 import modeling_convnextv2 as stock

from hf_convnextv2 import ConvNextV2Model
from hf_convnextv2.chunks import CHUNK_SIZE, split_into_chunks
from hf_convnextv2.downsampling import patch_conv
from hf_convnextv2.fused_mlp import fused_mlp
from hf_convnextv2.grn import ConvNextV2GRN
from hf_convnextv2.layers import (
    ConvNextV2DropPath,
    ConvNextV2Embeddings,
    ConvNextV2Layer,
    ConvNextV2LayerNorm,
    ConvNextV2Stage,
)
from hf_convnextv2.packing import locate_cells, one_view
from tests.small_models import assert_close, awake, difference, small_config


def grn_formula(x, weight, bias):
    """Algorithm 1 of the paper in float64, `x (N, H, W, C)`."""
    x = x.double()
    energy = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    share = energy / (energy.mean(dim=-1, keepdim=True) + 1e-6)
    return weight.double() * (x * share) + bias.double() + x


def fused_and_plain(mlp, x):
    """Outputs `(B, T, C)` and gradients of input and parameters, of the fused function and of plain autograd."""
    results = []
    for compute in (fused, plain):
        rows = x.detach().clone().requires_grad_()
        out = compute(mlp, rows)
        upstream = torch.linspace(-1, 2, out.numel()).view(out.shape).to(out.dtype)
        results.append((out.detach(), *torch.autograd.grad(out, [rows, *mlp.parameters()], upstream)))
    return results


def fused(mlp, x):
    """The fused function of views `(B, T, C)`."""
    return fused_mlp(x.flatten(0, 1), (x.shape[:2],), mlp["up"], mlp["grn"], mlp["down"]).view(x.shape)


def plain(mlp, rows):
    response = grn_formula(F.gelu(mlp["up"](rows))[:, None], mlp["grn"].weight, mlp["grn"].bias)
    return mlp["down"](response[:, 0].to(rows.dtype))


@pytest.fixture
def mlp():
    """The middle of a block, 4 to 16 channels and back."""
    layers = {"up": nn.Linear(4, 16), "grn": ConvNextV2GRN(16), "down": nn.Linear(16, 4)}
    return awake(nn.ModuleDict(layers), std=0.5)


def test_grn_is_the_formula():
    grn, x = awake(ConvNextV2GRN(12), std=0.5), torch.randn(3, 5, 4, 12)
    assert_close(grn(x), grn_formula(x, grn.weight, grn.bias).float())


def test_fresh_grn_is_the_identity():
    x = torch.randn(2, 3, 3, 8)
    assert torch.equal(ConvNextV2GRN(8)(x), x)


def test_grn_of_packed_cells_pools_the_energy_of_an_image():
    grn, x = awake(ConvNextV2GRN(12), std=0.5), torch.randn(2 * 3, 4, 4, 12)
    expected = grn_formula(x.view(2, 3 * 4, 4, 12), grn.weight, grn.bias).view(x.shape).float()
    assert_close(grn(x, groups=((2, 3 * 4 * 4),)), expected)
    assert difference(grn(x), expected) > 1e-2  # each cell on its own is another thing


def test_grn_statistics_do_not_overflow_in_half_precision():
    grn, x = awake(ConvNextV2GRN(8), std=0.5).half(), torch.full((1, 56, 56, 8), 1300.0).half()
    assert grn(x).isfinite().all()
    assert torch.linalg.vector_norm(x, dim=(1, 2)).isinf().all()


def test_layer_norm_normalises_each_position_of_a_map():
    norm, x = awake(ConvNextV2LayerNorm(8, eps=1e-6)), torch.randn(2, 8, 3, 5)
    centred = x.double() - x.double().mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    assert_close(norm(x), (expected * norm.weight.view(8, 1, 1) + norm.bias.view(8, 1, 1)).float())


@pytest.mark.parametrize("shape", [(2, 9, 4), (1, 1, 4), (2, 3, 4), (300, 256, 4), (40_000, 2, 4)])
def test_fused_mlp_has_the_gradients_of_the_formula(mlp, shape):
    for actual, expected in zip(*fused_and_plain(mlp, torch.randn(shape)), strict=True):
        assert_close(actual, expected)


def test_the_largest_cases_above_are_worked_on_in_chunks():
    for images, positions in ((300, 256), (40_000, 2)):
        assert images * positions * 16 > CHUNK_SIZE > positions * 16


def test_fused_mlp_computes_the_same_without_gradients(mlp):
    x = torch.randn(300, 256, 4)
    with torch.no_grad():
        assert_close(fused(mlp, x), plain(mlp, x))


def test_fused_mlp_has_float32_statistics_in_half_precision(mlp):
    x = torch.randn(2, 3136, 4) * 8
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter *= 4
        energy = torch.linalg.vector_norm(F.gelu(mlp["up"](x)), dim=1)
        assert energy.square().max() > torch.finfo(torch.float16).max
        halves = copy.deepcopy(mlp).half()
        alone = fused(halves, x.half())
        assert_close(alone.float(), plain(mlp, x), tolerance=5e-3)
    trained = fused(halves, x.half())
    assert torch.equal(alone, trained)


def test_fused_mlp_has_a_gradient_where_a_channel_is_silent(mlp):
    with torch.no_grad():
        mlp["up"].weight[3], mlp["up"].bias[3] = 0, 0  # GELU(0) = 0: no energy
    for actual, expected in zip(*fused_and_plain(mlp, torch.randn(2, 9, 4)), strict=True):
        assert_close(actual, expected)


def test_fused_mlp_is_exact_in_float64(mlp):
    x = torch.randn(2, 9, 4, dtype=torch.double)
    for actual, expected in zip(*fused_and_plain(mlp.double(), x), strict=True):
        assert_close(actual, expected, tolerance=1e-12)


def test_fused_mlp_runs_in_bfloat16(mlp):
    x = torch.randn(2, 64, 4)
    expected = fused_and_plain(mlp, x)[0]
    actual = fused_and_plain(mlp.bfloat16(), x.bfloat16())[0]
    for low, high in zip(actual, expected, strict=True):
        assert low.dtype == torch.bfloat16
        assert_close(low.float(), high, tolerance=0.05)  # bfloat16 keeps 8 bits, and products pass several of them


def test_fused_mlp_runs_under_autocast(mlp):
    x = torch.randn(2, 64, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = fused(mlp, x)
    out.float().square().mean().backward()
    assert (out.dtype, x.grad.dtype, mlp["down"].weight.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert_close(out.float(), plain(mlp, x), tolerance=0.05)


@pytest.fixture
def branch(mlp):
    """The same middle, with the norm before it."""
    norm = awake(nn.LayerNorm(4, eps=1e-6), std=0.5)
    return nn.ModuleDict({**mlp, "norm": norm})


def fused_branch(branch, x, residual, factor, **kwargs):
    layers = (branch["up"], branch["grn"], branch["down"], branch["norm"])
    rows = residual.flatten(0, 1) if residual is not None else None
    return fused_mlp(x.flatten(0, 1), (x.shape[:2],), *layers, rows, factor, **kwargs).view(x.shape)


def plain_branch(branch, x, residual, factor):
    out = plain(branch, F.layer_norm(x, (4,), branch["norm"].weight, branch["norm"].bias, 1e-6))
    out = out if factor is None else out * factor[:, None, None]
    return out if residual is None else residual + out


@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("with_factor", [True, False])
@pytest.mark.parametrize("shape", [(2, 9, 4), (2, 3, 4), (300, 256, 4), (40_000, 2, 4)])
def test_fused_branch_has_the_gradients_of_the_formula(branch, shape, with_residual, with_factor):
    factor = torch.arange(shape[0]) % 2 * 1.5 if with_factor else None  # every second image is dropped
    results = []
    for compute in (fused_branch, plain_branch):
        torch.manual_seed(0)
        x, residual = torch.randn(2, *shape).unbind()
        leaves = [x.requires_grad_(), *([residual.requires_grad_()] if with_residual else [])]
        out = compute(branch, x, residual if with_residual else None, factor)
        upstream = torch.linspace(-1, 2, out.numel()).view(out.shape)
        results.append((out.detach(), *torch.autograd.grad(out, [*leaves, *branch.parameters()], upstream)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, tolerance=2e-5)


GROUPS = [((3, 9), (2, 8)), ((2, 3), (5, 2)), ((300, 256), (100, 255))]  # the last are worked on in several chunks


def per_group(compute, branch, x, groups, residual, factor):
    """Views of each size as one tensor, one size after the other."""
    outs, row, view = [], 0, 0
    for views, positions in groups:
        rows, stop = slice(row, row + views * positions), view + views
        parts = (t[rows].view(views, positions, -1) for t in (x, residual))
        outs.append(compute(branch, *parts, factor[view:stop]).flatten(0, 1))
        row, view = rows.stop, stop
    return torch.cat(outs)


@pytest.mark.parametrize("groups", GROUPS)
def test_fused_branch_of_views_of_unequal_sizes_is_that_of_each_size(branch, groups):
    rows, views = sum(b * t for b, t in groups), sum(b for b, _ in groups)
    x, residual, upstream = torch.randn(3, rows, 4).unbind()
    factor, layers = torch.arange(views) % 2 * 1.5, (branch["up"], branch["grn"], branch["down"], branch["norm"])
    leaves, results = [x.requires_grad_(), residual.requires_grad_(), *branch.parameters()], []
    for out in (
        fused_mlp(x, groups, *layers, residual, factor),
        per_group(plain_branch, branch, x, groups, residual, factor),
    ):
        results.append((out.detach(), *torch.autograd.grad(out, leaves, upstream)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, tolerance=2e-5)
    with torch.no_grad():
        assert_close(fused_mlp(x, groups, *layers, residual, factor), results[1][0])
        together = fused_mlp(x, ((1, rows),), *layers, residual, factor[:1] + 1)
    assert difference(together, results[1][0]) > 1e-2


def test_grn_of_views_of_unequal_sizes_is_that_of_each():
    grn, x = awake(ConvNextV2GRN(12), std=0.5), torch.randn(3 * 2 + 2, 2, 2, 12)
    expected = [grn_formula(part.reshape(1, -1, 1, 12), grn.weight, grn.bias).view(part.shape) for part in x.split(3)]
    assert_close(grn(x, groups=((2, 3 * 4), (1, 2 * 4))), torch.cat(expected).float())


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("shape", [(2, 9, 4), (300, 256, 4), (40_000, 2, 4)])
def test_fused_branch_computes_the_same_without_gradients(branch, shape, overwrite):
    x, residual = torch.randn(2, *shape).unbind()
    factor = torch.arange(shape[0]) % 2 * 1.5
    kept, kept_residual, expected = x.clone(), residual.clone(), plain_branch(branch, x, residual, factor)
    with torch.no_grad():
        assert_close(fused_branch(branch, x, residual, factor, overwrite=overwrite), expected)
    assert torch.equal(residual, kept_residual)
    assert overwrite or torch.equal(x, kept)


def test_frozen_branch_keeps_nothing_for_a_backward_pass(branch):
    x, saved = torch.randn(2, 9, 4), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor), lambda tensor: tensor):
        out = fused_branch(branch.requires_grad_(False), x, x, None)
        assert not out.requires_grad and not saved
        fused_branch(branch.requires_grad_(True), x, x, None)
        assert saved


def test_compiled_formula_is_the_fused_one(branch, monkeypatch):
    x, residual, factor = torch.randn(3, 9, 4), torch.randn(3, 9, 4), torch.tensor([0.0, 1.5, 1.5])
    expected = fused_branch(branch, x, residual, factor)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_close(fused_branch(branch, x, residual, factor), expected)
    short = torch.randn(3, 2, 4)  # fewer positions than channels
    assert_close(fused_branch(branch, short, short, factor), plain_branch(branch, short, short, factor))


@pytest.mark.parametrize(("images", "positions", "width"), [(7, 3136, 384), (8, 49, 3072), (5, 1, 8), (1, 10**6, 16)])
def test_chunks_are_of_nearly_one_size_and_cover_every_image_once(images, positions, width):
    up = torch.empty(width, width // 4)
    chunks = split_into_chunks(((images, positions), (2, positions - 1)), up)
    assert [i for chunk in chunks for i in range(chunk.views.start, chunk.views.stop)] == list(range(images + 2))
    stops = [0, *(chunk.rows.stop for chunk in chunks)]
    assert [chunk.rows.start for chunk in chunks] == stops[:-1]
    assert stops[-1] == images * positions + 2 * (positions - 1)
    sizes = [chunk.shape[0] for chunk in chunks if chunk.views.stop <= images]
    assert len(sizes) == 1 or max(sizes) * positions * width <= 2 * max(CHUNK_SIZE, up.numel())
    assert max(sizes) - min(sizes) < max(2, len(sizes))


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (2, 2)])
def test_downsampling_is_a_convolution_with_its_gradients(size):
    conv = nn.Conv2d(3, 5, 2, stride=2).double()
    x, results = torch.randn(2, 3, *size, dtype=torch.double, requires_grad=True), []
    for out in (patch_conv(conv, x), F.conv2d(x, conv.weight, conv.bias, stride=2)):
        upstream = torch.linspace(-1, 2, out.numel(), dtype=torch.double).view(out.shape)
        results.append((out, *torch.autograd.grad(out, [x, *conv.parameters()], upstream)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, tolerance=1e-12)


@pytest.mark.parametrize("act", ["gelu", "relu", "gelu_pytorch_tanh", "silu"])
def test_block_equals_the_stock_block(act):
    ours = awake(ConvNextV2Layer(small_config(hidden_act=act), 8))
    peer = stock.ConvNextV2Layer(transformers.ConvNextV2Config(hidden_act=act), 8)
    peer.load_state_dict(ours.state_dict())
    x = torch.randn(2, 8, 9, 7)
    assert_close(ours(x), peer(x))


def test_block_is_the_formula():
    block, x = awake(ConvNextV2Layer(small_config(), 8)), torch.randn(2, 8, 9, 7)
    y = F.conv2d(x, block.dwconv.weight, block.dwconv.bias, padding=3, groups=8).permute(0, 2, 3, 1)
    y = F.layer_norm(y, (8,), block.layernorm.weight, block.layernorm.bias, eps=1e-6)
    y = F.gelu(y @ block.pwconv1.weight.T + block.pwconv1.bias)
    y = grn_formula(y, block.grn.weight, block.grn.bias).float() @ block.pwconv2.weight.T + block.pwconv2.bias
    assert_close(block(x), x + y.permute(0, 3, 1, 2))


def test_block_without_grn_leaves_it_out():
    block = awake(ConvNextV2Layer(small_config(use_grn=False), 8))
    peer = awake(stock.ConvNextV2Layer(transformers.ConvNextV2Config(), 8))
    assert not any("grn" in name for name in block.state_dict())
    peer.load_state_dict(block.state_dict(), strict=False)
    nn.init.zeros_(peer.grn.weight), nn.init.zeros_(peer.grn.bias)
    x = torch.randn(2, 8, 9, 7)
    assert_close(block(x), peer(x))


@pytest.mark.parametrize("name", ["act", "grn", "pwconv2", "dwconv", "layernorm", "pwconv1"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hook_on_any_module_of_a_block_is_called(name, kind):
    block, x, calls = awake(ConvNextV2Layer(small_config(), 8)), torch.randn(2, 8, 9, 7, requires_grad=True), []
    expected = block(x)
    getattr(block.get_submodule(name), f"register_{kind}_hook")(lambda *_: calls.append(name))
    out = block(x)
    out.sum().backward()
    assert calls == [name]
    assert_close(out, expected)


@pytest.mark.parametrize("name", ["dwconv", "pwconv2"])
def test_hook_is_called_on_packed_cells_too(name):
    block, calls = awake(ConvNextV2Layer(small_config(), 8)), []
    cells = locate_cells(one_view(torch.tensor([[0, 3], [1, 2]])), (2, 2), side=8)
    x = torch.randn(4, 8, 8, 8)
    expected = block(x, cells)
    block.get_submodule(name).register_forward_hook(lambda *_: calls.append(name))
    assert_close(block(x, cells), expected)
    assert calls == [name]


def test_adapter_on_pwconv2_changes_the_output_and_learns():
    block = nn.Sequential(awake(ConvNextV2Layer(small_config(), 8)))
    x = torch.randn(2, 8, 9, 7)
    before = block(x)
    adapted = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["pwconv2"], r=2), block)
    assert difference(adapted(x), before) <= 1e-6  # B starts at zero
    lora = adapted[0].pwconv2.lora_B["default"].weight
    nn.init.ones_(lora)
    out = adapted(x)
    assert difference(out, before) > 1e-3
    out.square().mean().backward()
    assert lora.grad.abs().max() > 0


def test_block_whose_weights_are_offloaded_computes_the_same():
    block, x = awake(ConvNextV2Layer(small_config(), 8)), torch.randn(2, 8, 9, 7)
    expected = block(x)
    cpu_offload(block, execution_device="cpu")
    assert block.pwconv2.weight.device.type == "meta"
    assert_close(block(x), expected)


def test_parametrised_pwconv2_is_called():
    block, x = awake(ConvNextV2Layer(small_config(), 8)), torch.randn(2, 8, 9, 7)
    nn.utils.parametrize.register_parametrization(block.pwconv2, "weight", nn.Identity())
    block.pwconv2.forward = lambda y: torch.zeros(*y.shape[:-1], 8)
    assert torch.equal(block(x), x)


def test_drop_path_drops_whole_images_and_scales_the_rest():
    drop, x = ConvNextV2DropPath(0.25).train(), torch.randn(4000, 2, 1, 1)
    factors = (drop(x) / x).flatten(1)
    assert_close(factors[:, 0], factors[:, 1])
    assert set(factors[:, 0].mul(1000).round().tolist()) == {0, 1333}
    # The mean of 4000 draws of variance p / (1 - p) lies within 5 standard errors of 1.
    assert abs(factors[:, 0].mean() - 1) < 5 * (0.25 / 0.75 / 4000) ** 0.5


def test_drop_path_drops_all_cells_of_an_image_together():
    x = torch.ones(50 * 19, 2, 1, 1)
    factors = ConvNextV2DropPath(0.5).train()(x, groups=((50, 19),)).view(50, 19, 2)
    assert torch.equal(factors, factors[:, :1, :1].expand_as(factors))
    assert factors.unique().tolist() == [0, 2]


def test_drop_path_drops_views_of_unequal_sizes_as_a_whole():
    x = torch.ones(50 * 13 + 70 * 12, 2, 1, 1)
    factors = ConvNextV2DropPath(0.5).train()(x, groups=((50, 13), (70, 12)))
    for part, size in zip(factors.split([50 * 13, 70 * 12]), (13, 12), strict=True):
        views = part.view(-1, size * 2)
        assert torch.equal(views, views[:, :1].expand_as(views))
        assert views.unique().tolist() == [0, 2]


def test_drop_path_does_nothing_in_evaluation():
    x = torch.randn(4, 2, 1, 1)
    assert ConvNextV2DropPath(0.9).eval()(x) is x


def test_drop_path_rates_grow_linearly_with_depth():
    config = small_config(depths=[1, 2, 2, 1], drop_path_rate=0.5)
    model = transformers.ConvNextV2Model(transformers.ConvNextV2Config(**config.to_dict()))
    expected = [m.drop_prob for m in model.modules() if isinstance(m, stock.ConvNextV2DropPath)]
    actual = [m.drop_prob for m in ConvNextV2Model(config).modules() if isinstance(m, ConvNextV2DropPath)]
    assert actual == expected == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_stage_downsamples_after_a_norm():
    stage, x = awake(ConvNextV2Stage(small_config(), 1, [0.0])), torch.randn(2, 8, 6, 4)
    norm, conv = stage.downsampling_layer
    y = F.layer_norm(x.permute(0, 2, 3, 1), (8,), norm.weight, norm.bias, eps=1e-6).permute(0, 3, 1, 2)
    assert_close(stage(x), stage.layers[0](F.conv2d(y, conv.weight, conv.bias, stride=2)))


@pytest.mark.parametrize("shape", [(2, 4, 64, 64), (2, 1, 64, 64), (3, 64, 64)])
def test_images_of_another_number_of_channels_are_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"(of shape {shape}) must be (batch, `num_channels` (=3), height")):
        ConvNextV2Embeddings(small_config())(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 3, 31, 64), (2, 3, 64, 31)])
def test_images_smaller_than_a_cell_are_refused(shape):
    with pytest.raises(ValueError, match="must be at least 32 pixels high and 32 wide"):
        ConvNextV2Embeddings(small_config())(torch.zeros(shape))


def test_maps_are_channels_last_in_memory():
    x = ConvNextV2Embeddings(small_config())(torch.randn(2, 3, 64, 64))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert ConvNextV2Layer(small_config(), 8)(x).is_contiguous(memory_format=torch.channels_last)
