"""What Transformers demands of every model: its common model and backbone tests, for each of our classes."""

import inspect
import json

import accelerate
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_convnextv2 import (
    ConvMAEBackbone,
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvMAEModel,
    ConvNextV2Backbone,
    ConvNextV2FCMAEModel,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
)
from tests.small_models import assert_close, awake, small_config, small_convmae_config, small_fcmae_config

OF_CONVNEXTV2 = [
    ConvNextV2Model,
    ConvNextV2Backbone,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2FCMAEModel,
]
CLASSES = [
    *OF_CONVNEXTV2,
    ConvMAEModel,
    ConvMAEBackbone,
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
]
# Maps of images of 64 x 96 pixels.
SHAPES = {
    "convnextv2": [(2, 8, 16, 24), (2, 8, 16, 24), (2, 16, 8, 12), (2, 24, 4, 6), (2, 32, 2, 3)],
    "convmae": [(2, 8, 16, 24), (2, 8, 16, 24), (2, 12, 8, 12), (2, 16, 4, 6)],
}
# A mask of its own for each image; cells are 32 pixels in FCMAE and 16 in ConvMAE.
NOISE = {
    "convnextv2": torch.linspace(0, 1, 24).view(4, 6).roll(1, 0),
    "convmae": torch.linspace(0, 1, 96).view(4, 24).roll(1, 0),
}


@pytest.fixture(params=CLASSES, ids=lambda model_class: model_class.__name__)
def model_class(request):
    return request.param


@pytest.fixture
def config(model_class):
    return make_config(model_class)


@pytest.fixture
def model(model_class, config):
    return awake(model_class(config))


@pytest.fixture
def inputs(model_class):
    return make_inputs(model_class)


def make_config(model_class, **overrides):
    makers = {"ConvNextV2FCMAEConfig": small_fcmae_config, "ConvMAEConfig": small_convmae_config}
    return makers.get(model_class.config_class.__name__, small_config)(**overrides)


def make_inputs(model_class, batch=2):
    pixel_values = torch.randn(batch, 3, 64, 96)
    masks = {"noise": NOISE[model_class.base_model_prefix][:batch]} if "PreTraining" in model_class.__name__ else {}
    return {"pixel_values": pixel_values, **masks}


def tensors(output):
    """The tensors of an output, one after the other."""
    values = output.values() if isinstance(output, dict) else output
    return [t for value in values for t in (value if isinstance(value, tuple | list) else (value,))]


def train_step(model, inputs):
    """Backward through every output that a caller may train on."""
    output = model.train()(**inputs)
    loss = output.get("loss")
    if loss is None:
        loss = sum(t.square().mean() for t in tensors(output))
    loss.backward()


def same(actual, expected):
    actual, expected = tensors(actual), tensors(expected)
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)


# --- Saving and loading -----------------------------------------------------------------------------------------------


def test_saved_model_loads_with_equal_outputs(model, model_class, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert not loaded.training
    same(loaded(**inputs), model(**inputs))


def test_model_is_saved_as_contiguous_safetensors_under_its_own_names(model, model_class, tmp_path):
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        assert all(file.get_tensor(name).is_contiguous() for name in file.keys())  # noqa: SIM118
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [model_class.__name__]


def test_model_saved_in_shards_loads(model, model_class, inputs, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    same(model_class.from_pretrained(tmp_path)(**inputs), model(**inputs))


def test_state_dict_survives_torch_save(model, model_class, config, inputs, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    twin = model_class(config).eval()
    twin.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    same(twin(**inputs), model(**inputs))


def test_model_loads_from_a_state_dict_alone(model, model_class, config, inputs):
    loaded = model_class.from_pretrained(None, config=config, state_dict=model.state_dict())
    same(loaded(**inputs), model(**inputs))


def test_bfloat16_survives_a_folder(model, model_class, tmp_path):
    model.bfloat16().save_pretrained(tmp_path)
    assert model_class.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert model_class.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_mismatched_shapes_are_initialised_on_request_only(tmp_path):
    awake(ConvNextV2ForImageClassification(small_config())).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        ConvNextV2ForImageClassification.from_pretrained(tmp_path, num_labels=9)
    model, report = ConvNextV2ForImageClassification.from_pretrained(
        tmp_path, num_labels=9, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key[0] for key in report["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert not model.classifier.bias.any()
    assert 0 < model.classifier.weight.std() < 0.03


@pytest.mark.parametrize(
    ("head_class", "base_class"),
    [
        (ConvNextV2ForImageClassification, ConvNextV2Model),
        (ConvNextV2ForPreTraining, ConvNextV2Model),
        (ConvMAEForImageClassification, ConvMAEModel),
        (ConvMAEForPreTraining, ConvMAEModel),
    ],
)
def test_base_weights_load_into_a_head_and_back(head_class, base_class, tmp_path):
    head = awake(head_class(make_config(head_class)))
    head.save_pretrained(tmp_path / "head")
    base = base_class.from_pretrained(tmp_path / "head")
    base.save_pretrained(tmp_path / "base")
    again, report = head_class.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert all(not name.startswith(f"{head.base_model_prefix}.") for name in report["missing_keys"])
    for name, parameter in head.base_model.named_parameters():
        assert torch.equal(base.get_parameter(name), parameter)
        assert torch.equal(again.base_model.get_parameter(name), parameter)


def test_missing_keys_are_reported_exactly(model, model_class, tmp_path):
    state = {name: value for name, value in model.state_dict().items() if ".encoder." in f".{name}"}
    model.save_pretrained(tmp_path, state_dict=dict(state))
    report = model_class.from_pretrained(tmp_path, output_loading_info=True, ignore_mismatched_sizes=True)[1]
    expected = set(model.state_dict()) - set(state)
    if model_class in (ConvNextV2FCMAEModel, ConvMAEModel):
        expected -= {"layernorm.weight", "layernorm.bias"}  # no folder of pre-training has them
    assert set(report["missing_keys"]) == expected


@pytest.mark.parametrize("is_trained", [True, False])
def test_frozen_parameters_stay_frozen_when_a_model_adapts_to_other_images(model, is_trained):
    others = {"num_channels": 4, "image_size": (96, 64)}
    model.requires_grad_(is_trained)
    for name in model.adapted_settings:
        getattr(model, f"set_{name}")(others[name])
    assert {parameter.requires_grad for parameter in model.parameters()} == {is_trained}


# --- Initialisation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", OF_CONVNEXTV2)  # ConvMAE's do not depend on a setting
def test_every_parameter_is_initialised_by_init_weights(model_class):
    model = model_class(make_config(model_class, initializer_range=1e-10))
    for name, parameter in model.named_parameters():
        assert round(parameter.mean().item(), 6) in (0.0, 1.0), name
        assert parameter.requires_grad


def test_missing_weights_are_drawn_as_for_a_new_model(model_class, config):
    torch.manual_seed(0)
    expected = model_class(config).state_dict()
    torch.manual_seed(0)
    actual = model_class.from_pretrained(None, config=config, state_dict={}).state_dict()
    for name in expected:
        spread = [value[name].std(correction=0).item() for value in (actual, expected)]
        chance = 4 * spread[1] / expected[name].numel() ** 0.5  # of a few numbers that are drawn anew
        assert (spread[0] == 0) == (spread[1] == 0), name
        assert spread[0] == pytest.approx(spread[1], abs=max(0.01, chance)), name
        assert actual[name].mean().item() == pytest.approx(expected[name].mean().item(), abs=max(0.02, chance)), name


def test_model_can_be_built_on_the_meta_device_and_filled(model_class, config, model, inputs):
    with torch.device("meta"):
        empty = model_class(config)
    assert {p.device.type for p in [*empty.parameters(), *empty.buffers()]} == {"meta"}
    empty.load_state_dict(model.state_dict(), assign=True)
    same(empty.eval()(**inputs), model(**inputs))


def test_model_loads_inside_a_device_context(model_class, model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    with torch.device("cpu"):
        same(model_class.from_pretrained(tmp_path)(**inputs), model(**inputs))


def test_model_is_small(model):
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


# --- Forward ----------------------------------------------------------------------------------------------------------


def test_forward_is_deterministic(model, inputs):
    for one, other in zip(tensors(model(**inputs)), tensors(model(**inputs)), strict=True):
        assert torch.equal(one, other)


def test_a_batch_computes_what_its_images_do_alone(model, model_class):
    inputs = make_inputs(model_class, batch=4)
    together = model(**inputs, output_hidden_states=True)
    for i in range(4):
        alone = model(**{name: value[i : i + 1] for name, value in inputs.items()}, output_hidden_states=True)
        for one, other in zip(tensors(alone), tensors(together), strict=True):
            assert one.isfinite().all()
            if one.ndim:  # the loss is a mean over the batch
                assert_close(one, other[i : i + 1])


@pytest.mark.parametrize("maps", [False, True])
def test_tuple_holds_the_values_of_the_output_class(model, inputs, maps):
    named = model(**inputs, output_hidden_states=maps)
    plain = model(**inputs, output_hidden_states=maps, return_dict=False)
    assert isinstance(plain, tuple)
    same(plain, named)
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)


def test_tuple_with_labels_starts_with_the_loss():
    model, labels = awake(ConvNextV2ForImageClassification(small_config())), torch.tensor([0, 1])
    inputs = make_inputs(ConvNextV2ForImageClassification)
    loss, logits = model(**inputs, labels=labels, return_dict=False)
    assert loss.shape == () and logits.shape == (2, 5)


def test_forward_takes_pixel_values_first(model_class):
    assert list(inspect.signature(model_class.forward).parameters)[1] == "pixel_values"
    assert model_class.main_input_name == "pixel_values"
    assert model_class.base_model_prefix == ("convmae" if "ConvMAE" in model_class.__name__ else "convnextv2")


def test_base_model_is_the_encoder(model, model_class):
    has_head = "For" in model_class.__name__
    assert model.base_model is (getattr(model, model.base_model_prefix) if has_head else model)


def test_arguments_that_a_model_has_no_use_for_are_ignored(model, inputs):
    same(model(**inputs, use_cache=True), model(**inputs))


def test_attentions_are_refused_where_there_is_attention_and_ignored_elsewhere(model, inputs):
    if model.base_model_prefix == "convnextv2":
        same(model(**inputs, output_attentions=True), model(**inputs))
    else:
        with pytest.raises(ValueError, match=r"`output_attentions` \(=True\) must be left out, .*: ConvMAE"):
            model(**inputs, output_attentions=True)
        model.set_attn_implementation("eager")  # with which a configuration may ask for them
        expected = model(**inputs)
        model.config.output_attentions = True
        with pytest.raises(ValueError, match=r"must be left out, in the configuration too: ConvMAE"):
            model(**inputs)
        same(model(**inputs, output_attentions=False), expected)


@pytest.mark.parametrize("where", ["argument", "configuration"])
def test_hidden_states_are_the_maps_of_stem_and_stages(model, inputs, where):
    model.config.output_hidden_states = where == "configuration"
    output = model(**inputs, **({"output_hidden_states": True} if where == "argument" else {}))
    shapes = [tuple(features.shape) for features in output.hidden_states]
    assert shapes == SHAPES[model.base_model_prefix]
    if "last_hidden_state" in output:
        assert torch.equal(output.last_hidden_state, output.hidden_states[-1])
    assert "attentions" not in output


def test_hidden_states_are_left_out_unless_asked_for(model, inputs):
    assert "hidden_states" not in model(**inputs)
    assert "hidden_states" not in model(**inputs, output_hidden_states=False)


def test_hidden_states_retain_gradients(model, inputs):
    output = model(**inputs, output_hidden_states=True)
    for features in output.hidden_states:
        features.retain_grad()
    result = next(t for name, t in output.items() if name != "hidden_states")
    (result[0] if isinstance(result, tuple) else result).sum().backward()
    assert all(features.grad is not None for features in output.hidden_states)


# --- Training ---------------------------------------------------------------------------------------------------------


def gradients(model, inputs):
    model.zero_grad()
    train_step(model, inputs)
    return {name: p.grad for name, p in model.named_parameters()}


def test_every_parameter_gets_a_gradient(model, inputs):
    assert [name for name, grad in gradients(model, inputs).items() if grad is None] == []


@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": True}, {"use_reentrant": False}])
def test_activation_checkpointing_gives_every_parameter_the_same_gradient(model, inputs, kwargs):
    expected = gradients(model, inputs)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    inputs["pixel_values"].requires_grad_()  # the reentrant form asks for it
    actual = gradients(model, inputs)
    for name in expected:
        assert actual[name] is not None, name
        assert (actual[name] - expected[name]).abs().max() <= 1e-5 * max(1, expected[name].abs().max()), name


def test_activation_checkpointing_recomputes_blocks(model, inputs):
    calls = []
    layer = next(m for m in model.modules() if isinstance(m, GradientCheckpointingLayer))
    first = layer.conv1 if model.base_model_prefix == "convmae" else layer.pwconv1
    first.register_forward_hook(lambda *_: calls.append(1))
    gradients(model, inputs)
    assert len(calls) == 1
    model.activation_checkpointing_enable()
    gradients(model, inputs)
    assert len(calls) == 3


def test_activation_checkpointing_is_switched_on_every_block_and_off_again(model):
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    assert len(blocks) >= 5
    for enabled in (True, False):
        model.activation_checkpointing_enable() if enabled else model.activation_checkpointing_disable()
        assert model.is_activation_checkpointing is enabled
        assert all(block.gradient_checkpointing is enabled for block in blocks)


def test_input_embeddings_can_be_made_to_require_gradients(model, inputs):
    model.requires_grad_(False)
    model.enable_input_require_grads()
    assert all(t.requires_grad for t in tensors(model.train()(**inputs)) if t.is_floating_point() and t.ndim == 4)
    model.disable_input_require_grads()
    assert not any(t.requires_grad for t in tensors(model(**inputs)))


# --- Offloading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_offloaded_model_computes_the_same(model, inputs, offload, tmp_path):
    expected = model(**inputs)
    if offload == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device="cpu")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    same(model(**inputs), expected)


def test_model_loads_by_a_device_map_that_leaves_stages_on_disk(model, model_class, inputs, tmp_path):
    model.save_pretrained(tmp_path / "model")
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    names = [name for name, module in model.named_modules() if name.count(".") <= prefix.count(".") and name]
    leaves = [n for n in names if n not in (model.base_model_prefix, f"{prefix}encoder")]
    num_stages = len(model.base_model.encoder.stages)
    stages = {f"{prefix}encoder.stages.{i}": "cpu" if i % 2 else "disk" for i in range(num_stages)}
    loaded = model_class.from_pretrained(
        tmp_path / "model", device_map={**dict.fromkeys(leaves, "cpu"), **stages}, offload_folder=tmp_path / "offload"
    )
    same(loaded(**inputs), model(**inputs))


def test_automatic_device_map_keeps_blocks_whole(model):
    sizes = accelerate.utils.compute_module_sizes(model)
    device_map = accelerate.infer_auto_device_map(
        model, {"cpu": sizes[""] * 2 // 3, "disk": sizes[""]}, no_split_module_classes=model._no_split_modules
    )
    assert len(set(device_map.values())) == 2
    assert not any(".layers." in name and not name.split(".layers.")[1].isdigit() for name in device_map)


# --- Backbone ---------------------------------------------------------------------------------------------------------

BACKBONES = pytest.mark.parametrize(
    ("selection", "names", "channels"),
    [
        ({}, ["stage4"], [32]),
        ({"out_features": ["stage1", "stage3"]}, ["stage1", "stage3"], [8, 24]),
        ({"out_indices": [0, 2, 4]}, ["stem", "stage2", "stage4"], [8, 16, 32]),
        ({"out_indices": (1, -1)}, ["stage1", "stage4"], [8, 32]),
    ],
)


@BACKBONES
def test_backbone_returns_the_maps_it_is_asked_for(selection, names, channels):
    model = awake(ConvNextV2Backbone(small_config(**selection)))
    output = model(torch.randn(2, 3, 64, 96))
    assert model.out_features == names
    assert model.channels == channels == [features.shape[1] for features in output.feature_maps]
    assert isinstance(output.feature_maps, tuple)
    assert output.hidden_states is None and output.attentions is None
    assert set(model.hidden_states_norms) == set(names)


def test_backbone_has_the_common_attributes():
    model = ConvNextV2Backbone(small_config(out_features=["stage2", "stage4"]))
    assert model.backbone_type.value == "transformers"
    assert model.stage_names == ["stem", "stage1", "stage2", "stage3", "stage4"]
    assert model.num_features == [8, 8, 16, 24, 32]
    assert model.out_feature_channels == dict(zip(model.stage_names, model.num_features, strict=True))
    assert model.out_indices == [2, 4]
    assert not model.has_attentions


def test_backbone_norms_normalise_its_maps():
    model = awake(ConvNextV2Backbone(small_config(out_indices=[0, 3])))
    output = model(torch.randn(2, 3, 64, 96), output_hidden_states=True)
    for name, features in zip(("stem", "stage3"), output.feature_maps, strict=True):
        norm, x = model.hidden_states_norms[name], output.hidden_states[model.stage_names.index(name)]
        expected = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], norm.weight, norm.bias, eps=norm.eps)
        assert_close(features, expected.permute(0, 3, 1, 2))


def test_backbone_from_a_changed_configuration_takes_the_last_stage():
    config = small_config(out_features=["stage1"])
    config.out_features = None
    assert ConvNextV2Backbone(config).out_features == ["stage4"]
    config.out_indices = None
    assert ConvNextV2Backbone(config).out_indices == [4]


def test_backbone_filters_arguments():
    model = awake(ConvNextV2Backbone(small_config()))
    output = model.forward_with_filtered_kwargs(torch.randn(1, 3, 64, 64), output_attentions=True)
    assert output.feature_maps[0].shape == (1, 32, 2, 2)


def test_models_are_not_what_stock_would_return():
    assert all(not issubclass(c, getattr(transformers, c.__name__, ())) for c in CLASSES)
