"""Blocks by their names, their outputs and activation maps, against Transformers' own model."""

import numpy as np
import pytest
import torch
import transformers

from hf_convnextv2 import ConvMAEModel, ConvNextV2Model
from tests.photographs import message_of
from tests.small_models import assert_close, awake, small_config, small_convmae_config
from training.analysis.activations import maps_of_blocks, spread
from training.analysis.blocks import all_blocks, chosen_blocks, last_of_stages, outputs_seen
from training.analysis.diversity import OUTPUT, WIDE, distances_in
from training.analysis.drawing import in_a_square
from training.analysis.layers import pooled_outputs
from training.evaluation.diversity import cosine_distances
from training.prediction.pooling import pools_of
from training.settings.pooling import PoolingSettings


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A model with three blocks in its third stage, and the same one of Transformers."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    model = awake(ConvNextV2Model(small_config(depths=[1, 1, 3, 1])))
    model.save_pretrained(folder)
    return model, transformers.ConvNextV2Model.from_pretrained(folder).eval()


def test_names_count_stages_and_blocks_from_one(both):
    blocks = all_blocks(both[0])
    assert [block.name for block in blocks] == ["1.1", "2.1", "3.1", "3.2", "3.3", "4.1"]
    assert blocks[3].module is both[0].encoder.stages[2].layers[1]
    assert [block.name for block in last_of_stages(blocks)] == ["1.1", "2.1", "3.3", "4.1"]


def test_chosen_blocks_come_in_the_order_of_the_encoder_and_unknown_ones_are_refused_with_a_list(both):
    chosen = chosen_blocks(both[0], ["3.2", "1.1"], [])
    assert [block.name for block in chosen] == ["1.1", "3.2"]
    assert len(chosen_blocks(both[0], ["all"], [])) == 6 and chosen_blocks(both[0], None, chosen) == chosen
    message = message_of(lambda: chosen_blocks(both[0], ["3.4"], []))
    assert "`blocks` (=3.4) must be all, or some of" in message
    assert message.endswith("of the model: 1.1, 2.1, 3.1 to 3.3, 4.1.")


def test_outputs_are_those_of_transformers(both):
    model, stock = both
    pixel_values, found = torch.randn(2, 3, 64, 96), []
    last = last_of_stages(all_blocks(model))
    with outputs_seen(model, last, pixel_values, found.append):
        model(pixel_values)
    with torch.no_grad():
        maps = stock(pixel_values, output_hidden_states=True).hidden_states[1:]
    for features, expected in zip(found, maps, strict=True):
        assert_close(features, expected.flatten(2).transpose(1, 2))


def test_outputs_of_a_transformer_are_divided_by_images():
    torch.manual_seed(0)
    model, pixel_values, found = awake(ConvMAEModel(small_convmae_config())), torch.randn(2, 3, 64, 96), []
    with outputs_seen(model, last_of_stages(all_blocks(model)), pixel_values, found.append):
        maps = model(pixel_values, output_hidden_states=True).hidden_states[1:]
    for features, expected in zip(found, maps, strict=True):
        assert_close(features, expected.flatten(2).transpose(1, 2))


def test_activation_maps_are_those_of_transformers_after_grn(both):
    model, stock = both
    photograph, found = torch.randn(1, 3, 64, 96), []
    layers = [stock.encoder.stages[2].layers[1], stock.encoder.stages[3].layers[0]]
    handles = [layer.grn.register_forward_hook(lambda *seen: found.append(seen[2])) for layer in layers]
    with torch.no_grad():
        stock(photograph)
    for handle in handles:
        handle.remove()
    maps = maps_of_blocks(model, chosen_blocks(model, ["3.2", "4.1"], []), photograph)
    assert [each.shape for each in maps] == [(96, 4, 6), (128, 2, 3)]
    for actual, expected in zip(maps, found, strict=True):
        assert_close(actual, expected[0].permute(2, 0, 1))


def test_a_position_of_a_transformers_map_is_its_token():
    torch.manual_seed(0)
    model, photograph, rows = awake(ConvMAEModel(small_convmae_config())), torch.randn(1, 3, 64, 96), []
    block = chosen_blocks(model, ["3.2"], [])
    handle = block[0].module.mlp.act.register_forward_hook(lambda *seen: rows.append(seen[2]))
    (maps,) = maps_of_blocks(model, block, photograph)
    handle.remove()
    assert maps.shape == (64, 4, 6) and torch.equal(maps[:, 2, 5], rows[0][0, 2 * 6 + 5])


def uncut(windows, side, height, width):
    """The maps `(B, height, width, C)` of which these are the windows, `(B * windows, side * side, C)`."""
    down, across = -(-height // side), -(-width // side)
    cut = windows.view(-1, down, across, side, side, windows.shape[-1])
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 80), (96, 48), (32, 32)])  # 3 tokens a side fit the second alone
def test_blocks_in_windows_are_measured_on_the_tokens_of_images_alone(size):
    torch.manual_seed(0)
    model = awake(ConvMAEModel(small_convmae_config(window_size=3, window_block_indices=[0, 1])))
    pixel_values, blocks, rows, found = torch.randn(2, 3, *size), all_blocks(model)[-1:], [], []
    handle = blocks[0].module.mlp.act.register_forward_hook(lambda *seen: rows.append(seen[2]))
    last = model(pixel_values).last_hidden_state
    handle.remove()
    wide, distances = uncut(rows[0], 3, *last.shape[2:]), distances_in(model, pixel_values)
    assert_close(distances[WIDE][-1], cosine_distances(wide))
    assert_close(distances[OUTPUT][-1], cosine_distances(last.permute(0, 2, 3, 1)))
    with outputs_seen(model, blocks, pixel_values, found.append):
        model(pixel_values)
    assert torch.equal(found[0], last.flatten(2).mT)
    (maps,) = maps_of_blocks(model, blocks, pixel_values[:1])
    assert_close(maps, wide[0].permute(2, 0, 1))


@pytest.mark.parametrize("kind", ["convnextv2", "v1", "convmae"])
def test_diversity_of_every_block_is_that_of_its_maps_and_of_its_output(kind):
    torch.manual_seed(0)
    model = (
        ConvMAEModel(small_convmae_config())
        if kind == "convmae"
        else ConvNextV2Model(small_config(use_grn=kind != "v1"))
    )
    pixel_values = torch.randn(2, 3, 64, 64)
    found = distances_in(awake(model), pixel_values)
    blocks = all_blocks(model)
    assert found[WIDE].shape == found[OUTPUT].shape == (len(blocks), 2)
    for image in range(2):
        maps = maps_of_blocks(model, blocks, pixel_values[image : image + 1])
        expected = torch.cat([cosine_distances(each.permute(1, 2, 0)[None]) for each in maps])
        assert_close(found[WIDE][:, image], expected)
    last = model(pixel_values).last_hidden_state.permute(0, 2, 3, 1)
    assert_close(found[OUTPUT][-1], cosine_distances(last))
    assert found[WIDE].min() > 0 and found[WIDE].max() < 1


def test_a_collapsed_block_has_no_diversity_while_the_others_keep_theirs():
    torch.manual_seed(0)
    model, pixel_values = awake(ConvNextV2Model(small_config())), torch.randn(2, 3, 64, 64)
    before = distances_in(model, pixel_values)[WIDE]
    block = model.encoder.stages[3].layers[0]
    with torch.no_grad():  # all channels of the MLP become the same one
        block.pwconv1.weight.copy_(block.pwconv1.weight[:1].expand_as(block.pwconv1.weight))
        block.pwconv1.bias.fill_(0.1)
        block.grn.weight.zero_()
        block.grn.bias.zero_()
    after = distances_in(model, pixel_values)[WIDE]
    assert after[-1].abs().max() < 1e-6 < before[-1].min()
    assert torch.equal(after[:-1], before[:-1])


def test_pooled_outputs_are_those_of_transformers_maps(both):
    model, stock = both
    pixel_values = torch.randn(3, 3, 64, 64)
    blocks, pools = chosen_blocks(model, ["2.1", "4.1"], []), pools_of(PoolingSettings(pooling=["mean", "max"]))
    with torch.no_grad():
        found = pooled_outputs(model, pixel_values, blocks, pools)
        maps = stock(pixel_values, output_hidden_states=True).hidden_states
    expected = [pool for stage in (2, 4) for pool in (maps[stage].mean((2, 3)), maps[stage].flatten(2).max(2).values)]
    assert_close(found, torch.cat(expected, dim=1))


def test_channels_are_spread_evenly_and_each_is_drawn_in_its_own_square():
    assert spread(5, 64) == [0, 1, 2, 3, 4] and spread(128, 4) == [0, 32, 64, 96]
    maps = np.arange(7, dtype=float)[:, None, None] * np.ones((7, 10, 20))
    picture = in_a_square(maps)
    assert picture.shape == (3 * 11 - 1, 3 * 21 - 1)
    for channel in range(7):
        row, column = divmod(channel, 3)
        assert (picture[row * 11 : row * 11 + 10, column * 21 : column * 21 + 20] == channel).all()
    assert np.isnan(picture[10]).all() and np.isnan(picture[:, 20]).all() and np.isnan(picture[22:, 21:]).all()
