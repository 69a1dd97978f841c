"""What FCMAE predicts besides pixels, and what its decoder sees besides the last stage."""

import pytest
import torch
import torch.nn.functional as F

from hf_convnextv2 import (
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvNextV2FCMAEConfig,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
)
from hf_convnextv2.feature_targets import feature_errors
from hf_convnextv2.pixel_targets import pixel_errors
from tests import masked_dense
from tests.small_models import assert_close, awake, small_convmae_config, small_fcmae_config

SETS = pytest.mark.parametrize("num_sets", [1, 3])
LOSSES = {
    "mse": lambda p, t: (p - t).square().mean(-1),
    "smooth_l1": lambda p, t: torch.where((p - t).abs() < 1, (p - t).square() / 2, (p - t).abs() - 0.5).mean(-1),
    "cosine": lambda p, t: 1 - (p * t).sum(-1) / (p.norm(dim=-1) * t.norm(dim=-1)),
}


def small_model(**overrides):
    return awake(ConvNextV2ForPreTraining(small_fcmae_config(**overrides)))


def images():
    return torch.randn(2, 3, 64, 96), torch.rand(2, 6)


# --- Pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-5])
def test_noise_of_nearly_flat_cells_is_not_blown_up(spread):
    """The official code adds 1e-6 to the variance; added to the deviation, a prediction of 0 would always cost 1."""
    cells = 0.5 + spread * torch.randn(2, 3, 3 * 32**2, dtype=torch.float64)
    variance = torch.var(cells, dim=-1, keepdim=True)
    expected = ((cells - cells.mean(dim=-1, keepdim=True)) / torch.sqrt(variance + 1e-6)).pow(2).mean(dim=-1)
    assert_close(pixel_errors(torch.zeros_like(cells), cells, normalised=True), expected)
    assert expected.mean().item() == pytest.approx(spread**2 / (spread**2 + 1e-6), rel=0.05)


ONE_PIXEL = pytest.mark.parametrize(
    ("model_class", "settings"),
    [
        (
            ConvNextV2ForPreTraining,
            lambda **more: small_fcmae_config(patch_size=1, depths=[1], hidden_sizes=[8], **more),
        ),
        (ConvMAEForPreTraining, lambda **more: small_convmae_config(patch_sizes=[1, 1, 1], **more)),
    ],
    ids=["fcmae", "convmae"],
)
NO_DEVIATION = r"`norm_pix_loss` \(=True\) must be False with patches of one number"


@ONE_PIXEL
def test_a_patch_of_one_number_has_no_deviation_to_be_normalised_by(model_class, settings):
    with pytest.raises(ValueError, match=NO_DEVIATION):
        model_class(settings(num_channels=1))
    for allowed in ({"norm_pix_loss": False}, {"target_type": "feature", "feature_target_on": "masked"}):
        model_class(settings(num_channels=1, **allowed))


@ONE_PIXEL
def test_channels_that_leave_a_patch_one_number_are_refused_before_any_weight_changes(model_class, settings, tmp_path):
    model = model_class(settings(num_channels=2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=NO_DEVIATION):
        model.set_num_channels(1)
    assert model.config.num_channels == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=NO_DEVIATION):
        model_class.from_pretrained(tmp_path, num_channels=1)
    grey = model_class.from_pretrained(tmp_path, num_channels=1, norm_pix_loss=False)
    assert grey(torch.randn(2, 1, 64, 64)).loss.isfinite()


def test_models_that_predict_no_pixels_take_any_patches_and_channels(tmp_path):
    settings = {"patch_sizes": [1, 1, 1], "image_size": 8}
    ConvMAEForPreTraining(small_convmae_config(**settings)).save_pretrained(tmp_path / "pretrained")
    loaded = ConvMAEForImageClassification.from_pretrained(tmp_path / "pretrained", num_channels=1)
    loaded.save_pretrained(tmp_path / "grey")
    grey = ConvMAEForImageClassification.from_pretrained(tmp_path / "grey")
    assert grey(torch.randn(2, 1, 8, 8)).logits.shape == (2, 5)


# --- Multi-scale fusion -----------------------------------------------------------------------------------------------


@SETS
def test_fused_stages_are_strided_convolutions_of_dense_maps(num_sets):
    """The decoder's input, by dense convolutions of the maps of `masked_dense`."""
    model, (x, noise) = small_model(num_visible_sets=num_sets, fusion_stages=["stage1", "stage3"]), images()
    output = model(x, noise=noise)
    for index, masked in enumerate(output.mask.bool().view(num_sets, 2, 6)):
        maps, decoder = masked_dense.encode(model, x, masked), model.decoder
        y = F.linear(maps[4].permute(0, 2, 3, 1), decoder.proj.weight, decoder.proj.bias).permute(0, 3, 1, 2)
        y = y + decoder.fusion["stage1"](maps[1]) + decoder.fusion["stage3"](maps[3])
        y = torch.where(masked.view(2, 1, 2, 3), decoder.mask_token, y)
        expected = masked_dense.block(
            decoder.layers[0], y, torch.ones(2, 1, 2, 3), masked_dense.plain_mlp, masked_dense.unmasked_conv
        )
        expected = F.linear(expected.permute(0, 2, 3, 1), decoder.pred.weight, decoder.pred.bias).flatten(1, 2)
        assert_close(output.logits[2 * index : 2 * index + 2], expected)


@SETS
def test_fusion_shows_the_decoder_no_hidden_pixel(num_sets):
    model = small_model(num_visible_sets=num_sets, fusion_stages=["stage1", "stage2", "stage3"])
    x, noise = images()
    before = model(x, noise=noise)
    for index, masked in enumerate(before.mask.view(num_sets, 2, 1, 2, 3)):
        hidden = F.interpolate(masked, scale_factor=32).bool()
        rows = slice(2 * index, 2 * index + 2)
        after = model(torch.where(hidden, torch.randn_like(x), x), noise=noise)
        assert torch.equal(after.logits[rows], before.logits[rows])
        after = model(torch.where(hidden, x, torch.randn_like(x)), noise=noise)
        assert not torch.equal(after.logits[rows], before.logits[rows])


def test_every_fusion_weight_learns():
    model, (x, noise) = small_model(fusion_stages=["stage1", "stage2", "stage3"]), images()
    model(x, noise=noise).loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.decoder.fusion.parameters())


def test_a_classifier_is_loaded_without_what_only_pre_training_needs(tmp_path, caplog):
    model = small_model(fusion_stages=["stage2"], target_type="pixel+feature", num_visible_sets=3)
    model.save_pretrained(tmp_path)
    classifier = ConvNextV2ForImageClassification.from_pretrained(tmp_path, num_labels=3)
    assert "decoder" not in caplog.text
    assert not any(name.startswith("decoder") for name, _ in classifier.named_parameters())
    for name in ("fusion_stages", "target_type", "num_visible_sets", "feature_target_dim"):
        assert not hasattr(classifier.config, name)
    again = ConvNextV2ForPreTraining.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


# --- Feature targets --------------------------------------------------------------------------------------------------


@SETS
@pytest.mark.parametrize("kind", LOSSES)
def test_hidden_features_are_compared_cell_by_cell(num_sets, kind):
    settings = {"target_type": "pixel+feature", "feature_target_on": "masked", "feature_target_dim": 5}
    model = small_model(num_visible_sets=num_sets, feature_loss=kind, feature_loss_weight=0.25, **settings)
    (x, noise), targets = images(), torch.randn(2, 5, 2, 3) * 2
    output, errors = model(x, noise=noise, feature_targets=targets), []
    assert output.feature_logits.shape == (num_sets * 2, 6, 5)
    for view, cell in torch.nonzero(output.mask).tolist():
        errors.append(LOSSES[kind](output.feature_logits[view, cell], targets[view % 2, :, cell // 3, cell % 3]))
    assert_close(output.feature_loss, torch.stack(errors).mean())
    assert_close(output.loss, output.pixel_loss + 0.25 * output.feature_loss)
    assert_close(output.pixel_loss, model(x, noise=noise).pixel_loss)


@SETS
def test_visible_features_are_a_head_on_the_encoder(num_sets):
    model = small_model(
        num_visible_sets=num_sets, target_type="pixel+feature", feature_loss="mse", feature_target_dim=5
    )
    (x, noise), targets = images(), torch.randn(2, 5, 2, 3)
    output = model(x, noise=noise, feature_targets=targets, output_hidden_states=True)
    head = model.decoder.pred_feature
    expected = F.linear(output.hidden_states[-1].permute(0, 2, 3, 1), head.weight, head.bias).flatten(1, 2)
    visible = ~output.mask.bool().view(num_sets, 2, 6).all(dim=0)
    assert visible.float().mean() == (1 if num_sets == 3 else 2 / 6)
    assert_close(output.feature_logits[visible], expected[visible])
    assert not output.feature_logits[~visible].any()
    assert_close(output.feature_loss, F.mse_loss(expected[visible], targets.flatten(2).mT[visible]))


def test_features_alone_can_be_predicted():
    model = small_model(target_type="feature", feature_target_on="masked", feature_target_dim=5)
    x, noise = images()
    output = model(x, noise=noise, feature_targets=torch.randn(2, 5, 2, 3))
    assert output.logits is None and output.pixel_loss is None
    assert torch.equal(output.loss, output.feature_loss)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.set_num_channels(4)
    model(torch.randn(2, 4, 64, 96), noise=noise)


def test_without_targets_there_is_no_loss_but_a_prediction():
    output = small_model(target_type="pixel+feature")(*images())
    assert output.loss is None
    assert output.feature_logits.shape == (2, 6, 32)  # the encoder's own width
    assert output.pixel_loss.isfinite()


def test_errors_of_features_do_not_depend_on_the_views_of_others():
    predicted, target = torch.randn(6, 4, 3), torch.randn(2, 3, 2, 2)
    together = feature_errors(predicted, target, "mse")
    for view in range(6):
        alone = feature_errors(predicted[view : view + 1], target[view % 2 : view % 2 + 1], "mse")
        assert_close(together[view : view + 1], alone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion_stages": ["stage4"]}, r"`fusion_stages` \(=\['stage4'\]\) must be some of \['stage1', 'stage2', 's"),
        ({"fusion_stages": ["stage1", "stage1"]}, "each once"),
        ({"target_type": "clip"}, r"`target_type` \(='clip'\) must be one of pixel, feature, pixel\+feature"),
        ({"feature_target_on": "all"}, r"`feature_target_on` \(='all'\) must be one of visible, masked"),
        ({"feature_loss": "l1"}, r"`feature_loss` \(='l1'\) must be one of smooth_l1, mse, cosine"),
        ({"feature_loss_weight": 0.0}, r"`feature_loss_weight` \(=0.0\) must be positive"),
        ({"feature_target_dim": 8}, r"`feature_target_dim` \(=8\) must be at least 1, and None with `target_type`"),
        ({"target_type": "pixel+feature", "feature_target_dim": 0}, r"`feature_target_dim` \(=0\) must be at least 1"),
        ({"target_type": "feature"}, "the decoder would have nothing to predict"),
        ({"target_type": "pixel+feature", "depths": [], "hidden_sizes": []}, "`depths`"),
        ({"target_type": "pixel+feature", "feature_loss_weight": float("nan")}, r"`feature_loss_weight` \(=nan\)"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ConvNextV2FCMAEConfig(**settings)


def test_a_model_with_a_teacher_can_be_loaded_without(tmp_path):
    small_model(target_type="pixel+feature", feature_target_dim=5).save_pretrained(tmp_path)
    model = ConvNextV2ForPreTraining.from_pretrained(tmp_path, target_type="pixel")
    assert model.decoder.pred_feature is None and model.config.feature_target_dim is None


def test_features_alone_cannot_be_painted():
    model, (x, noise) = small_model(target_type="feature", feature_target_on="masked"), images()
    output = model(x, noise=noise)
    with pytest.raises(ValueError, match=r"`target_type` \(='feature'\) must be one with pixels"):
        model.reconstruct(x, output.logits, output.mask)


def test_targets_of_another_shape_are_refused():
    model, (x, noise) = small_model(target_type="pixel+feature", feature_target_dim=5), images()
    with pytest.raises(
        ValueError, match=r"`feature_targets` \(of shape \(2, 5, 3, 2\)\) must be of shape \(2, 5, 2, 3"
    ):
        model(x, noise=noise, feature_targets=torch.randn(2, 5, 3, 2))
    with pytest.raises(ValueError, match="`feature_targets` must be None with `target_type`"):
        small_model()(x, noise=noise, feature_targets=torch.randn(2, 5, 2, 3))


# --- Pooled features --------------------------------------------------------------------------------------------------


@SETS
def test_pooled_features_are_the_mean_over_the_cells_that_a_view_sees(num_sets):
    """Against dense maps with the other cells hidden, cell by cell; 6 cells in 3 sets, or 2 of 6 visible."""
    model, (x, noise) = small_model(num_visible_sets=num_sets), images()
    output = model(x, noise=noise, pooled_cells="visible")
    assert output.pooled_features.shape == (num_sets * 2, 32)
    for index, masked in enumerate(output.mask.bool()):
        last = masked_dense.encode(model, x[index % 2][None], masked[None])[-1]
        expected = last.flatten(2)[0, :, ~masked].mean(dim=1)
        assert_close(output.pooled_features[index], expected)


@SETS
def test_pooled_features_of_all_cells_are_those_of_the_encoder_on_whole_images(num_sets):
    model, (x, noise) = small_model(num_visible_sets=num_sets), images()
    output = model(x, noise=noise, pooled_cells="all")
    expected = model.convnextv2(x).last_hidden_state.mean((2, 3))
    assert_close(output.pooled_features, expected)
    assert model(x, noise=noise).pooled_features is None
    assert torch.equal(output.loss, model(x, noise=noise).loss)


@pytest.mark.parametrize("cells", ["visible", "all"])
def test_pooled_features_of_a_convmae_have_gradients_and_stay_in_float32(cells):
    model = awake(ConvMAEForPreTraining(small_convmae_config(num_visible_sets=2)))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.randn(2, 3, 64, 64), pooled_cells=cells)
    assert output.pooled_features.shape == ({"visible": 4, "all": 2}[cells], 16)
    assert output.pooled_features.dtype == torch.float32
    output.pooled_features.sum().backward()
    assert all(parameter.grad is not None for parameter in model.convmae.encoder.parameters())
    with pytest.raises(ValueError, match=r"`pooled_cells` .*'none'.* must be 'visible', 'all' or None"):
        model(torch.randn(2, 3, 64, 64), pooled_cells="none")
