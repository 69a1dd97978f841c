"""What stands in place of the model's own modules, against formulas written out, and that its weights load again."""

import pytest
import torch
from torch import nn

from experiments.ablation.dense_encoder import DenseEncoderForPreTraining
from experiments.ablation.normalisations import BatchNorm, LayerNorm, LocalResponseNorm
from experiments.ablation.replacements import REPLACEMENTS, put_in_place_of_grn, replaced
from hf_convnextv2 import ConvNextV2ForPreTraining
from hf_convnextv2.layers import ConvNextV2Layer
from tests import masked_dense
from tests.small_models import assert_close, awake, difference, small_config, small_fcmae_config
from training.models.families import BY_MODEL_TYPE, BY_NAME
from training.models.loading import FINETUNING, load_pretrained
from training.run.monitor import feature_diversity
from training.settings.families import CONVNEXTV2

NORMALISATIONS = {"lrn": LocalResponseNorm, "batch_norm": BatchNorm, "layer_norm": LayerNorm}


def test_lrn_is_alexnets_formula():
    x = 30 * torch.randn(2, 3, 2, 7)
    expected = torch.empty_like(x)
    for channel in range(7):
        near = x[..., max(0, channel - 2) : channel + 3]
        expected[..., channel] = x[..., channel] / (2 + 1e-4 * near.square().sum(-1)) ** 0.75
    assert_close(LocalResponseNorm(7)(x), expected)
    assert difference(x * 2**-0.75, expected) > 0.01  # the energy counts


def test_batch_norm_is_over_all_positions_of_the_batch_and_keeps_running_statistics():
    norm, x = awake(BatchNorm(6)), torch.randn(4, 3, 2, 6) + torch.arange(6)
    mean, variance = x.mean(dim=(0, 1, 2)), x.var(dim=(0, 1, 2), correction=0)
    expected = (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias
    assert_close(norm.train()(x), expected)
    assert_close(norm.running_mean, 0.1 * mean)
    assert difference(norm.eval()(x), expected) > 0.01


def test_layer_norm_is_over_the_channels_of_a_position():
    norm, x = awake(LayerNorm(6)), torch.randn(4, 3, 2, 6)
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    assert_close(norm(x), (x - mean) / (variance + 1e-6).sqrt() * norm.weight + norm.bias)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_block_calls_what_stands_in_place_of_grn_after_gelu_and_before_the_second_linear_layer(name):
    block = ConvNextV2Layer(small_config(), 8)
    put_in_place_of_grn(block, NORMALISATIONS[name])
    block, x = awake(block).train(), torch.randn(2, 8, 5, 5)
    y = block.layernorm(block.dwconv(x).permute(0, 2, 3, 1))
    y = block.pwconv2(block.grn(nn.functional.gelu(block.pwconv1(y))))
    assert isinstance(block.grn, NORMALISATIONS[name])
    assert_close(block(x), x + y.permute(0, 3, 1, 2))


def test_batch_norm_of_a_pre_training_is_over_visible_cells_alone():
    with replaced("batch_norm"):
        model = awake(BY_NAME[CONVNEXTV2].pretraining(small_fcmae_config())).train()
    pixel_values, masked = torch.randn(2, 3, 64, 64), torch.tensor([[True, False, True, True], [False] + [True] * 3])
    block = model.convnextv2.encoder.stages[0].layers[0]
    model(pixel_values, bool_masked_pos=masked)
    found = block.grn.running_mean.clone()
    block.grn.reset_running_stats()
    shown = pixel_values.clone()
    shown[0, :, :32, :32] = shown[0, :, 32:] = shown[1, :, 32:] = shown[1, :, :32, 32:] = 7  # the hidden cells
    model(shown, bool_masked_pos=masked)
    assert_close(block.grn.running_mean, found)
    block.grn.reset_running_stats()
    model(shown, bool_masked_pos=~masked.flip(0))
    assert difference(block.grn.running_mean, found) > 0.01


def test_grn_that_is_not_there_is_not_replaced():
    with pytest.raises(ValueError, match="`use_grn` \\(=False\\)"):
        put_in_place_of_grn(ConvNextV2Layer(small_config(use_grn=False), 8), LayerNorm)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_pre_trained_weights_load_again_into_a_classifier_and_an_encoder(name, tmp_path):
    with replaced(name):
        model = awake(BY_NAME[CONVNEXTV2].pretraining(small_fcmae_config())).train()
        model(torch.randn(2, 3, 64, 64))  # moves BatchNorm's statistics
        model.eval().save_pretrained(tmp_path)
        classifier = load_pretrained(BY_NAME[CONVNEXTV2].classifier, str(tmp_path), FINETUNING, num_labels=2).eval()
        diversity = feature_diversity(model, torch.randn(1, 3, 64, 64))
    pixel_values = torch.randn(1, 3, 64, 64)
    maps = [each.encoder(each.embeddings(pixel_values))[-1] for each in (model.convnextv2, classifier.convnextv2)]
    assert torch.equal(*maps) and len(diversity) == 4
    norms = [block.grn for block in classifier.modules() if isinstance(block, ConvNextV2Layer)]
    assert len(norms) == 5 and all(isinstance(norm, NORMALISATIONS[name]) for norm in norms)


def test_after_the_block_models_are_ours_again():
    before = dict(BY_NAME), dict(BY_MODEL_TYPE)
    for name in REPLACEMENTS:
        with pytest.raises(KeyError), replaced(name):
            assert BY_NAME[CONVNEXTV2] is BY_MODEL_TYPE["convnextv2_fcmae"] is not before[0][CONVNEXTV2]
            raise KeyError
        assert before == (BY_NAME, BY_MODEL_TYPE)


def test_the_dense_encoder_computes_on_zeros_and_differs_from_the_sparse_one():
    sparse = awake(ConvNextV2ForPreTraining(small_fcmae_config()))
    dense = DenseEncoderForPreTraining(sparse.config).eval()
    dense.load_state_dict(sparse.state_dict())
    pixel_values, masked = torch.randn(2, 3, 64, 96), torch.rand(2, 6).argsort(dim=1) > 1
    found = dense(pixel_values, bool_masked_pos=masked, output_hidden_states=True)

    visible = (~masked).view(2, 1, 2, 3).repeat_interleave(32, 2).repeat_interleave(32, 3)
    maps = masked_dense.encode(dense, pixel_values * visible, torch.zeros_like(masked))
    logits = masked_dense.decode(dense, maps[-1], masked)
    for map_, expected in zip(found.hidden_states, maps, strict=True):
        assert_close(map_, expected)
    assert_close(found.logits, logits)
    assert_close(found.loss, masked_dense.loss(dense, pixel_values, logits, masked))
    assert difference(sparse(pixel_values, bool_masked_pos=masked).logits, logits) > 0.01


def test_the_dense_encoder_does_not_see_hidden_pixels():
    model = awake(DenseEncoderForPreTraining(small_fcmae_config()))
    pixel_values, masked = torch.randn(1, 3, 64, 64), torch.tensor([[True, False, True, True]])
    changed = pixel_values.clone()
    changed[:, :, 32:] += 1
    logits = [model(each, bool_masked_pos=masked).logits for each in (pixel_values, changed)]
    assert torch.equal(*logits)
    changed[:, :, :32, 32:] += 1
    assert difference(model(changed, bool_masked_pos=masked).logits, logits[0]) > 0.01
