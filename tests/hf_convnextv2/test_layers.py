"""Layers against their formulas written out and against the stock ones, with hooks, adapters and offloading."""

import re

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from accelerate import cpu_offload
from torch import nn
from transformers.models.convnextv2 import modeling_convnextv2 as stock

from hf_convnextv2 import ConvMAEForPreTraining, ConvMAEModel, ConvNextV2ForPreTraining, ConvNextV2Model
from hf_convnextv2.downsampling import patch_conv
from hf_convnextv2.grn import ConvNextV2GRN
from hf_convnextv2.layers import (
    ConvNextV2DropPath,
    ConvNextV2Embeddings,
    ConvNextV2Layer,
    ConvNextV2LayerNorm,
    ConvNextV2Stage,
)
from hf_convnextv2.packing import locate_cells, one_view
from tests.hf_convnextv2.grn_formula import grn_formula
from tests.small_models import (
    assert_close,
    awake,
    difference,
    small_config,
    small_convmae_config,
    small_fcmae_config,
)


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


def test_grn_of_views_of_unequal_sizes_is_that_of_each():
    grn, x = awake(ConvNextV2GRN(12), std=0.5), torch.randn(3 * 2 + 2, 2, 2, 12)
    expected = [grn_formula(part.reshape(1, -1, 1, 12), grn.weight, grn.bias).view(part.shape) for part in x.split(3)]
    assert_close(grn(x, groups=((2, 3 * 4), (1, 2 * 4))), torch.cat(expected).float())


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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_pixels_that_are_no_floats_are_refused(dtype):
    pixel_values = torch.randint(0, 2, (2, 3, 64, 64)).to(dtype)
    for model in (
        ConvNextV2Model(small_config()),
        ConvNextV2ForPreTraining(small_fcmae_config()),
        ConvMAEModel(small_convmae_config()),
        ConvMAEForPreTraining(small_convmae_config()),
    ):
        with pytest.raises(ValueError, match=rf"`pixel_values` \(of dtype {dtype}\) must be floats"):
            model(pixel_values)
        model(pixel_values.float())  # the control


@pytest.mark.parametrize("shape", [(2, 3, 31, 64), (2, 3, 64, 31)])
def test_images_smaller_than_a_cell_are_refused(shape):
    with pytest.raises(ValueError, match="must be at least 32 pixels high and 32 wide"):
        ConvNextV2Embeddings(small_config())(torch.zeros(shape))


def test_maps_are_channels_last_in_memory():
    x = ConvNextV2Embeddings(small_config())(torch.randn(2, 3, 64, 64))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert ConvNextV2Layer(small_config(), 8)(x).is_contiguous(memory_format=torch.channels_last)
