"""Masks and cells: exact counts, polarity, and the order of pixels."""

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from hf_convnextv2 import ConvMAEForPreTraining, ConvNextV2ForPreTraining
from hf_convnextv2.masking import count_visible, patchify, rank_cells, unpatchify, visible_ids
from tests.small_models import small_convmae_config, small_fcmae_config


@pytest.mark.parametrize(
    ("num_cells", "mask_ratio", "num_visible"),
    [(49, 0.6, 19), (144, 0.6, 57), (256, 0.6, 102), (49, 0.75, 12), (15, 0.6, 6), (3, 0.6, 1), (4, 0.5, 2)],
)
def test_visible_cells_are_rounded_down(num_cells, mask_ratio, num_visible):
    assert count_visible(num_cells, mask_ratio) == num_visible


@pytest.mark.parametrize(("num_cells", "mask_ratio"), [(1, 0.5), (2, 0.6), (49, 0.99)])
def test_mask_without_a_visible_cell_is_an_error(num_cells, mask_ratio):
    with pytest.raises(ValueError, match=rf"`mask_ratio` \(={mask_ratio}\) must leave .* 0 of {num_cells} visible"):
        count_visible(num_cells, mask_ratio)


def test_mask_without_a_hidden_cell_is_an_error():
    with pytest.raises(ValueError, match="leaves 4 of 4 visible"):
        count_visible(4, 0.0)


def test_ranks_are_the_places_in_the_sorted_noise():
    noise = torch.rand(4, 15)
    ranks = rank_cells(noise)
    assert torch.equal(noise.gather(1, ranks.argsort(1)), noise.sort(1).values)
    assert torch.equal(ranks.sort(1).values, torch.arange(15).expand(4, 15))


def test_equal_noise_still_ranks_every_cell_once():
    assert torch.equal(rank_cells(torch.zeros(2, 9)), torch.arange(9).expand(2, 9))


def test_visible_ids_are_the_ascending_unmasked_cells():
    masked = torch.rand(5, 49).argsort(1) >= 19
    expected = torch.stack([torch.nonzero(~row).flatten() for row in masked])
    assert torch.equal(visible_ids(masked, 19), expected)


@pytest.mark.parametrize(("channels", "height", "width", "side"), [(3, 32, 32, 8), (1, 16, 48, 16), (13, 8, 24, 4)])
def test_unpatchify_is_the_inverse_of_patchify(channels, height, width, side):
    x = torch.randn(2, channels, height, width)
    cells = patchify(x, side)
    assert cells.shape == (2, height * width // side**2, side * side * channels)
    assert torch.equal(unpatchify(cells, side, height, width), x)


def test_cells_are_ordered_row_column_channel():
    x = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12)
    cell = patchify(x, 4)[1, 4].view(4, 4, 3)  # second row of cells, second column
    assert all(cell[y, z, c] == x[1, c, 4 + y, 4 + z] for y in range(4) for z in range(4) for c in range(3))


def test_patchify_agrees_with_the_mae_of_transformers():
    config = ViTMAEConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32, patch_size=8,
        decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=1, decoder_intermediate_size=8,
    )  # fmt: skip
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(patchify(x, 8), ViTMAEForPreTraining(config).patchify(x))


@pytest.fixture(scope="module", params=["fcmae", "convmae"])
def model(request):
    """A pre-training model with patches of 32 pixels for images of 64."""
    if request.param == "fcmae":
        return ConvNextV2ForPreTraining(small_fcmae_config())
    return ConvMAEForPreTraining(small_convmae_config(patch_sizes=[4, 2, 4]))


@pytest.mark.parametrize("shape", [(2, 3, 64, 80), (2, 3, 48, 64), (2, 4, 64, 64), (3, 64, 64)])
def test_images_that_whole_patches_do_not_fill_are_refused(model, shape):
    with pytest.raises(ValueError, match=rf"`pixel_values` \(of shape \({shape[0]}, .*\)\) must be .* multiples of 32"):
        model.patchify(torch.randn(shape))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 6, 3072), None),  # of an image of 64 x 96 pixels, not of 64 x 64
        ((2, 6, 3072), (96, 96)),
        ((2, 2, 3072), (64, 64)),
        ((2, 4, 1024), None),
        ((2, 16, 768), None),  # as many numbers as there should be
        ((4, 3072), None),
    ],
)
def test_patches_of_other_images_are_refused(model, shape, size):
    with pytest.raises(
        ValueError, match=r"`logits` \(of shape .*\) must be \(batch, \d, 3072\), the patches of images"
    ):
        model.unpatchify(torch.randn(shape), size)


def test_images_of_a_size_that_whole_patches_do_not_fill_have_no_patches(model):
    with pytest.raises(ValueError, match=r"`original_image_size` \(=\(64, 80\)\) must be multiples of 32"):
        model.unpatchify(torch.randn(2, 4, 3072), (64, 80))
