"""What a reconstruction depends on: against finite differences, and exactly 0 where it can depend on nothing."""

import pytest
import torch
from torch.testing import assert_close

from hf_convnextv2 import ConvMAEForPreTraining, ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining
from tests.small_models import awake, small_convmae_config
from training.analysis.context import by_distance, can_reconstruct, noise_that_hides, sensitivities

SIZES = {"hidden_sizes": [8, 12], "depths": [1, 1], "decoder_hidden_size": 8, "image_size": 32}  # cells of 8 pixels
REACH = 3 + 3 + 2  # in cells: the decoder's 7 x 7, the second stage's, and the first one's at 2 positions a cell


def fcmae(**settings):
    torch.manual_seed(0)
    return awake(ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**{**SIZES, **settings}))).requires_grad_(False)


def convmae(**settings):
    torch.manual_seed(0)
    sizes = {"patch_sizes": [2, 2, 2], "image_size": 32}
    return awake(ConvMAEForPreTraining(small_convmae_config(**sizes, **settings))).requires_grad_(False)


def unit_vectors(side):
    return torch.eye(3 * side * side).view(-1, 3, side, side)


def visible_cells(model, pixel_values, noise, grid):
    patches = model(pixel_values, noise=noise).mask[: len(pixel_values)]
    side = model.config.cell_size // model.config.target_size
    patches = patches.view(len(patches), grid[0], side, grid[1], side)
    assert torch.equal(patches.amin((2, 4)), patches.amax((2, 4)))
    return patches.amax((2, 4)) == 0


def test_a_sensitivity_is_the_sum_of_squared_finite_differences():
    model, pixel_values = fcmae().double(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    noise = noise_that_hides((1, 2), (4, 4), seed=0)
    found = sensitivities(model, pixel_values, noise, (1, 2), unit_vectors(8).double())[0]
    visible, step = visible_cells(model, pixel_values, noise, (4, 4))[0], 1e-5

    def predicted(pixels):
        return model(pixels, noise=noise).logits[0, 1 * 4 + 2]

    for row, column in visible.nonzero()[:2].tolist():
        expected = 0.0
        for channel, y, x in torch.cartesian_prod(torch.arange(3), torch.arange(8), torch.arange(8)).tolist():
            change = torch.zeros_like(pixel_values)
            change[0, channel, 8 * row + y, 8 * column + x] = step
            slope = (predicted(pixel_values + change) - predicted(pixel_values - change)) / (2 * step)
            expected += slope.square().sum().item()
        assert found[row, column].item() == pytest.approx(expected, rel=1e-6) and expected > 0


@pytest.mark.parametrize(
    "model",
    [fcmae(), fcmae(use_grn=False, layer_scale_init_value=1e-6), fcmae(num_visible_sets=4), convmae(),
     convmae(num_visible_sets=4, fusion_stages=["stage1"]), convmae(cell_size=16)],
    ids=["fcmae", "v1", "fcmae in views", "convmae", "fastconvmae", "convmae of larger cells"],
)  # fmt: skip
def test_hidden_cells_have_no_share_and_each_visible_one_has(model):
    pixel_values, side = torch.randn(2, 3, 32, 32), model.config.cell_size
    grid = (32 // side, 32 // side)
    noise = noise_that_hides((1, 1), grid, seed=3).expand(2, -1)
    found = sensitivities(model, pixel_values, noise, (1, 1), unit_vectors(side)[::7])
    visible = visible_cells(model, pixel_values, noise, grid)
    assert not visible[:, 1, 1].any() and visible.any() and torch.equal(visible[0], visible[1])
    assert (found[~visible] == 0).all() and (found[visible] > 0).all()


def test_cells_outside_the_receptive_field_have_no_share_but_through_grn():
    pixel_values, grid = torch.randn(1, 3, 8, 8 * 24), (1, 24)
    noise = noise_that_hides((0, 0), grid, seed=0)
    far = torch.arange(24)[None] > REACH
    for model, reaches_far in ((fcmae(use_grn=False), False), (fcmae(), True)):
        found = sensitivities(model, pixel_values, noise, (0, 0), unit_vectors(8)[::9])[0]
        visible = visible_cells(model, pixel_values, noise, grid)[0]
        assert (visible & far).sum() > 2 and (visible & ~far).any()
        assert (found[visible & ~far] > 0).any()
        assert (found[far & visible] > 0).all() if reaches_far else (found[far] == 0).all()


def test_images_of_a_batch_do_not_depend_on_each_other():
    model, pixel_values = fcmae(), torch.randn(3, 3, 32, 32)
    noise, directions = noise_that_hides((0, 3), (4, 4), seed=1), torch.randn(5, 3, 8, 8)
    together = sensitivities(model, pixel_values, noise.expand(3, -1), (0, 3), directions)
    alone = [sensitivities(model, image[None], noise, (0, 3), directions)[0] for image in pixel_values]
    assert_close(together, torch.stack(alone), rtol=1e-4, atol=0)


def test_random_signs_estimate_the_shares_of_all_directions():
    model, pixel_values = fcmae(), torch.randn(1, 3, 32, 32)
    noise = noise_that_hides((2, 2), (4, 4), seed=0)
    signs = torch.randint(0, 2, (100, 3, 8, 8)) * 2.0 - 1
    exact, estimated = (sensitivities(model, pixel_values, noise, (2, 2), some) for some in (unit_vectors(8), signs))
    assert_close(estimated / 100, exact, rtol=0.5, atol=0)
    assert_close(estimated / estimated.sum(), exact / exact.sum(), rtol=0, atol=0.05)


def test_the_chosen_cell_is_hidden_from_the_first_view_whatever_the_seed():
    for model in (fcmae(), convmae(num_visible_sets=4)):
        for seed in range(5):
            noise = noise_that_hides((3, 0), (4, 4), seed)
            assert not visible_cells(model, torch.zeros(1, 3, 32, 32), noise, (4, 4))[0, 3, 0]
    assert not torch.equal(noise_that_hides((3, 0), (4, 4), 0), noise_that_hides((3, 0), (4, 4), 1))


def test_shares_by_distance_are_sums_over_rings_of_cells():
    shares, visible, cell = torch.rand(5, 7), torch.rand(5, 7) > 0.5, (1, 5)
    shares = torch.where(visible, shares, 0.0)
    expected: dict[int, list[float]] = {}
    for row in range(5):
        for column in range(7):
            if visible[row, column]:
                distance = max(abs(row - cell[0]), abs(column - cell[1]))
                expected.setdefault(distance, []).append(shares[row, column].item())
    found = {each["distance"]: (each["visible_cells"], each["share"]) for each in by_distance(shares, visible, cell)}
    assert list(found) == sorted(expected)
    for distance, values in expected.items():
        assert found[distance] == (len(values), pytest.approx(sum(values), rel=1e-5))


def test_only_pretraining_models_that_predict_pixels_can_reconstruct():
    stored = {"model_type": "convnextv2_fcmae", "architectures": ["ConvNextV2ForPreTraining"]}
    assert can_reconstruct(stored) and can_reconstruct({**stored, "target_type": "pixel+feature"})
    assert not can_reconstruct({**stored, "target_type": "feature"})
    assert not can_reconstruct({**stored, "architectures": ["ConvNextV2ForImageClassification"]})
    assert not can_reconstruct({**stored, "model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"]})
