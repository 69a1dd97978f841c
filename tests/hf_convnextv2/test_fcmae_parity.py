"""The packed encoder against masked-dense, and what must fail to show that the comparison can."""

import copy

import pytest
import torch
from torch import Tensor

from hf_convnextv2 import ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining
from tests.masked_dense import encode, plain_mlp, step

# (height, width), channels, mask ratio, patch size of the stem (cells of 4 times 8 or 2 times 8 pixels)
CASES = [
    ((224, 224), 3, 0.6, 4),
    ((384, 384), 3, 0.75, 4),
    ((96, 160), 1, 0.6, 4),
    ((32, 96), 13, 0.4, 4),
    ((224, 224), 1, 0.3, 2),
    ((96, 160), 13, 0.9, 2),
    ((32, 96), 3, 0.6, 2),
]
# Float32 sums of some 10^5 terms in another order; the largest difference seen is 3e-6.
TOLERANCE = 1e-5


def fresh_model(size: str, **overrides: object) -> ConvNextV2ForPreTraining:
    """A model none of whose parameters is at a value (0 or 1) that would hide an error."""
    model = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig.from_size(size, **overrides))
    for parameter in model.parameters():
        if parameter.ndim == 1 or parameter.shape[:3] == (1, 1, 1):
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
    return model


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def compare(size: str, image_size: tuple[int, int], channels: int, mask_ratio: float, patch_size: int) -> None:
    model = fresh_model(size, num_channels=channels, mask_ratio=mask_ratio, patch_size=patch_size)
    oracle = copy.deepcopy(model)
    pixel_values = torch.randn(2, channels, *image_size)
    outputs = model(pixel_values, output_hidden_states=True)
    loss = step(oracle, pixel_values, outputs.mask.bool())
    for ours, theirs in zip(outputs.hidden_states, encode(oracle, pixel_values, outputs.mask.bool()), strict=True):
        assert difference(ours, theirs) <= TOLERANCE
    assert difference(outputs.loss, loss) <= TOLERANCE
    outputs.loss.backward()
    loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), oracle.parameters(), strict=True):
        assert difference(ours.grad, theirs.grad) <= TOLERANCE, name


@pytest.mark.parametrize(("image_size", "channels", "mask_ratio", "patch_size"), CASES)
def test_packed_equals_masked_dense_in_features_loss_and_every_gradient(
    image_size: tuple[int, int], channels: int, mask_ratio: float, patch_size: int
) -> None:
    compare("atto", image_size, channels, mask_ratio, patch_size)


@pytest.mark.slow
@pytest.mark.parametrize("mask_ratio", [0.3, 0.6, 0.75])
@pytest.mark.parametrize("channels", [1, 3, 13])
@pytest.mark.parametrize("image_size", [(224, 224), (384, 384), (96, 160), (32, 96)])
@pytest.mark.parametrize("patch_size", [2, 4])
@pytest.mark.parametrize("size", ["atto", "tiny"])
def test_packed_equals_masked_dense_for_all_combinations(
    size: str, image_size: tuple[int, int], channels: int, mask_ratio: float, patch_size: int
) -> None:
    num_cells = image_size[0] * image_size[1] // (patch_size * 8) ** 2
    most = 1 - 1.5 / num_cells  # leaves one visible; of three cells, 0.75 would leave none
    compare(size, image_size, channels, min(mask_ratio, most), patch_size)


def test_the_comparison_fails_for_a_convolution_without_the_mask() -> None:
    model = fresh_model("atto")
    pixel_values = torch.randn(2, 3, 96, 160)
    outputs = model(pixel_values, output_hidden_states=True)
    leaky = encode_without_masks(model, pixel_values, outputs.mask.bool())
    assert difference(outputs.hidden_states[-1], leaky) > 100 * TOLERANCE


def encode_without_masks(model: ConvNextV2ForPreTraining, pixel_values: Tensor, masked: Tensor) -> Tensor:
    """Pixels hidden, then everything dense: the mistake that masked-dense avoids."""
    grid = masked.view(len(masked), 1, 3, 5).to(pixel_values.dtype)
    hidden = torch.nn.functional.interpolate(grid, scale_factor=32)
    last = model.convnextv2(pixel_values * (1 - hidden)).last_hidden_state
    return last * (1 - grid)


def test_grn_over_all_positions_fails_the_comparison() -> None:
    model = fresh_model("atto")
    pixel_values = torch.randn(2, 3, 96, 160)
    outputs = model(pixel_values, output_hidden_states=True)

    def whole_map_mlp(x: Tensor, layer: torch.nn.Module, visible: Tensor) -> Tensor:
        return plain_mlp(x, layer, torch.ones_like(visible))

    maps = encode(model, pixel_values, outputs.mask.bool(), whole_map_mlp)
    assert difference(outputs.hidden_states[-1], maps[-1]) > 100 * TOLERANCE
