"""UPerNet on our backbone: the logits, losses and gradients of Transformers' class with the same weights."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import ConvNextV2Config as StockConfig
from transformers import UperNetConfig
from transformers import UperNetForSemanticSegmentation as StockUperNet

import hf_convnextv2
from hf_convnextv2.upernet import UperNetForSemanticSegmentation, convolve_enlarged

SIZES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def config(**changes):
    backbone = StockConfig(**SIZES, out_features=STAGES)
    small = {"hidden_size": 16, "auxiliary_channels": 8, "num_labels": 5}
    return UperNetConfig(backbone_config=backbone, **{**small, **changes})


def pair(**changes):
    """Our model and Transformers', with the same weights, in training mode."""
    torch.manual_seed(0)
    stock = StockUperNet(config(**changes))
    with torch.no_grad():
        for name, weight in stock.named_parameters():
            if "grn" in name or "norm" in name:
                weight += 0.3 * torch.randn_like(weight)
    ours = UperNetForSemanticSegmentation(config(**changes))
    ours.load_state_dict(copy.deepcopy(stock.state_dict()))
    return ours.train(), stock.train()


def close(actual, expected, share=1e-5):
    assert (actual - expected).abs().max() <= share * expected.abs().max()


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (77, 130)])
@pytest.mark.parametrize("is_training", [True, False])
def test_logits_are_those_of_transformers(size, is_training):
    ours, stock = pair()
    for model in (ours, stock):
        model.train(is_training)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        close(ours(x).logits, stock(x).logits)


@pytest.mark.parametrize("with_auxiliary", [True, False])
def test_loss_and_gradients_are_those_of_transformers(with_auxiliary):
    ours, stock = pair(use_auxiliary_head=with_auxiliary)
    x, labels = torch.randn(2, 3, 64, 96), torch.randint(5, (2, 64, 96))
    labels[:, :7] = 255
    losses = [model(x, labels=labels).loss for model in (ours, stock)]
    close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    expected = dict(stock.named_parameters())
    for name, weight in ours.named_parameters():
        largest = max(expected[name].grad.abs().max(), torch.tensor(1e-4))  # some are zero but for rounding
        assert (weight.grad - expected[name].grad).abs().max() <= 1e-4 * largest, name


@pytest.mark.parametrize(
    ("small", "large"), [((4, 6), (8, 12)), ((3, 5), (12, 19)), ((1, 1), (7, 5)), ((5, 5), (5, 5))]
)
def test_convolution_of_an_enlarged_map_equals_enlarging_first(small, large):
    x, weight = torch.randn(2, 6, *small, dtype=torch.float64), torch.randn(4, 6, 3, 3, dtype=torch.float64)
    enlarged = F.interpolate(x, size=large, mode="bilinear", align_corners=False)
    expected = F.conv2d(enlarged, weight, padding=1)
    torch.testing.assert_close(convolve_enlarged(x, weight, large), expected, rtol=1e-5, atol=1e-5)


def test_a_saved_model_is_transformers_own(tmp_path):
    ours, _ = pair()
    ours.eval().save_pretrained(tmp_path)
    stock = StockUperNet.from_pretrained(tmp_path).eval()
    assert type(stock.backbone).__module__.startswith("transformers.")
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert type(again.backbone) is hf_convnextv2.ConvNextV2Backbone
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = ours(x).logits
        close(again(x).logits, expected, 1e-6)
        close(stock(x).logits, expected)


def test_creating_a_model_leaves_the_auto_classes_as_they_were():
    pair()
    assert type(StockUperNet(config()).backbone).__module__.startswith("transformers.")


def test_hidden_states_come_when_asked():
    ours, stock = pair()
    x = torch.randn(2, 3, 64, 64)
    assert ours(x).hidden_states is None
    maps = (model(x, output_hidden_states=True).hidden_states for model in (ours, stock))
    for actual, expected in zip(*maps, strict=True):
        close(actual, expected)
