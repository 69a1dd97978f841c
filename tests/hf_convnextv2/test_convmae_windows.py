"""ConvMAE in windows, with biases by relative position, against windows cut by hand and a double loop over tokens."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_convnextv2 import (
    ConvMAEBackbone,
    ConvMAEConfig,
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvMAEModel,
)
from hf_convnextv2.window_attention import RelativePositionBias
from tests import dense_convmae
from tests.small_models import assert_close, awake, difference, small_convmae_config

SETTINGS = {"depths": [1, 1, 5], "window_size": 2, "use_relative_position_bias": True}
TABLES = {f"encoder.stages.2.{name}_bias.relative_position_bias_table" for name in ("windowed", "global")}


def small_model(model_class=ConvMAEModel, **overrides):
    return awake(model_class(small_convmae_config(**{**SETTINGS, **overrides})))


def bias_by_hand(table: Tensor, rows: int, columns: int, height: int, width: int) -> Tensor:
    """`(heads, T, T)` of `height` x `width` tokens; `table` is that of a grid of `rows` x `columns`."""
    bias = torch.zeros(table.shape[1], height * width, height * width)
    for query in range(height * width):
        for key in range(height * width):
            down = query // width - key // width + rows - 1
            right = query % width - key % width + columns - 1
            bias[:, query, key] = table[down * (2 * columns - 1) + right]
    return bias


def last_map_by_hand(model: ConvMAEModel, pixel_values: Tensor, windowed: list[int], side: int) -> Tensor:
    """The last map; a window at the edge holds the tokens that are there, and no others."""
    stage = model.encoder.stages[2]
    embeddings, first, second = model.embeddings, *model.encoder.stages[:2]
    x = first(embeddings(pixel_values))
    x = second(x)
    x = dense_convmae.embed(stage.patch_embed.proj, stage.patch_embed.norm, x).permute(0, 2, 3, 1)
    height, width = x.shape[1:3]
    x = F.linear(x, stage.proj.weight, stage.proj.bias) + stage.position_embeddings(height, width)[0].view(
        height, width, -1
    )
    for index, layer in enumerate(stage.layers):
        if index not in windowed:
            bias = 0.0
            if stage.global_bias is not None:
                bias = bias_by_hand(stage.global_bias.relative_position_bias_table, height, width, height, width)
            x = dense_convmae.block(layer, x.flatten(1, 2), bias).view_as(x)
            continue
        y = torch.zeros_like(x)
        for top in range(0, height, side):
            for left in range(0, width, side):
                window = x[:, top : top + side, left : left + side]
                bias = 0.0
                if stage.windowed_bias is not None:
                    table = stage.windowed_bias.relative_position_bias_table
                    bias = bias_by_hand(table, side, side, *window.shape[1:3])
                seen = dense_convmae.block(layer, window.flatten(1, 2), bias)
                y[:, top : top + side, left : left + side] = seen.view_as(window)
        x = y
    return x.permute(0, 3, 1, 2)


# --- What is computed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("blocks", [[1, 2, 4], [0, 1, 2, 3, 4], [], [3]])
@pytest.mark.parametrize(("size", "side"), [((64, 64), 2), ((64, 96), 3), ((80, 112), 4), ((32, 48), 5), ((16, 16), 2)])
def test_blocks_attend_within_windows(size, side, blocks, with_bias):
    settings = {"image_size": size, "window_size": side, "window_block_indices": blocks}
    model = small_model(**settings, use_relative_position_bias=with_bias)
    pixel_values = torch.randn(2, 3, *size)
    actual = model(pixel_values).last_hidden_state
    assert_close(actual, last_map_by_hand(model, pixel_values, blocks, side))
    if blocks and max(size) > 16 * side:
        whole = last_map_by_hand(model, pixel_values, [], side) if not with_bias else None
        assert whole is None or difference(actual, whole) > 1e-3  # it is not what attention to all computes


def test_a_pixel_changes_its_window_alone_where_all_blocks_have_windows():
    model = small_model(window_size=2, window_block_indices=[0, 1, 2, 3, 4], depths=[1, 1, 5])
    twin = small_model(window_size=2, window_block_indices=[0, 1, 2, 3])
    x = torch.randn(1, 3, 64, 96)
    changed = x.clone()
    changed[..., 0:8, 0:8] += 1  # the convolutions reach into no other window
    for each, is_local in ((model, True), (twin, False)):
        change = (each(changed).last_hidden_state - each(x).last_hidden_state).abs().amax(1)[0]
        assert change[:2, :2].all()
        change[:2, :2] = 0
        assert bool(change.any()) is not is_local


def test_biases_start_at_zero_and_change_nothing():
    config = small_convmae_config(**SETTINGS)
    model, x = ConvMAEModel(config).eval(), torch.randn(1, 3, 48, 64)
    plain = ConvMAEModel(small_convmae_config(depths=[1, 1, 5], window_size=2)).eval()
    report = plain.load_state_dict(model.state_dict(), strict=False)
    assert set(report.unexpected_keys) == TABLES and not report.missing_keys
    assert_close(model(x).last_hidden_state, plain(x).last_hidden_state)
    awake(model)
    plain.load_state_dict(model.state_dict(), strict=False)
    assert difference(model(x).last_hidden_state, plain(x).last_hidden_state) > 1e-3


def test_the_bias_of_another_grid_is_interpolated_as_the_official_code_does():
    bias = RelativePositionBias((4, 4), num_heads=3)
    table = torch.randn(49, 3)
    bias.relative_position_bias_table.data.copy_(table)
    assert torch.equal(bias(4, 4), bias_by_hand(table, 4, 4, 4, 4))
    resized = F.interpolate(table.T.reshape(1, 3, 7, 7), size=(11, 5), mode="bicubic", align_corners=False)
    resized = resized[0].flatten(1).T
    assert_close(bias(6, 3), bias_by_hand(resized, 6, 3, 6, 3))
    bias.resize((6, 3))
    assert_close(bias.relative_position_bias_table, resized)
    assert_close(bias(6, 3), bias_by_hand(resized, 6, 3, 6, 3))


# --- Models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (80, 112)])
def test_every_parameter_gets_a_gradient_with_and_without_checkpointing(size):
    model = small_model(ConvMAEBackbone, image_size=64, window_size=3).train()
    twin = copy.deepcopy(model)
    twin.activation_checkpointing_enable()
    x = torch.randn(2, 3, *size)
    for each in (model, twin):
        each(x).feature_maps[0].square().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None and parameter.grad.any(), name
        assert_close(other.grad, parameter.grad, 1e-4)


def test_an_image_is_the_same_in_a_batch_as_alone():
    model, x = small_model(ConvMAEBackbone, window_size=3), torch.randn(3, 3, 64, 80)
    (together,) = model(x).feature_maps
    for index in range(3):
        assert_close(together[index], model(x[index : index + 1]).feature_maps[0][0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_windows_work_in_other_precisions(dtype):
    model, x = small_model(ConvMAEForImageClassification, window_size=3), torch.randn(2, 3, 64, 80)
    expected = model(x).logits
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x).logits
    converted = model.to(dtype)(x.to(dtype)).logits
    assert converted.dtype == dtype
    assert_close(converted.float(), expected, 5e-2 if dtype == torch.bfloat16 else 1e-5)
    assert_close(mixed.float(), expected, 5e-2)


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_training_with_stochastic_depth_stays_finite(drop_path_rate):
    model = small_model(ConvMAEForImageClassification, window_size=3, drop_path_rate=drop_path_rate).train()
    output = model(torch.randn(2, 3, 64, 80), labels=torch.tensor([0, 1]))
    output.loss.backward()
    assert output.loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("size", [(64, 64), (64, 80)])
def test_windows_compile_as_one_graph(size):
    model, x = small_model(ConvMAEBackbone, window_size=2), torch.randn(2, 3, *size)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
    assert_close(compiled(x).feature_maps[0], model(x).feature_maps[0])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("in_windows", [False, True], ids=["images", "windows"])
def test_an_exported_program_takes_other_numbers_and_heights_of_images(in_windows, strict):
    """Also the model's own size, 64 x 48, for which positions and biases are stored, and those that windows divide."""
    settings = {"window_size": 3, "window_block_indices": [1]} if in_windows else {"window_size": None}
    settings |= {"image_size": (64, 48), "depths": [1, 1, 2], "use_relative_position_bias": in_windows}
    model = small_model(ConvMAEForImageClassification, **settings)
    assert model.convmae.encoder.stages[2].is_windowed == [False, in_windows]
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    example = {"pixel_values": torch.randn(2, 3, 80, 48)}
    program = torch.export.export(model, (), example, dynamic_shapes={"pixel_values": sizes}, strict=strict).module()
    for batch, height in ((3, 64), (3, 32), (5, 71), (2, 96)):
        x = torch.randn(batch, 3, height, 48)
        assert_close(program(pixel_values=x).logits, model(x).logits)


# --- Settings and loading ---------------------------------------------------------------------------------------------


def test_the_official_detector_attends_to_the_whole_image_in_four_blocks():
    config = ConvMAEConfig(window_size=16)
    assert sorted(set(range(11)) - set(config.window_block_indices)) == [0, 3, 6, 10]
    assert ConvMAEConfig().window_block_indices is None
    assert ConvMAEConfig.from_size("tiny", window_size=4).window_block_indices == [2, 4]


def test_settings_follow_each_other():
    stored = ConvMAEConfig(window_size=16).to_dict()
    assert ConvMAEConfig.from_dict(stored).to_dict() == stored
    assert ConvMAEConfig.from_dict(stored, depths=[2, 2, 6]).window_block_indices == [2, 4]
    assert ConvMAEConfig.from_dict(stored, window_size=None).window_block_indices is None
    assert ConvMAEConfig.from_dict(stored, window_block_indices=[1]).window_block_indices == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_size": 0}, r"`window_size` \(=0\) must be at least 1, or None"),
        ({"window_block_indices": [1]}, r"`window_block_indices` \(=\[1\]\) must be left out without a `window_size`"),
        ({"window_size": 2, "window_block_indices": [1, 1]}, r"`window_block_indices` \(=\[1, 1\]\) must be numbers"),
        ({"window_size": 2, "window_block_indices": [2]}, r"each once: from 0 to 1"),
    ],
)
def test_settings_that_break_a_rule_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small_convmae_config(**settings)


def test_windows_that_no_block_has_are_told(caplog):
    assert small_convmae_config(window_size=5).window_block_indices == []
    assert "`window_size` (=5) has no effect in a last stage of 2 blocks" in caplog.text
    caplog.clear()
    small_convmae_config(window_size=5, window_block_indices=[1])
    assert not caplog.text


@pytest.mark.parametrize("settings", [{"window_size": 2}, {"use_relative_position_bias": True}])
def test_pre_training_refuses_what_visible_cells_have_not(settings):
    with pytest.raises(ValueError, match=r"must be left out in pre-training, which computes visible cells alone"):
        ConvMAEForPreTraining(small_convmae_config(**settings))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("model_class", [ConvMAEModel, ConvMAEBackbone, ConvMAEForImageClassification])
def test_a_pre_trained_encoder_loads_into_windows_with_one_line(model_class, tmp_path):
    pretrained = awake(ConvMAEForPreTraining(small_convmae_config(depths=[1, 1, 5])))
    pretrained.save_pretrained(tmp_path)
    settings = {"window_size": 2, "use_relative_position_bias": True}
    loaded, report = model_class.from_pretrained(tmp_path, **settings, image_size=96, output_loading_info=True)
    heads = ("hidden_states_norms", "convmae.layernorm", "classifier")
    assert all(name.startswith(heads) for name in report["missing_keys"]) and not report["mismatched_keys"]
    encoder = getattr(loaded, "convmae", loaded).encoder
    stage = encoder.stages[2]
    assert stage.global_bias.relative_position_bias_table.shape == (121, 2)  # of 6 x 6 tokens
    assert not stage.global_bias.relative_position_bias_table.any()
    assert not stage.windowed_bias.relative_position_bias_table.any()
    weight = pretrained.convmae.encoder.stages[2].layers[4].attn.qkv.weight
    assert torch.equal(stage.layers[4].attn.qkv.weight, weight)


def test_trained_biases_survive_saving_and_adapt_to_another_size_of_images(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    loaded, report = ConvMAEModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    x = torch.randn(1, 3, 96, 80)
    assert_close(loaded(x).last_hidden_state, model(x).last_hidden_state)
    other = ConvMAEModel.from_pretrained(tmp_path, image_size=(96, 80))
    assert other.encoder.stages[2].global_bias.relative_position_bias_table.shape == (11 * 9, 2)
    assert_close(other(x).last_hidden_state, model(x).last_hidden_state)
    assert_close(other.encoder.stages[2].windowed_bias(2, 2), model.encoder.stages[2].windowed_bias(2, 2))


def test_trained_biases_of_other_windows_are_refused(tmp_path):
    small_model().save_pretrained(tmp_path)
    with pytest.raises((RuntimeError, ValueError), match="ignore_mismatched_sizes"):
        ConvMAEModel.from_pretrained(tmp_path, window_size=3)
