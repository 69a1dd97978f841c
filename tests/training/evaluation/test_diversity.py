"""Feature diversity against the paper's formula, channel by channel, and at its two ends."""

import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from hf_convnextv2 import ConvNextV2Model
from tests.small_models import awake, small_config
from training.evaluation.diversity import block_diversity, cosine_distances


def written_out(features):
    """The paper's formula, channel by channel, of `(B, H, W, C)`."""
    distances = []
    for image in features:
        channels = image.flatten(0, 1).T
        pairs = [(1 - cosine_similarity(a, b, dim=0)) / 2 for a in channels for b in channels]
        distances.append(torch.stack(pairs).mean())
    return torch.stack(distances).mean()


def test_the_distance_is_the_papers_formula():
    features = torch.randn(2, 3, 4, 6)
    assert_close(cosine_distances(features).mean(), written_out(features))


def test_channels_that_are_all_the_same_have_no_distance_and_random_ones_a_half():
    collapsed = torch.randn(2, 8, 8, 1) * torch.rand(50)  # of any sizes
    assert_close(cosine_distances(collapsed), torch.zeros(2), atol=1e-6, rtol=0)
    assert cosine_distances(torch.randn(2, 40, 40, 200)).mean() == pytest.approx(0.5, abs=0.01)


def test_orthogonal_channels_have_a_half_but_for_the_pairs_of_each_with_itself():
    orthogonal = torch.linalg.qr(torch.randn(3, 25, 16)).Q.view(3, 5, 5, 16)
    assert_close(cosine_distances(orthogonal), torch.full((3,), (1 - 1 / 16) / 2))


def test_opposite_channels_are_farther_apart_than_orthogonal_ones():
    channel = torch.randn(1, 4, 4, 1)
    assert cosine_distances(torch.cat([channel, -channel], dim=-1)).item() == pytest.approx(0.5)
    assert cosine_distances(torch.cat([channel, channel], dim=-1)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("use_grn", [True, False])
def test_every_block_is_measured_after_grn_or_after_gelu_without_it(use_grn):
    model, pixel_values = awake(ConvNextV2Model(small_config(use_grn=use_grn))), torch.randn(2, 3, 64, 64)
    blocks = [block for stage in model.encoder.stages for block in stage.layers]
    found = []
    modules = [block.grn if use_grn else block.act for block in blocks]
    handles = [module.register_forward_hook(lambda *seen: found.append(seen[2].detach())) for module in modules]
    model(pixel_values)
    for handle in handles:
        handle.remove()
    distances = torch.stack(block_diversity(model, blocks, pixel_values))
    assert distances.shape == (5, 2)
    assert_close(distances.mean(dim=1), torch.stack([written_out(features) for features in found]))
