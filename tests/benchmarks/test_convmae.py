"""The contenders of the benchmark of ConvMAE compute the same maps."""

import pytest
import torch

from benchmarks.shared.convmae import official, separate
from hf_convnextv2 import ConvMAEForPreTraining
from tests.small_models import assert_close, awake, difference, small_convmae_config

GRID = (6, 10)


@pytest.fixture(params=[1, 4], ids=lambda num_sets: f"{num_sets} sets")
def case(request):
    model = awake(ConvMAEForPreTraining(small_convmae_config(num_visible_sets=request.param)))
    pixel_values = torch.randn(2, 3, 96, 160)
    return model, pixel_values, model._draw_mask(pixel_values, torch.rand(2, 60), None)


def test_the_official_arrangement_gives_the_maps_of_the_packed_one(case):
    model, pixel_values, mask = case
    expected = model.forward_encoder(pixel_values, mask.visible, GRID).maps[-1]
    assert_close(official(model, pixel_values, mask.masked, mask.visible, GRID), expected)
    without_masks = official(model, pixel_values, torch.zeros_like(mask.masked), mask.visible, GRID)
    assert difference(without_masks, expected) > 0.01


def test_a_pass_for_each_set_gives_its_part_of_the_maps(case):
    model, pixel_values, mask = case
    expected = model.forward_encoder(pixel_values, mask.visible, GRID).maps[-1]
    for index, visible in enumerate(separate(mask.visible, 2, model.config.num_visible_sets)):
        actual = model.forward_encoder(pixel_values, visible, GRID).maps[-1]
        assert_close(actual, expected[mask.visible.views // 2 == index])
