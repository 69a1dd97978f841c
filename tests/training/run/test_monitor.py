"""What a run shows of itself: the diversity of features by the paper's formula, and what a look leaves unchanged."""

import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from hf_convnextv2 import ConvMAEForPreTraining, ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining
from tests.photographs import forget_accelerate
from tests.small_models import awake, small_convmae_config
from tests.training.evaluation.test_diversity import written_out
from training.run.monitor import evaluating, feature_diversity

SIZES = {"hidden_sizes": [8, 16], "depths": [1, 2], "decoder_hidden_size": 16, "image_size": 32}


def test_diversity_is_that_of_the_last_block_of_each_stage_and_leaves_the_model_as_it_was():
    model = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**SIZES)).train()
    pixel_values = torch.randn(2, 3, 32, 32)
    blocks = [stage.layers[-1] for stage in model.convnextv2.encoder.stages]
    found = []
    handles = [block.grn.register_forward_hook(lambda *seen: found.append(seen[2].detach())) for block in blocks]
    model.convnextv2(pixel_values)
    for handle in handles:
        handle.remove()
    with evaluating(model):
        diversity = feature_diversity(model, pixel_values)
    assert_close(torch.tensor(diversity), torch.stack([written_out(features) for features in found]))
    assert model.training and not any(block.grn._forward_hooks for block in blocks)


def test_diversity_of_a_convmae_is_that_of_the_activations_of_its_mlps():
    model, pixel_values = awake(ConvMAEForPreTraining(small_convmae_config())), torch.randn(2, 3, 64, 96)
    found = []
    blocks = [stage.layers[-1] for stage in model.convmae.encoder.stages]
    handles = [block.mlp.act.register_forward_hook(lambda *seen: found.append(seen[2].detach())) for block in blocks]
    model.convmae(pixel_values)
    for handle in handles:
        handle.remove()
    found[-1] = found[-1].view(2, 4, 6, -1)  # the transformer's tokens are rows of both images
    assert [features.shape[1:3] for features in found] == [(16, 24), (8, 12), (4, 6)]
    assert_close(torch.tensor(feature_diversity(model, pixel_values)), torch.stack([written_out(f) for f in found]))


@pytest.mark.parametrize("training", [True, False])
def test_a_look_leaves_a_model_in_the_mode_that_it_was_in(training):
    model = torch.nn.Dropout().train(training)
    with evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
    assert model.training is training and torch.is_grad_enabled()


def test_a_model_without_grn_is_measured_after_gelu():
    model = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**SIZES, use_grn=False))
    assert len(feature_diversity(model, torch.randn(1, 3, 32, 32))) == 2


def test_looking_draws_nothing_from_the_random_state():
    forget_accelerate()
    model = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**SIZES, drop_path_rate=0.5)).train()
    state = torch.get_rng_state()
    with evaluating(model):
        feature_diversity(model, torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.get_rng_state())
    assert Accelerator(cpu=True).trackers == []
    forget_accelerate()
