"""ConvMAE on visible cells against dense passes of each visible set, and what must fail to show that it can."""

import copy

import pytest
import torch
import torch.nn.functional as F

from hf_convnextv2 import ConvMAEForPreTraining, packing
from tests import dense_convmae
from tests.small_models import assert_close, awake, difference, small_convmae_config

# (height, width), channels, visible sets, mask ratio, side of a cell in pixels
CASES = [
    ((224, 224), 3, 1, 0.75, 16),
    ((224, 224), 3, 4, None, 16),
    ((384, 384), 3, 1, 0.9, 32),
    ((384, 384), 3, 2, 0.5, 32),
    ((384, 384), 3, 4, 0.75, 32),
    ((96, 160), 1, 1, 0.5, 16),
    ((96, 160), 8, 2, None, 32),
    ((96, 160), 3, 3, None, 16),  # sets of 20 tokens each
    ((64, 64), 8, 1, 0.75, 16),
    ((64, 64), 1, 2, None, 16),
    ((80, 80), 3, 4, None, 16),  # sets of 7 and of 6
    ((64, 64), 3, 1, 0.9, 16),
]


def small_model(**overrides):
    return awake(ConvMAEForPreTraining(small_convmae_config(**overrides)))


def masks_of(output, num_sets):
    """The mask `(B, T)` of each set."""
    return output.mask.bool().unflatten(0, (num_sets, -1))


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("size", "channels", "num_sets", "mask_ratio", "cell"), CASES)
def test_visible_cells_alone_give_the_maps_loss_and_gradients_of_dense_passes(
    size, channels, num_sets, mask_ratio, cell
):
    model = small_model(num_channels=channels, num_visible_sets=num_sets, mask_ratio=mask_ratio, cell_size=cell)
    oracle, x = copy.deepcopy(model), torch.randn(2, channels, *size)
    output = model(x, output_hidden_states=True)
    masks = masks_of(output, num_sets)
    maps = [dense_convmae.encode(oracle, x, masked) for masked in masks]
    logits = [dense_convmae.decode(oracle, views, masked) for views, masked in zip(maps, masks, strict=True)]
    for ours, views in zip(output.hidden_states, zip(*maps, strict=True), strict=True):
        assert_close(ours, sum(views))  # each is zero where another set lies
    assert_close(output.logits, torch.cat(logits))
    losses = [dense_convmae.loss(oracle, x, *pair) * pair[1].sum() for pair in zip(logits, masks, strict=True)]
    expected = sum(losses) / masks.sum()
    assert_close(output.loss, expected)
    output.loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(model.named_parameters(), oracle.parameters(), strict=True):
        assert relative_error(ours.grad, theirs.grad) <= 1e-5, name


def test_other_strides_and_depths_have_the_maps_of_dense_passes():
    model = small_model(patch_sizes=[2, 4, 1], depths=[2, 1, 1], fusion_stages=["stage1"])
    x = torch.randn(2, 3, 40, 24)
    output = model(x, output_hidden_states=True)
    maps = dense_convmae.encode(model, x, output.mask.bool())
    for ours, theirs in zip(output.hidden_states, maps, strict=True):
        assert_close(ours, theirs)
    assert_close(output.logits, dense_convmae.decode(model, maps, output.mask.bool()))


@pytest.mark.parametrize("num_sets", [1, 4])
def test_maps_that_are_asked_for_change_no_gradient(num_sets):
    model, x, noise = small_model(num_visible_sets=num_sets), torch.randn(2, 3, 96, 64), torch.rand(2, 24)
    parameters = list(model.parameters())
    results = [
        torch.autograd.grad(model(x, noise=noise, output_hidden_states=maps).loss, parameters) for maps in (False, True)
    ]
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("num_sets", [1, 4])
def test_both_forms_of_the_convolution_give_the_same(num_sets, monkeypatch):
    model, x, noise = small_model(num_visible_sets=num_sets), torch.randn(2, 3, 96, 64), torch.rand(2, 24)
    logits = []
    for least_side in (1, 99):
        monkeypatch.setattr(packing, "MIN_HALO_SIDE", least_side)
        logits.append(model(x, noise=noise).logits)
    assert_close(*logits)


def test_the_comparison_fails_for_a_convolution_without_the_mask():
    model, x = small_model(), torch.randn(2, 3, 96, 160)
    output = model(x, output_hidden_states=True)
    leaky = dense_convmae.encode(model, x, output.mask.bool(), with_masks=False)
    assert difference(output.hidden_states[-1], leaky[-1]) > 1e-3


# --- Nothing leaks ----------------------------------------------------------------------------------------------------


def change_of_visible(encode, x, masked, where):
    """Largest change of any map at visible tokens when the pixels in `where (B, 1, H, W)` are drawn anew."""
    before, after = encode(x), encode(torch.where(where.bool(), torch.randn_like(x) * 5, x))
    visible = (~masked).view(len(x), 1, x.shape[2] // 16, x.shape[3] // 16).float()
    return max(
        ((new - old).abs() * F.interpolate(visible, size=new.shape[2:])).max().item()
        for new, old in zip(after, before, strict=True)
    )


@pytest.mark.parametrize("num_sets", [1, 4])
@pytest.mark.parametrize("training", [False, True])
def test_hidden_pixels_change_nothing_that_a_set_sees_or_predicts(num_sets, training):
    model, x, noise = (
        small_model(num_visible_sets=num_sets).train(training),
        torch.randn(2, 3, 96, 64),
        torch.rand(2, 24),
    )
    before = model(x, noise=noise)
    for index, masked in enumerate(masks_of(before, num_sets)):
        hidden = F.interpolate(masked.float().view(2, 1, 6, 4), scale_factor=16)

        def encode(pixel_values, index=index):
            output = model(pixel_values, noise=noise, output_hidden_states=True)
            logits = output.logits.unflatten(0, (num_sets, 2))[index]  # all tokens of this set's view
            return [*output.hidden_states, logits.mean(-1).view(2, 1, 6, 4)]

        assert change_of_visible(encode, x, masked, hidden) == 0.0
        assert change_of_visible(encode, x, masked, 1 - hidden) > 0.0


@pytest.mark.parametrize("with_masks", [True, False])
def test_a_convolution_without_the_mask_fails_the_leak_test(with_masks):
    model, x, noise = small_model(), torch.randn(2, 3, 96, 64), torch.rand(2, 24)
    masked = model(x, noise=noise).mask.bool()
    hidden = F.interpolate(masked.float().view(2, 1, 6, 4), scale_factor=16)
    change = change_of_visible(lambda y: dense_convmae.encode(model, y, masked, with_masks), x, masked, hidden)
    assert (change == 0) is with_masks


@pytest.mark.parametrize("num_sets", [1, 2, 4])
def test_all_predictions_of_a_view_are_independent_of_the_pixels_that_are_hidden_from_it(num_sets):
    """Those of hidden tokens too."""
    model, x, noise = small_model(num_visible_sets=num_sets), torch.randn(2, 3, 64, 64), torch.rand(2, 16)
    before = model(x, noise=noise)
    for index, masked in enumerate(masks_of(before, num_sets)):
        hidden = F.interpolate(masked.float().view(2, 1, 4, 4), scale_factor=16)
        after = model(torch.where(hidden.bool(), torch.randn_like(x), x), noise=noise)
        views = [output.logits.unflatten(0, (num_sets, 2)) for output in (after, before)]
        assert torch.equal(views[0][index], views[1][index])
        assert not torch.equal(after.loss, before.loss)  # they are the target
        others = [view for view in range(num_sets) if view != index]
        assert not any(torch.equal(views[0][view], views[1][view]) for view in others)  # which see some of them
