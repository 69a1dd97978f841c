"""FCMAE: nothing hidden leaks, losses and maps are what they say, masks are checked, reconstructions are exact."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from hf_convnextv2 import (
    ConvNextV2Backbone,
    ConvNextV2Config,
    ConvNextV2FCMAEConfig,
    ConvNextV2FCMAEModel,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
)
from tests import masked_dense
from tests.small_models import assert_close, awake, small_fcmae_config

# Cells of 32 pixels, of 16 (smaller patches, or three stages) and of 8.
CELLS = pytest.mark.parametrize(
    ("overrides", "side"),
    [
        ({}, 32),
        ({"patch_size": 2}, 16),
        ({"depths": [1, 2, 1], "hidden_sizes": [8, 16, 24]}, 16),
        ({"patch_size": 1}, 8),
        ({"patch_size": 2, "depths": [1, 2, 1], "hidden_sizes": [8, 16, 24]}, 8),
    ],
    ids=["32", "16 by patch", "16 by stages", "8 by patch", "8 by both"],
)


def small_model(**overrides):
    return awake(ConvNextV2ForPreTraining(small_fcmae_config(**overrides)))


def pixels_of(mask, side, rows, columns):
    """`mask (B, L)` at the resolution of pixels, `(B, 1, H, W)`."""
    return F.interpolate(mask.view(-1, 1, rows, columns), scale_factor=side, mode="nearest")


# --- Nothing leaks ----------------------------------------------------------------------------------------------------


def change_of_visible_features(encode, pixel_values, mask, where):
    """Largest change of any map at visible cells when the pixels in `where (B, 1, H, W)` are drawn anew."""
    changed = torch.where(where.bool(), torch.randn_like(pixel_values), pixel_values)
    assert not torch.equal(changed, pixel_values)
    grid = 1 - mask.view(len(mask), 1, pixel_values.shape[2] // 32, pixel_values.shape[3] // 32)
    changes = [
        ((after - before).abs() * F.interpolate(grid, size=before.shape[2:])).max().item()
        for before, after in zip(encode(pixel_values), encode(changed), strict=True)
    ]
    return max(changes)


@pytest.mark.parametrize("training", [False, True])
def test_hidden_pixels_change_no_visible_feature(training):
    model, x, noise = small_model().train(training), torch.randn(2, 3, 96, 128), torch.rand(2, 12)
    mask = model(x, noise=noise).mask

    def encode(pixel_values):
        return model(pixel_values, noise=noise, output_hidden_states=True).hidden_states

    hidden = pixels_of(mask, 32, 3, 4)
    assert change_of_visible_features(encode, x, mask, hidden) == 0.0
    assert change_of_visible_features(encode, x, mask, 1 - hidden) > 0.0


def test_hidden_pixels_change_no_prediction():
    model, x, noise = small_model(), torch.randn(2, 3, 96, 128), torch.rand(2, 12)
    before = model(x, noise=noise)
    changed = torch.where(pixels_of(before.mask, 32, 3, 4).bool(), torch.randn_like(x), x)
    after = model(changed, noise=noise)
    assert torch.equal(after.logits, before.logits)
    assert not torch.equal(after.loss, before.loss)  # they are the target


@pytest.mark.parametrize(("conv", "leaks"), [(masked_dense.masked_conv, False), (masked_dense.unmasked_conv, True)])
def test_an_unmasked_convolution_fails_the_leak_test(conv, leaks):
    model, x = small_model(), torch.randn(2, 3, 96, 128)
    mask = torch.rand(2, 12).argsort(1).ge(4).float()
    visible = 1 - pixels_of(mask, 8, 3, 4)  # at the stride of the first stage

    def encode(images):
        layer, features = model.convnextv2.encoder.stages[0].layers[0], model.convnextv2.embeddings(images)
        return [masked_dense.block(layer, features, visible, masked_dense.plain_mlp, conv)]

    change = change_of_visible_features(encode, x, mask, pixels_of(mask, 32, 3, 4))
    assert (change > 0) is leaks


def test_hidden_pixels_get_no_gradient_through_the_prediction():
    model, x = small_model(), torch.randn(2, 3, 64, 96, requires_grad=True)
    output = model(x, noise=torch.rand(2, 6))
    output.logits.square().sum().backward()
    hidden = pixels_of(output.mask, 32, 2, 3).bool().expand_as(x)
    assert not x.grad[hidden].any()
    assert x.grad[~hidden].ne(0).float().mean() > 0.99


def test_an_image_does_not_depend_on_its_batch():
    model, x, noise = small_model(), torch.randn(4, 3, 64, 96), torch.rand(4, 6)
    together = model(x, noise=noise, output_hidden_states=True)
    for i in range(4):
        alone = model(x[i : i + 1], noise=noise[i : i + 1], output_hidden_states=True)
        assert_close(alone.logits, together.logits[i : i + 1])
        for single, batch in zip(alone.hidden_states, together.hidden_states, strict=True):
            assert_close(single, batch[i : i + 1])


# --- Loss -------------------------------------------------------------------------------------------------------------


def test_fresh_model_predicts_photographs_no_better_than_their_mean(crops):
    model = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig.from_size("atto")).eval()
    with torch.no_grad():
        outputs = [model(batch) for batch in crops.split(16)]
    assert len(crops) >= 64
    assert 0.9 <= sum(output.loss.item() for output in outputs) / len(outputs) <= 1.1
    assert all((output.mask == 0).sum(1).eq(19).all() and output.mask.shape == (16, 49) for output in outputs)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_loss_is_the_error_of_hidden_cells(norm_pix_loss):
    model, x = small_model(norm_pix_loss=norm_pix_loss), torch.randn(2, 3, 64, 96) * 3 + 1
    output, errors = model(x), []
    for image, cell in torch.nonzero(output.mask).tolist():
        top, left = cell // 3 * 32, cell % 3 * 32
        target = x[image, :, top : top + 32, left : left + 32].permute(1, 2, 0).flatten()
        if norm_pix_loss:
            target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
        errors.append((output.logits[image, cell] - target).square().mean())
    torch.testing.assert_close(output.loss, torch.stack(errors).mean())


def test_flat_cells_do_not_break_the_loss():
    loss = small_model()(torch.ones(2, 3, 64, 96)).loss
    loss.backward()
    assert loss.isfinite()


# --- Outputs ----------------------------------------------------------------------------------------------------------


@CELLS
@pytest.mark.parametrize("num_channels", [1, 3, 13])
def test_outputs_have_the_documented_shapes(overrides, side, num_channels):
    model = small_model(num_channels=num_channels, **overrides)
    rows, columns = 3, 4
    output = model(torch.randn(2, num_channels, rows * side, columns * side), output_hidden_states=True)
    assert output.loss.shape == ()
    assert output.logits.shape == (2, 12, side * side * num_channels)
    assert output.mask.shape == output.ids_restore.shape == (2, 12)
    assert output.mask.sum(1).tolist() == [12 - 4] * 2  # int(12 * 0.4) = 4 visible
    sizes = [model.config.hidden_sizes[0], *model.config.hidden_sizes]
    strides = [model.config.patch_size * 2 ** max(i - 1, 0) for i in range(len(sizes))]
    expected = [(2, c, rows * side // s, columns * side // s) for c, s in zip(sizes, strides, strict=True)]
    assert [tuple(map_.shape) for map_ in output.hidden_states] == expected


@CELLS
def test_maps_are_exactly_zero_in_hidden_cells_and_nowhere_else(overrides, side):
    model, x = small_model(**overrides), torch.randn(2, 3, 3 * side, 4 * side)
    output = model(x, output_hidden_states=True)
    for features in output.hidden_states:
        hidden = F.interpolate(output.mask.view(2, 1, 3, 4), size=features.shape[2:]).bool().expand_as(features)
        assert not features[hidden].any()
        assert features[~hidden].all()


@CELLS
def test_maps_equal_the_masked_dense_ones(overrides, side):
    model, x = small_model(**overrides), torch.randn(2, 3, 3 * side, 4 * side)
    with torch.no_grad():
        output = model(x, output_hidden_states=True)
        expected = masked_dense.encode(model, x, output.mask.bool())
    for actual, reference in zip(output.hidden_states, expected, strict=True):
        assert_close(actual, reference)


def test_outputs_are_the_same_without_hidden_states_and_as_a_tuple():
    model, x, noise = small_model(), torch.randn(2, 3, 64, 96), torch.rand(2, 6)
    output = model(x, noise=noise)
    assert output.hidden_states is None
    with_maps = model(x, noise=noise, output_hidden_states=True, return_dict=False)
    for actual, expected in zip(with_maps[:4], output.to_tuple(), strict=True):
        assert torch.equal(actual, expected)
    model.config.output_hidden_states = True
    assert len(model(x, noise=noise).hidden_states) == 5


@pytest.mark.parametrize("num_visible_sets", [1, 4])
def test_hidden_states_get_gradients_and_pass_them_on(num_visible_sets):
    model, x, noise = small_model(num_visible_sets=num_visible_sets), torch.randn(2, 3, 64, 96), torch.rand(2, 6)
    parameters, results = list(model.parameters()), []
    for maps in (False, True):
        output = model(x, noise=noise, output_hidden_states=maps)
        for features in output.hidden_states or ():
            features.retain_grad()
        results.append(torch.autograd.grad(output.loss, parameters, retain_graph=maps))
    output.loss.backward()
    for features in output.hidden_states:
        hidden = F.interpolate(output.mask.view(-1, 1, 2, 3)[:2], size=features.shape[2:]).bool().expand_as(features)
        assert features.grad is not None and features.grad[~hidden].any()
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)


def test_some_hidden_states_can_be_asked_for():
    model, x, noise = small_model(), torch.randn(2, 3, 64, 96), torch.rand(2, 6)
    every = model(x, noise=noise, output_hidden_states=True).hidden_states
    some = model(x, noise=noise, output_hidden_states=[1, -1]).hidden_states
    assert [features is None for features in some] == [True, False, True, True, False]
    assert torch.equal(some[1], every[1]) and torch.equal(some[4], every[4])


def test_loss_of_a_double_model_is_double():
    model, x = small_model().double(), torch.randn(2, 3, 64, 96).double()
    output = model(x, noise=torch.rand(2, 6))
    assert output.loss.dtype == torch.float64
    cells = F.unfold(x, 32, stride=32).mT.unflatten(-1, (3, -1)).mT.flatten(2)
    target = (cells - cells.mean(-1, keepdim=True)) / (cells.var(-1, keepdim=True) + 1e-6).sqrt()
    expected = F.mse_loss(output.logits[output.mask.bool()], target[output.mask.bool()])
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("mistyped", "said"),
    [
        ("bool_mask_pos", "Did you mean `bool_masked_pos`"),
        ("noises", "Did you mean `noise`"),
        ("mask", "It takes `pix"),
    ],
)
def test_a_keyword_that_is_unknown_is_an_error(mistyped, said):
    with pytest.raises(TypeError, match=f"`{mistyped}` is not a keyword of `ConvNextV2ForPreTraining.forward`. {said}"):
        small_model()(torch.randn(2, 3, 64, 96), **{mistyped: HALF})


def test_a_batch_wide_grn_is_another_model():
    model, x, masked = small_model(), torch.randn(4, 3, 64, 96), HALF[:1].expand(4, -1)

    def mlp_of_the_batch(y, layer, visible):
        together = y.reshape(1, -1, *y.shape[2:]), visible.reshape(1, -1, *visible.shape[2:])
        return masked_dense.plain_mlp(together[0], layer, together[1]).view(y.shape)

    with torch.no_grad():
        ours = model(x, bool_masked_pos=masked, output_hidden_states=True).hidden_states[-1]
        per_image, per_batch = (
            masked_dense.encode(model, x, masked, mlp)[-1] for mlp in (masked_dense.plain_mlp, mlp_of_the_batch)
        )
    assert_close(ours, per_image)
    assert (ours - per_batch).norm() > 0.01 * ours.norm()


# --- Masks ------------------------------------------------------------------------------------------------------------


def test_cells_of_least_noise_stay_visible():
    model, noise = small_model(), torch.rand(2, 6)
    output = model(torch.randn(2, 3, 64, 96), noise=noise)
    expected = torch.ones(2, 6).scatter(1, noise.argsort(1)[:, :2], 0)  # int(6 * 0.4) = 2 visible
    assert torch.equal(output.mask, expected)
    # ids_restore as in the MAE family: shuffled by it, the kept cells come first.
    shuffled = torch.tensor([0.0, 0, 1, 1, 1, 1]).expand(2, 6)
    assert torch.equal(shuffled.gather(1, output.ids_restore), expected)


@pytest.mark.parametrize("as_grid", [False, True])
def test_a_mask_given_equals_the_noise_that_draws_it(as_grid):
    model, x = small_model(), torch.randn(2, 3, 64, 96)
    drawn = model(x, noise=torch.zeros(2, 6), output_hidden_states=True)
    masked = drawn.mask.bool().view(2, 2, 3) if as_grid else drawn.mask.bool()
    given = model(x, bool_masked_pos=masked, output_hidden_states=True)
    for actual, expected in zip(given.hidden_states, drawn.hidden_states, strict=True):
        assert torch.equal(actual, expected)
    assert torch.equal(given.logits, drawn.logits) and torch.equal(given.mask, drawn.mask)
    assert torch.equal((given.ids_restore >= 2).float(), drawn.mask)


def test_a_mask_given_may_hide_another_share():
    masked = torch.tensor([[True, False, False, False, False, False], [False, False, False, False, False, True]])
    assert torch.equal(small_model()(torch.randn(2, 3, 64, 96), bool_masked_pos=masked).mask, masked.float())


def test_masks_are_drawn_for_each_image_and_each_call():
    model, x = small_model(), torch.randn(2, 3, 224, 224)
    masks = torch.cat([model(x).mask, model(x).mask])
    assert len({tuple(mask.tolist()) for mask in masks}) == 4
    torch.manual_seed(1)
    again = model(x).mask
    torch.manual_seed(1)
    assert torch.equal(model(x).mask, again)


def test_mask_ratio_decides_the_count():
    for mask_ratio, num_hidden in ((0.75, 37), (0.5, 25), (0.9, 45)):
        mask = small_model(mask_ratio=mask_ratio)(torch.randn(1, 3, 224, 224)).mask
        assert mask.sum().item() == num_hidden


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 64, 100), r"sides that are multiples of 32"),
        ((2, 3, 230, 224), r"\(of shape \(2, 3, 230, 224\)\) must have sides that are multiples of 32"),
        ((2, 3, 16, 64), r"must be at least 32 pixels high and 32 wide"),
        ((2, 4, 64, 64), r"`num_channels` \(=3\)"),
        ((3, 64, 64), r"must be \(batch, `num_channels`"),
        ((2, 3, 32, 64), r"`mask_ratio` \(=0.6\) must leave .* leaves 0 of 2 visible"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        small_model()(torch.randn(shape))


HALF = torch.tensor([[True, False, True, False, True, False]] * 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": torch.zeros(2, 5)}, r"`noise` \(of shape \(2, 5\)\) must be of shape \(2, 6\)"),
        ({"noise": torch.zeros(2, 6), "bool_masked_pos": HALF}, "must not be given together"),
        ({"bool_masked_pos": HALF[:, :4]}, r"of shape \(2, 4\)\) must be bool, of shape \(2, 6\) or \(2, 2, 3\)"),
        ({"bool_masked_pos": HALF.view(2, 3, 2)}, r"of shape \(2, 3, 2\)\) must be bool"),
        ({"bool_masked_pos": HALF.float()}, r"`bool_masked_pos` \(torch.float32"),
        ({"bool_masked_pos": HALF ^ torch.eye(2, 6).bool()}, r"hiding \[2, 4\] of 6 cells\) must hide the same number"),
        ({"bool_masked_pos": torch.ones(2, 6).bool()}, "at least one visible and one hidden"),
        ({"bool_masked_pos": torch.zeros(2, 6).bool()}, "at least one visible and one hidden"),
    ],
)
def test_masks_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_model()(torch.randn(2, 3, 64, 96), **arguments)


def test_missing_images_are_an_error():
    with pytest.raises(ValueError, match=r"`pixel_values` \(=None\) must be a tensor"):
        small_model()()


# --- Reconstruction ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_reconstruction_pastes_visible_cells_exactly(norm_pix_loss):
    model, x = small_model(norm_pix_loss=norm_pix_loss), torch.randn(2, 3, 64, 96)
    output = model(x)
    image = model.reconstruct(x, output.logits, output.mask)
    hidden = pixels_of(output.mask, 32, 2, 3).bool().expand_as(x)
    assert image.shape == x.shape
    assert torch.equal(image[~hidden], x[~hidden])
    assert not torch.isclose(image[hidden], x[hidden]).all()


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_perfect_prediction_reconstructs_the_image_and_costs_nothing(norm_pix_loss):
    model, x = small_model(norm_pix_loss=norm_pix_loss), torch.randn(2, 3, 64, 96) * 2 + 1
    cells = model.patchify(x)
    if norm_pix_loss:
        cells = (cells - cells.mean(-1, keepdim=True)) / (cells.var(-1, keepdim=True) + 1e-6).sqrt()
    mask = torch.tensor([[1.0, 0, 1, 1, 0, 1]] * 2)
    assert_close(model.reconstruct(x, cells, mask), x)
    assert model.forward_loss(x, cells, mask.bool()) < 1e-10


def test_reconstruction_without_normalised_pixels_is_the_prediction():
    model, x = small_model(norm_pix_loss=False), torch.randn(1, 3, 64, 96)
    output = model(x)
    expected = torch.where(pixels_of(output.mask, 32, 2, 3).bool(), model.unpatchify(output.logits, (64, 96)), x)
    assert torch.equal(model.reconstruct(x, output.logits, output.mask), expected)


def test_unpatchify_takes_its_size_from_the_configuration():
    model, x = small_model(image_size=64), torch.randn(2, 3, 64, 64)
    assert torch.equal(model.unpatchify(model.patchify(x)), x)


# --- Training ---------------------------------------------------------------------------------------------------------


def test_initial_weights_of_encoder_decoder_and_mask_token_are_the_papers():
    sizes = {"hidden_sizes": [64] * 4, "decoder_hidden_size": 512, "fusion_stages": ["stage1", "stage3"]}
    model = ConvNextV2ForPreTraining(small_fcmae_config(initializer_range=0.02, **sizes))
    for name, parameter in model.named_parameters():
        if ".grn." in name or name.endswith("bias"):
            assert not parameter.any(), name
        elif "layernorm" in name or "downsampling_layer.0" in name:
            assert (parameter == 1).all(), name
        else:
            # 5 standard errors of mean and deviation of n normal draws: 512 for the mask token.
            assert abs(parameter.mean().item()) < 5 * 0.02 * parameter.numel() ** -0.5, name
            error = 5 * (2 * parameter.numel()) ** -0.5
            assert parameter.std().item() == pytest.approx(0.02, rel=error), name


def test_every_parameter_gets_a_gradient():
    model = small_model(decoder_num_hidden_layers=2).train()
    model(torch.randn(2, 3, 96, 96)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(use_reentrant):
    model, x, noise = small_model().train(), torch.randn(2, 3, 96, 96), torch.rand(2, 9)
    twin = copy.deepcopy(model)
    twin.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert twin.is_activation_checkpointing
    for m in (model, twin):
        m(x, noise=noise).loss.backward()
    for actual, expected in zip(twin.parameters(), model.parameters(), strict=True):
        assert_close(actual.grad, expected.grad)


def test_autocast_trains_with_a_result_near_float32():
    model, x, noise = small_model().train(), torch.randn(2, 3, 96, 96), torch.rand(2, 9)
    expected = model(x, noise=noise).loss
    expected.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x, noise=noise, output_hidden_states=True)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected, rtol=1e-2, atol=0)  # bfloat16 keeps 8 bits
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad.isfinite().all()
        assert F.cosine_similarity(parameter.grad.flatten(), gradient.flatten(), dim=0) > 0.98


def test_bfloat16_weights_run():
    model = small_model().bfloat16()
    output = model(torch.randn(2, 3, 64, 96).bfloat16(), output_hidden_states=True)
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.isfinite()


def test_drop_path_trains():
    model = small_model(drop_path_rate=0.5).train()
    model(torch.randn(4, 3, 96, 96)).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_hook_on_any_module_of_the_encoder_sees_visible_cells():
    model, seen = small_model(), []
    layer = model.convnextv2.encoder.stages[0].layers[0]
    layer.pwconv2.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    x, noise = torch.randn(2, 3, 96, 96), torch.rand(2, 9)
    hooked = model(x, noise=noise).logits
    layer.pwconv2._forward_hooks.clear()
    assert_close(hooked, model(x, noise=noise).logits)
    assert seen == [(2 * 3, 8, 8, 32)]  # 3 of 9 cells visible, 8 positions a side


# --- Folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path / "fcmae")
    return model, tmp_path / "fcmae"


NEW_PARAMETERS = {
    ConvNextV2ForPreTraining: [],
    ConvNextV2FCMAEModel: [],
    ConvNextV2Model: ["layernorm.bias", "layernorm.weight"],
    ConvNextV2Backbone: ["hidden_states_norms.stage4.bias", "hidden_states_norms.stage4.weight"],
    ConvNextV2ForImageClassification: [
        "classifier.bias",
        "classifier.weight",
        "convnextv2.layernorm.bias",
        "convnextv2.layernorm.weight",
    ],
}


@pytest.mark.parametrize("model_class", NEW_PARAMETERS, ids=lambda c: c.__name__)
def test_fcmae_folder_loads_into_every_class_and_says_only_what_is_new(folder, model_class, capfd):
    model, path = folder
    loaded, report = model_class.from_pretrained(path, output_loading_info=True)
    assert sorted(report["missing_keys"]) == NEW_PARAMETERS[model_class]
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    printed = "".join(capfd.readouterr())
    assert "decoder" not in printed and "model of type" not in printed
    assert (loaded.config.model_type == "convnextv2_fcmae") is issubclass(
        model_class, (ConvNextV2ForPreTraining, ConvNextV2FCMAEModel)
    )
    encoder = {n.removeprefix("convnextv2."): p for n, p in loaded.named_parameters() if ".encoder." in f".{n}"}
    for name, parameter in model.convnextv2.encoder.named_parameters(prefix="encoder"):
        assert torch.equal(encoder[name], parameter)


def test_classifier_from_an_fcmae_folder_saves_a_plain_configuration(folder, tmp_path):
    classifier = ConvNextV2ForImageClassification.from_pretrained(folder[1], num_labels=7, head_init_scale=0.001)
    classifier.save_pretrained(tmp_path / "classifier")
    config = ConvNextV2Config.from_pretrained(tmp_path / "classifier").to_dict()
    assert config["model_type"] == "convnextv2" and config["architectures"] == ["ConvNextV2ForImageClassification"]
    assert not config.keys() & {"mask_ratio", "norm_pix_loss", "decoder_hidden_size", "decoder_num_hidden_layers"}
    stock = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "classifier")
    x = torch.randn(1, 3, 64, 64)
    assert_close(stock(x).logits, classifier.eval()(x).logits)


def test_fcmae_folder_loads_in_stock_transformers(folder):
    model, path = folder
    stock = transformers.ConvNextV2Model.from_pretrained(path)
    ours = ConvNextV2Model.from_pretrained(path)
    x = torch.randn(1, 3, 64, 64)
    assert_close(stock(x).last_hidden_state, ours(x).last_hidden_state)
    dense = model.convnextv2(x)
    assert dense.pooler_output is None
    assert_close(dense.last_hidden_state, ours(x).last_hidden_state)


def test_pretraining_continues_from_a_classifier_folder(tmp_path):
    classifier = awake(ConvNextV2ForImageClassification(ConvNextV2Config(**model_settings())))
    classifier.save_pretrained(tmp_path)
    model, report = ConvNextV2ForPreTraining.from_pretrained(tmp_path, decoder_hidden_size=16, output_loading_info=True)
    assert all(name.startswith("decoder.") for name in report["missing_keys"])
    assert model.config.model_type == "convnextv2_fcmae"
    for name, parameter in classifier.convnextv2.encoder.named_parameters():
        assert torch.equal(model.convnextv2.encoder.get_parameter(name), parameter)


def model_settings():
    config = small_fcmae_config().to_dict()
    return {name: config[name] for name in ("hidden_sizes", "depths", "image_size")}


def test_saved_folder_holds_contiguous_tensors_under_known_names(folder):
    state = folder[0].state_dict()
    assert {name.split(".")[0] for name in state} == {"convnextv2", "decoder"}
    assert not any(name.startswith("convnextv2.layernorm") for name in state)
    assert isinstance(folder[0].decoder.mask_token, nn.Parameter)
    loaded = ConvNextV2ForPreTraining.from_pretrained(folder[1]).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
