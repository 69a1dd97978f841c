"""Encoder, backbone and classifier against stock Transformers, and what stock lacks: losses, channels, errors."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import hf_convnextv2
from hf_convnextv2 import (
    ConvNextV2Backbone,
    ConvNextV2Config,
    ConvNextV2FCMAEConfig,
    ConvNextV2FCMAEModel,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
)
from hf_convnextv2.classification_loss import classification_loss
from hf_convnextv2.configuration_convnextv2 import SIZES
from tests.small_models import WITHOUT_THE_PACKAGE, assert_close, awake, run_python, small_config, small_fcmae_config

STOCK = {
    ConvNextV2Model: transformers.ConvNextV2Model,
    ConvNextV2Backbone: transformers.ConvNextV2Backbone,
    ConvNextV2ForImageClassification: transformers.ConvNextV2ForImageClassification,
}


def stock_twin(model):
    """Stock Transformers' model of the same class, configuration and weights."""
    twin = STOCK[type(model)](transformers.ConvNextV2Config(**model.config.to_dict())).eval()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.fixture
def classifier():
    return awake(ConvNextV2ForImageClassification(small_config()))


# --- Parity with stock Transformers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", STOCK)
def test_norms_have_the_eps_of_stock(model_class):
    ours = model_class(small_config(out_indices=[0, 2, 4]))
    norms = [{n: m.eps for n, m in x.named_modules() if isinstance(m, nn.LayerNorm)} for x in (ours, stock_twin(ours))]
    assert norms[0] == norms[1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model_class", STOCK)
def test_state_dict_has_the_names_and_shapes_of_stock(size, model_class):
    config = ConvNextV2Config.from_size(size, num_labels=1000, out_indices=[0, 2, 4])
    with torch.device("meta"):
        ours = model_class(config)
        stock = STOCK[model_class](transformers.ConvNextV2Config(**config.to_dict()))
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (ours, stock)]
    assert shapes[0] == shapes[1]
    assert list(shapes[0]) == list(shapes[1])


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(size, marks=() if size in ("atto", "femto", "pico", "nano", "tiny") else pytest.mark.slow)
        for size in SIZES
    ],
)
def test_logits_and_maps_equal_stock(size):
    config = ConvNextV2Config.from_size(size, num_labels=10)
    model = awake(ConvNextV2ForImageClassification(config), std=0.0)
    stock, pixel_values = stock_twin(model), torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        ours, theirs = (m(pixel_values, output_hidden_states=True) for m in (model, stock))
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 5
    for actual, expected in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_close(actual, expected)
    assert (ours.logits - theirs.logits).abs().max() <= 1e-5


def test_a_block_without_grn_fails_the_parity_test(classifier):
    stock, pixel_values = stock_twin(classifier), torch.randn(2, 3, 96, 64)
    for name, parameter in classifier.named_parameters():
        parameter.requires_grad_(False).mul_(0 if "stages.3.layers.0.grn" in name else 1)
    assert (classifier(pixel_values).logits - stock(pixel_values).logits).abs().max() > 1e-3


@pytest.mark.parametrize("model_class", STOCK)
@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 3, 65, 97), (3, 3, 32, 40)])
def test_every_output_and_gradient_equals_stock(model_class, shape):
    model = awake(model_class(small_config(out_indices=[1, 3])))
    stock, pixel_values = stock_twin(model), torch.randn(shape)
    outputs = [m(pixel_values, output_hidden_states=True) for m in (model, stock)]
    assert outputs[0].keys() == outputs[1].keys()
    for actual, expected in zip(flat(outputs[0]), flat(outputs[1]), strict=True):
        assert_close(actual, expected)
    for output in outputs:
        sum(value.square().mean() for value in flat(output)).backward()
    for actual, expected in zip(model.parameters(), stock.parameters(), strict=True):
        # A bias in front of a norm has a gradient of nearly zero, all of it rounding.
        assert (actual.grad - expected.grad).abs().max() <= 1e-5 * max(1, expected.grad.abs().max())


def flat(output):
    """The tensors of a model's output, one after the other."""
    values = [value if isinstance(value, tuple) else (value,) for value in output.values()]
    return [value for group in values for value in group]


@pytest.mark.parametrize("size", [(4, 4), [2, 4]])
def test_oblong_patches_equal_stock(size):
    model = awake(ConvNextV2Model(small_config(patch_size=list(size))))
    pixel_values = torch.randn(2, 3, 64, 64)
    assert_close(model(pixel_values).pooler_output, stock_twin(model)(pixel_values).pooler_output)


def test_three_stages_equal_stock():
    config = small_config(depths=[1, 2, 1], hidden_sizes=[8, 16, 24])
    model, pixel_values = awake(ConvNextV2ForImageClassification(config)), torch.randn(2, 3, 64, 64)
    assert_close(model(pixel_values).logits, stock_twin(model)(pixel_values).logits)


def test_our_folders_load_in_stock_transformers_without_this_package_and_back(tmp_path, classifier):
    pixel_values, ours = torch.randn(2, 3, 64, 64), tmp_path / "ours"
    classifier.save_pretrained(ours)
    fcmae = awake(ConvNextV2ForPreTraining(small_fcmae_config()))
    fcmae.save_pretrained(tmp_path / "fcmae")
    save_file({"pixel_values": pixel_values}, tmp_path / "input.safetensors")
    code = """
import logging, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ConvNextV2Config, ConvNextV2ForImageClassification
from transformers import ConvNextV2Model
pixel_values = load_file("input.safetensors")["pixel_values"]
with torch.no_grad():
    theirs = AutoModelForImageClassification.from_pretrained("ours").eval()
    assert type(theirs) is ConvNextV2ForImageClassification
    encoder, report = ConvNextV2Model.from_pretrained("fcmae", output_loading_info=True)
    assert sorted(report["missing_keys"]) == ["layernorm.bias", "layernorm.weight"], report
    outputs = {"logits": theirs(pixel_values).logits, "map": encoder(pixel_values).last_hidden_state}
    for name, parameter in theirs.named_parameters():
        parameter.mul_(0.9)
    theirs.save_pretrained("theirs")
    outputs["theirs"] = theirs(pixel_values).logits
save_file({name: value.contiguous() for name, value in outputs.items()}, "output.safetensors")
"""
    run_python(WITHOUT_THE_PACKAGE + code, cwd=tmp_path)
    outputs = load_file(tmp_path / "output.safetensors")
    assert_close(outputs["logits"], classifier(pixel_values).logits)
    encoder = ConvNextV2Model.from_pretrained(tmp_path / "fcmae")
    assert_close(outputs["map"], encoder(pixel_values).last_hidden_state)
    back = ConvNextV2ForImageClassification.from_pretrained(tmp_path / "theirs")
    assert_close(outputs["theirs"], back(pixel_values).logits)


def test_classifier_loads_in_stock_backbone(tmp_path, classifier):
    classifier.save_pretrained(tmp_path)
    ours, stock = (m.from_pretrained(tmp_path) for m in (ConvNextV2Backbone, transformers.ConvNextV2Backbone))
    pixel_values = torch.randn(1, 3, 64, 64)
    assert_close(ours(pixel_values).feature_maps[0], stock(pixel_values).feature_maps[0])


# --- Losses and labels ------------------------------------------------------------------------------------------------


def test_class_indices_give_the_cross_entropy(classifier):
    pixel_values, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 4, 2, 2])
    output = classifier(pixel_values, labels=labels)
    expected = -output.logits.log_softmax(-1)[torch.arange(4), labels].mean()
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.loss, stock_twin(classifier)(pixel_values, labels=labels).loss)


def test_class_probabilities_give_the_soft_cross_entropy(classifier):
    labels = torch.rand(4, 5).softmax(-1)
    output = classifier(torch.randn(4, 3, 64, 64), labels=labels)
    torch.testing.assert_close(output.loss, -(labels * output.logits.log_softmax(-1)).sum(-1).mean())


def test_one_hot_probabilities_are_the_class_indices(classifier):
    pixel_values, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 4, 2, 2])
    losses = [classifier(pixel_values, labels=y).loss for y in (labels, F.one_hot(labels, 5).float())]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("soft", [False, True])
def test_label_smoothing_spreads_a_share_evenly(classifier, soft):
    pixel_values, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 4, 2, 2])
    smoothed = F.one_hot(labels, 5).float() * 0.8 + 0.2 / 5
    given = F.one_hot(labels, 5).float() if soft else labels
    actual = classifier(pixel_values, labels=given, label_smoothing=0.2).loss
    torch.testing.assert_close(actual, classifier(pixel_values, labels=smoothed).loss)
    assert not actual.isclose(classifier(pixel_values, labels=given).loss)


MULTI_HOT = torch.tensor([[1.0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]])


@pytest.mark.parametrize(
    "labels",
    [MULTI_HOT, MULTI_HOT[:1].repeat(4, 1) / 3, torch.tensor([[2.0, -1, 0, 0, 0]] * 4), torch.full((4, 5), torch.nan)],
)
def test_float_labels_that_are_no_probabilities_are_an_error_unless_it_is_said_what_they_are(classifier, labels):
    pixel_values = torch.randn(4, 3, 64, 64)
    with pytest.raises(ValueError, match=r"must be class probabilities.* 'multi_label_classification' for 0/1 targets"):
        classifier(pixel_values, labels=labels)
    classifier.config.problem_type = "multi_label_classification"
    torch.testing.assert_close(
        classifier(pixel_values, labels=labels).loss,
        stock_twin(classifier)(pixel_values, labels=labels).loss,
        equal_nan=True,
    )
    classifier.config.problem_type = "single_label_classification"
    expected = -(labels * classifier(pixel_values).logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(classifier(pixel_values, labels=labels).loss, expected, equal_nan=True)


def test_a_compiled_loss_refuses_what_are_no_probabilities():
    torch._dynamo.reset()
    compiled = torch.compile(classification_loss, fullgraph=True, backend="eager")
    logits, labels, config = torch.randn(4, 5), torch.rand(4, 5).softmax(-1), small_config()
    torch.testing.assert_close(compiled(logits, labels, config), classification_loss(logits, labels, config))
    with pytest.raises(RuntimeError, match="must be class probabilities"):
        compiled(logits, MULTI_HOT, config)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_a_column_of_class_indices_is_taken_as_in_stock(classifier, dtype):
    pixel_values, labels = torch.randn(4, 3, 64, 64), torch.tensor([[0], [4], [2], [2]])
    expected = stock_twin(classifier)(pixel_values, labels=labels).loss
    torch.testing.assert_close(classifier(pixel_values, labels=labels.to(dtype)).loss, expected)


@pytest.mark.parametrize("shape", [(4, 5), (3,), (4, 1, 1)])
def test_class_indices_of_another_shape_are_an_error(classifier, shape):
    with pytest.raises(ValueError, match=r"`labels` \(torch.int64, of shape .* must be class indices of shape \(4,\)"):
        classifier(torch.randn(4, 3, 64, 64), labels=torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [(None, torch.tensor([1, 0])), (None, torch.full((2, 5), 0.2)), ("multi_label_classification", MULTI_HOT[:2]),
     ("regression", MULTI_HOT[:2])],
)  # fmt: skip
def test_the_loss_of_a_double_model_is_double(problem_type, labels):
    model = awake(ConvNextV2ForImageClassification(small_config(problem_type=problem_type))).double()
    loss = model(torch.randn(2, 3, 64, 64).double(), labels=labels).loss
    single = model.float()(torch.randn(2, 3, 64, 64), labels=labels).loss
    assert (loss.dtype, single.dtype) == (torch.float64, torch.float32)
    assert model.bfloat16()(torch.randn(2, 3, 64, 64), labels=labels).loss.dtype == torch.float32


def test_smoothing_of_values_is_an_error(classifier):
    classifier.config.problem_type = "regression"
    with pytest.raises(ValueError, match=r"`label_smoothing` \(=0.1\) must be 0"):
        classifier(torch.randn(4, 3, 64, 64), labels=MULTI_HOT, label_smoothing=0.1)


def test_smoothing_of_several_classes_moves_0_and_1_towards_each_other(classifier):
    classifier.config.problem_type = "multi_label_classification"
    pixel_values, smoothed = torch.randn(4, 3, 64, 64), torch.where(MULTI_HOT == 1, 0.95, 0.05)
    actual = classifier(pixel_values, labels=MULTI_HOT, label_smoothing=0.1).loss
    torch.testing.assert_close(actual, classifier(pixel_values, labels=smoothed).loss)
    assert not actual.isclose(classifier(pixel_values, labels=MULTI_HOT).loss)


def test_half_precision_probabilities_are_accepted(classifier):
    pixel_values, labels = torch.randn(4, 3, 64, 64), torch.rand(4, 5).softmax(-1)
    loss = classifier(pixel_values, labels=labels.bfloat16()).loss
    assert loss.isclose(classifier(pixel_values, labels=labels).loss, rtol=1e-2)  # bfloat16 labels


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels"),
    [
        ("single_label_classification", 5, torch.tensor([1, 0, 4, 2])),
        ("multi_label_classification", 5, torch.tensor([[1.0, 0, 1, 0, 0]] * 4)),
        ("regression", 1, torch.tensor([0.5, 1.0, -1.0, 2.0])),
        ("regression", 5, torch.linspace(-1, 1, 20).view(4, 5)),
    ],
)
def test_problem_types_have_the_losses_of_stock(problem_type, num_labels, labels):
    model = awake(ConvNextV2ForImageClassification(small_config(num_labels=num_labels, problem_type=problem_type)))
    pixel_values = torch.randn(4, 3, 64, 64)
    actual = model(pixel_values, labels=labels).loss
    torch.testing.assert_close(actual, stock_twin(model)(pixel_values, labels=labels).loss)
    actual.backward()


@pytest.mark.parametrize("labels", [torch.tensor([0, 1]), torch.full((2, 5), 0.2)], ids=["indices", "probabilities"])
def test_a_loss_leaves_the_configuration_untouched(classifier, labels):
    before = classifier.config.to_dict()
    classifier(torch.randn(2, 3, 64, 64), labels=labels, label_smoothing=0.1)
    assert classifier.config.to_dict() == before
    assert classifier.config.problem_type is None


@pytest.mark.parametrize("shape", [(2,), (2, 4), (2, 5, 1)])
def test_probabilities_of_another_shape_are_an_error(classifier, shape):
    with pytest.raises(ValueError, match=r"`labels` \(float, of shape .* must be .* of shape \(2, 5\)"):
        classifier(torch.randn(2, 3, 64, 64), labels=torch.rand(shape))


def test_model_without_labels_returns_features():
    model = awake(ConvNextV2ForImageClassification(small_config(num_labels=0)))
    pixel_values = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(pixel_values).logits, model.convnextv2(pixel_values).pooler_output)


# --- Keywords ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [("label", "labels"), ("lables", "labels"), ("output_hidden_state", "output_hidden_states"),
     ("label_smooting", "label_smoothing")],
)  # fmt: skip
def test_a_mistyped_keyword_is_an_error_that_names_the_right_one(classifier, mistyped, meant):
    pixel_values = torch.randn(1, 3, 64, 64)
    with pytest.raises(TypeError, match=f"`{mistyped}` is not a keyword of .* Did you mean `{meant}`"):
        classifier(pixel_values, **{mistyped: 1})
    assert classifier(pixel_values, **{mistyped: None}).loss is None


@pytest.mark.parametrize("model_class", STOCK)
def test_keywords_that_stock_ignores_are_ignored(model_class):
    model, pixel_values = awake(model_class(small_config())), torch.randn(1, 3, 64, 64)
    passed = {"output_attentions": True, "num_items_in_batch": 3, "interpolate_pos_encoding": True, "return_loss": True,
              "image_id": 7, "use_cache": False, "input_ids": None}  # fmt: skip
    expected = next(iter(stock_twin(model)(pixel_values, **passed).values()))
    found = next(iter(model(pixel_values, **passed).values()))
    assert_close(*(value[0] if isinstance(value, tuple) else value for value in (found, expected)))


# --- Hidden states by number ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [[1, 3], [0], 2, [], [4, 9]], ids=str)
@pytest.mark.parametrize("model_class", STOCK)
def test_some_hidden_states_are_those_of_stock(model_class, asked):
    model, pixel_values = awake(model_class(small_config())), torch.randn(1, 3, 64, 64)
    outputs = [m(pixel_values, output_hidden_states=asked) for m in (stock_twin(model), model)]
    expected, found = (output.get("hidden_states") for output in outputs)
    assert (found is None) == (expected is None)
    for actual, reference in zip(found or (), expected or (), strict=True):
        assert (actual is None) == (reference is None)
        assert actual is None or assert_close(actual, reference) is None


# --- Initial weights --------------------------------------------------------------------------------------------------


def test_head_init_scale_scales_the_initial_head():
    config = small_config(hidden_sizes=[8, 16, 24, 512], num_labels=100, head_init_scale=0.001)
    model = ConvNextV2ForImageClassification(config)
    # 51200 draws: their standard deviation is within 2 % of the distribution's.
    assert model.classifier.weight.std().item() == pytest.approx(0.02 * 0.001, rel=0.02)
    assert model.convnextv2.encoder.stages[3].layers[0].pwconv1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not model.classifier.bias.any()


def test_initial_weights_are_the_papers():
    model = ConvNextV2ForImageClassification(small_config(hidden_sizes=[64, 64, 64, 64], initializer_range=0.02))
    for name, parameter in model.named_parameters():
        if ".grn." in name or name.endswith("bias"):
            assert not parameter.any(), name
        elif "layernorm" in name or "downsampling_layer.0" in name:
            assert (parameter == 1).all(), name
        else:
            # 5 standard errors of the deviation of n normal draws.
            error = 5 * (2 * parameter.numel()) ** -0.5
            assert parameter.std().item() == pytest.approx(0.02, rel=error), name


# --- Channels ---------------------------------------------------------------------------------------------------------

LOADED = [ConvNextV2Model, ConvNextV2Backbone, ConvNextV2ForImageClassification]


@pytest.fixture
def folder(tmp_path, classifier):
    classifier.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def test_one_channel_sees_a_grey_image_as_three_equal_ones(folder, classifier):
    grey = torch.randn(2, 1, 64, 64)
    adapted = ConvNextV2ForImageClassification.from_pretrained(folder, num_channels=1)
    assert_close(adapted(grey).logits, classifier(grey.expand(-1, 3, -1, -1)).logits)


@pytest.mark.parametrize("num_channels", [2, 4, 13])
def test_more_channels_repeat_the_kernels_and_keep_their_sum_of_squares_in_scale(folder, classifier, num_channels):
    adapted = ConvNextV2ForImageClassification.from_pretrained(folder, num_channels=num_channels)
    old, new = (m.convnextv2.embeddings.patch_embeddings.weight for m in (classifier, adapted))
    assert adapted.config.num_channels == num_channels
    for channel in range(num_channels):
        assert_close(new[:, channel], old[:, channel % 3] * 3 / num_channels)
    assert adapted(torch.randn(2, num_channels, 64, 64)).logits.shape == (2, 5)


def test_six_equal_triples_of_channels_are_the_three(folder, classifier):
    image = torch.randn(2, 3, 64, 64)
    adapted = ConvNextV2ForImageClassification.from_pretrained(folder, num_channels=6)
    assert_close(adapted(image.repeat(1, 2, 1, 1)).logits, classifier(image).logits)


@pytest.mark.parametrize("model_class", LOADED)
def test_every_class_adapts_channels_and_saves_the_result(folder, model_class, tmp_path):
    model = model_class.from_pretrained(folder, num_channels=4)
    model.save_pretrained(tmp_path / "four")
    again, report = model_class.from_pretrained(tmp_path / "four", output_loading_info=True)
    assert again.config.num_channels == 4
    assert not report["mismatched_keys"]
    weights = [m.state_dict() for m in (model, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_channels_are_adapted_of_a_model_in_a_subfolder_too(folder, classifier):
    ConvNextV2ForImageClassification(small_config(num_channels=2)).save_pretrained(folder.parent)  # another one above
    nested = {"subfolder": folder.name, "num_channels": 1}
    adapted = ConvNextV2ForImageClassification.from_pretrained(folder.parent, **nested)
    kernels = [model.convnextv2.embeddings.patch_embeddings.weight for model in (adapted, classifier)]
    assert_close(kernels[0], kernels[1][:, :1] + kernels[1][:, 1:2] + kernels[1][:, 2:])


def test_channels_follow_a_configuration_that_is_passed(folder):
    config = small_config(num_channels=4)
    model = ConvNextV2ForImageClassification.from_pretrained(folder, config=config)
    assert model.config.num_channels == config.num_channels == 4
    assert model(torch.randn(2, 4, 64, 64)).logits.shape == (2, 5)


def test_stored_channels_are_kept_if_none_are_named(folder, tmp_path):
    ConvNextV2Model.from_pretrained(folder, num_channels=1).save_pretrained(tmp_path / "grey")
    assert ConvNextV2Model.from_pretrained(tmp_path / "grey").config.num_channels == 1


def test_adapted_fcmae_predicts_the_mean_and_the_repeated_channels():
    model, pixel_values = awake(ConvNextV2ForPreTraining(small_fcmae_config())), torch.randn(2, 1, 64, 96)
    noise = torch.rand(2, 6)
    rgb = model(pixel_values.expand(-1, 3, -1, -1), noise=noise).logits.view(2, 6, 32 * 32, 3)
    model.set_num_channels(1)
    assert_close(model(pixel_values, noise=noise).logits.view(2, 6, 32 * 32), rgb.mean(-1))
    model.set_num_channels(4)
    four = model(pixel_values.expand(-1, 4, -1, -1), noise=noise).logits.view(2, 6, 32 * 32, 4)
    assert_close(four, rgb.mean(-1, keepdim=True).expand_as(four))


def test_no_channel_at_all_is_an_error(classifier):
    for wrong in (0, "4"):
        with pytest.raises(ValueError, match=rf"`num_channels` \(={wrong!r}\) must be an integer of at least 1"):
            classifier.set_num_channels(wrong)


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_missing_images_are_an_error(classifier):
    with pytest.raises(ValueError, match=r"`pixel_values` \(=None\) must be a tensor"):
        classifier()


def test_model_of_another_architecture_is_an_error(tmp_path):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    for model_class in (*LOADED, ConvNextV2ForPreTraining):
        with pytest.raises(ValueError, match=r"\(of type `resnet`\)"):
            model_class.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"resnet|architecture"):
        ConvNextV2ForImageClassification.from_pretrained(tmp_path, config=small_config())


@pytest.mark.parametrize(
    "other",
    [
        {"hidden_sizes": [8, 16, 24, 40]},
        {"depths": [1, 1, 3, 1]},
        {"depths": [1, 1, 1, 1]},
        {"depths": [1, 1, 2], "hidden_sizes": [8, 16, 24]},
        {"use_grn": False},
        {"patch_size": 2},
    ],
    ids=["wider", "deeper", "shallower", "fewer stages", "without GRN", "smaller patches"],
)
def test_model_of_another_size_is_an_error(folder, other):
    with pytest.raises((ValueError, RuntimeError), match=r"size|weights"):
        ConvNextV2ForImageClassification.from_pretrained(folder, config=small_config(**other))


def test_another_number_of_labels_is_an_error_unless_it_is_asked_for(folder):
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        ConvNextV2ForImageClassification.from_pretrained(folder, num_labels=7)
    model = ConvNextV2ForImageClassification.from_pretrained(folder, num_labels=7, ignore_mismatched_sizes=True)
    assert model(torch.randn(1, 3, 64, 64)).logits.shape == (1, 7)


# --- Auto classes -----------------------------------------------------------------------------------------------------

AUTO = {
    transformers.AutoModel: ConvNextV2Model,
    transformers.AutoModelForImageClassification: ConvNextV2ForImageClassification,
    transformers.AutoBackbone: ConvNextV2Backbone,
}


@pytest.fixture
def registered():
    hf_convnextv2.register()
    yield
    hf_convnextv2.unregister()


@pytest.mark.parametrize("auto", AUTO, ids=lambda auto: auto.__name__)
@pytest.mark.parametrize("config_class", [ConvNextV2Config, transformers.ConvNextV2Config])
def test_registered_auto_classes_use_ours_under_both_configurations(registered, auto, config_class):
    assert type(auto.from_config(config_class(**small_config().to_dict()))) is AUTO[auto]


def test_registered_auto_classes_load_ours(registered, folder, classifier):
    assert type(transformers.AutoConfig.from_pretrained(folder)) is ConvNextV2Config
    assert type(transformers.AutoModel.from_pretrained(folder)) is ConvNextV2Model
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    assert type(model) is ConvNextV2ForImageClassification
    pixel_values = torch.randn(1, 3, 64, 64)
    assert_close(model(pixel_values).logits, classifier(pixel_values).logits)


def auto_state():
    """What the Auto classes have beyond Transformers' own tables, and what they answer for `convnextv2`."""
    registries = [auto._model_mapping._extra_content for auto in AUTO]
    registries.append(transformers.models.auto.configuration_auto.CONFIG_MAPPING._extra_content)
    stock = transformers.ConvNextV2Config(**small_config().to_dict())
    return [dict(registry) for registry in registries], [type(auto.from_config(stock)) for auto in AUTO]


def test_unregister_restores_exactly_what_was_there():
    before = auto_state()
    for _ in range(2):
        hf_convnextv2.register()
        hf_convnextv2.register()
        assert auto_state() != before
        hf_convnextv2.unregister()
        hf_convnextv2.unregister()
        assert auto_state() == before


def test_unregister_restores_another_package_s_registration():
    class Other(transformers.ConvNextV2Model):
        pass

    mapping, key = transformers.AutoModel._model_mapping._extra_content, transformers.ConvNextV2Config
    mapping[key] = Other
    try:
        hf_convnextv2.register()
        hf_convnextv2.unregister()
        assert mapping[key] is Other
    finally:
        del mapping[key]


def test_import_overrides_nothing(tmp_path):
    code = """
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
autos = [getattr(transformers, name) for name in dir(transformers) if name.startswith("AutoModel")]
autos = [auto for auto in [*autos, transformers.AutoBackbone] if getattr(auto, "_model_mapping", None) is not None]
before = {auto.__name__: dict(auto._model_mapping._extra_content) for auto in autos}
stock = [CONFIG_MAPPING["convnextv2"], transformers.AutoModel._model_mapping[transformers.ConvNextV2Config]]
known = set(CONFIG_MAPPING.keys())
import hf_convnextv2
for auto in autos:
    now = auto._model_mapping._extra_content
    assert before[auto.__name__].items() <= now.items()
    added = now.keys() - before[auto.__name__].keys()
    assert {config.model_type for config in added} <= {"convmae", "convnextv2_fcmae", "convnextv2_rcnn"}, added
assert set(CONFIG_MAPPING.keys()) - known == {"convmae", "convnextv2_fcmae", "convnextv2_rcnn"}
assert stock == [CONFIG_MAPPING["convnextv2"], transformers.AutoModel._model_mapping[transformers.ConvNextV2Config]]
config = transformers.ConvNextV2Config(num_stages=2, depths=[1, 1], hidden_sizes=[8, 8])
assert type(transformers.AutoModel.from_config(config)).__module__.startswith("transformers.")
"""
    run_python(code, cwd=tmp_path)


def test_fcmae_folder_loads_by_auto_classes(tmp_path):
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config()))
    model.save_pretrained(tmp_path)
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is ConvNextV2FCMAEConfig
    assert type(transformers.AutoModelForPreTraining.from_pretrained(tmp_path)) is ConvNextV2ForPreTraining
    encoder = transformers.AutoModel.from_pretrained(tmp_path)
    assert type(encoder) is ConvNextV2FCMAEModel
    pixel_values = torch.randn(1, 3, 64, 64)
    expected = awake_encoder(model)(pixel_values).last_hidden_state
    assert_close(encoder(pixel_values).last_hidden_state, expected)


def awake_encoder(model):
    """Stock Transformers' encoder with the weights of an FCMAE model."""
    encoder = transformers.ConvNextV2Model(transformers.ConvNextV2Config(**model.config.to_dict())).eval()
    encoder.load_state_dict({**model.convnextv2.state_dict(), **encoder.layernorm.state_dict(prefix="layernorm.")})
    return encoder


def test_model_code_needs_torch_and_transformers_only(tmp_path):
    code = """
import sys
for name in ("accelerate", "datasets", "torchvision", "timm", "matplotlib", "sklearn", "evaluate", "peft"):
    sys.modules[name] = None
import hf_convnextv2, torch
config = hf_convnextv2.ConvNextV2Config(depths=[1], hidden_sizes=[8])
print(tuple(hf_convnextv2.ConvNextV2Model(config)(torch.zeros(1, 3, 8, 8)).last_hidden_state.shape))
"""
    assert run_python(code, cwd=tmp_path).strip() == "(1, 8, 2, 2)"


def test_a_stock_configuration_may_have_been_changed_in_place():
    config = transformers.ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=2)
    config.problem_type, config.num_labels = "single_label_classification", 1  # which a new one may not be given
    stock = transformers.ConvNextV2ForImageClassification(config)
    assert ConvNextV2ForImageClassification(config).config.problem_type == stock.config.problem_type
