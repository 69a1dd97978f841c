"""Parameter groups, layer-wise learning rates and the schedule, against the official rules written out."""

import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from torch import nn

from hf_convnextv2 import (
    ConvMAEConfig,
    ConvMAEForImageClassification,
    ConvNextV2Config,
    ConvNextV2FCMAEConfig,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
)
from tests.photographs import message_of
from tests.small_models import small_convmae_config
from training.models.families import family_of
from training.models.layer_decay import last_layer_id, layer_id, layer_scale
from training.models.optimizer import can_fuse, create_optimizer, create_schedule, decayed_parameters, parameter_groups
from training.settings.scripts import FinetuneSettings

BASE, ATTO = [3, 3, 27, 3], [2, 2, 6, 2]
PREFIX = "convnextv2.encoder.stages"


def small(config_class, model_class, **fields):
    return model_class(config_class(hidden_sizes=[8, 8, 8, 8], depths=[1, 2, 4, 1], **fields))


def group_of(groups, parameter):
    (group,) = [group for group in groups if any(parameter is other for other in group["params"])]
    return group


def test_only_weights_of_linear_and_convolution_layers_decay():
    model = small(ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining, decoder_hidden_size=8)
    decayed = decayed_parameters(model)
    # Another route: by name and rank. All matrices and kernels but GRN's and the mask token's.
    expected = {
        name
        for name, p in model.named_parameters()
        if name.endswith(".weight") and p.ndim > 1 and ".grn." not in name and "mask_token" not in name
    }
    assert decayed == expected
    assert decayed < set(dict(model.named_parameters()))


def test_the_official_switch_adds_grn_and_the_mask_token_and_nothing_else():
    model = small(ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining, decoder_hidden_size=8)
    added = decayed_parameters(model, decay_grn_and_mask_token=True) - decayed_parameters(model)
    assert added == {name for name, _ in model.named_parameters() if ".grn." in name or "mask_token" in name}


def test_the_settings_reach_adamw():
    model = small(ConvNextV2Config, ConvNextV2ForImageClassification)
    names = {parameter: name for name, parameter in model.named_parameters()}
    config = FinetuneSettings(output_dir="out", dataset_name="x", adam_beta1=0.8, adam_beta2=0.95, weight_decay=0.05)
    optimizer = create_optimizer(
        model, config.optimizer, 0.3, {"classifier.weight"}, lambda name: 0.5 if "stages" in name else 1
    )
    for group in optimizer.param_groups:
        assert group["betas"] == (0.8, 0.95)
        for name in (names[parameter] for parameter in group["params"]):
            assert group["weight_decay"] == (0.05 if name == "classifier.weight" else 0)
            assert group["lr"] == (0.15 if "stages" in name else 0.3)


def test_a_fused_adamw_takes_the_same_steps():
    models = [small(ConvNextV2Config, ConvNextV2ForImageClassification) for _ in range(2)]
    settings = FinetuneSettings(output_dir="out", dataset_name="x", weight_decay=0.05).optimizer
    optimizers = []
    for model, fused in zip(models, (True, None), strict=True):
        model.load_state_dict(models[0].state_dict())
        optimizers.append(create_optimizer(model, settings, 1e-2, decayed_parameters(model), fused=fused))
        assert {group["fused"] for group in optimizers[-1].param_groups} == {fused}
    before = nn.utils.parameters_to_vector(models[0].parameters()).detach()
    for step in range(3):
        torch.manual_seed(step)
        gradients = [torch.randn_like(parameter) for parameter in models[0].parameters()]
        for model, optimizer in zip(models, optimizers, strict=True):
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    fused, other = (nn.utils.parameters_to_vector(model.parameters()).detach() for model in models)
    torch.testing.assert_close(fused, other, rtol=0, atol=1e-6)
    assert (fused - before).abs().mean() > 1e-2


@pytest.mark.parametrize(
    ("device", "kind", "expected"),
    [("cpu", "NO", True), ("cpu", "MULTI_CPU", True), ("cpu", "FSDP", None), ("cuda", "NO", None), ("mps", "NO", None)],
)
def test_adamw_is_fused_on_cpus_that_hold_whole_weights(device, kind, expected):
    accelerator = SimpleNamespace(device=torch.device(device), distributed_type=DistributedType[kind])
    assert can_fuse(accelerator) is expected


def test_every_trainable_parameter_is_in_one_group_and_frozen_ones_in_none():
    model = small(ConvNextV2Config, ConvNextV2ForImageClassification)
    model.convnextv2.embeddings.requires_grad_(False)
    groups = parameter_groups(model, 1e-3, 0.05, decayed_parameters(model), layer_scale([1, 2, 4, 1], 0.9))
    members = [parameter for group in groups for parameter in group["params"]]
    assert len(members) == sum(p.requires_grad for p in model.parameters())
    assert not {id(p) for p in model.convnextv2.embeddings.parameters()} & {id(p) for p in members}
    head = group_of(groups, model.classifier.weight)
    assert (head["lr"], head["weight_decay"]) == (1e-3, 0.05)
    assert group_of(groups, model.classifier.bias)["weight_decay"] == 0
    first = group_of(groups, model.convnextv2.encoder.stages[0].layers[0].pwconv1.weight)
    assert first["lr"] == pytest.approx(1e-3 * 0.9**8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("convnextv2.embeddings.patch_embeddings.weight", 1),  # id 0 is never used
        (f"{PREFIX}.0.layers.0.dwconv.weight", 1),
        (f"{PREFIX}.0.layers.1.dwconv.weight", 2),
        (f"{PREFIX}.2.downsampling_layer.1.weight", 5),
        (f"{PREFIX}.2.layers.5.grn.weight", 10),
        (f"{PREFIX}.3.layers.1.pwconv2.bias", 12),
        ("convnextv2.layernorm.weight", 13),
        ("classifier.weight", 13),
    ],
)
def test_single_layer_ids_of_atto_are_the_official_ones(name, expected):
    assert layer_id(name, ATTO, "single") == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("convnextv2.embeddings.layernorm.bias", 0),
        (f"{PREFIX}.0.layers.2.dwconv.weight", 1),
        (f"{PREFIX}.1.downsampling_layer.0.weight", 2),
        (f"{PREFIX}.1.layers.0.dwconv.weight", 2),
        (f"{PREFIX}.2.downsampling_layer.1.weight", 3),
        (f"{PREFIX}.2.layers.2.dwconv.weight", 3),
        (f"{PREFIX}.2.layers.26.dwconv.weight", 11),
        (f"{PREFIX}.3.downsampling_layer.1.weight", 12),
        (f"{PREFIX}.3.layers.0.dwconv.weight", 12),
        ("classifier.bias", 13),
    ],
)
def test_group_layer_ids_of_base_are_the_official_ones(name, expected):
    assert layer_id(name, BASE, "group") == expected


def test_scales_are_those_of_the_paper_s_recipes():
    atto, base = layer_scale(ATTO, 0.9), layer_scale(BASE, 0.6, "group")
    assert atto("convnextv2.embeddings.patch_embeddings.weight") == pytest.approx(0.9**12)
    assert base("convnextv2.embeddings.patch_embeddings.weight") == pytest.approx(0.6**13)
    assert atto("classifier.weight") == base("convnextv2.layernorm.weight") == 1


@pytest.mark.parametrize("decay_type", ["single", "group"])
@pytest.mark.parametrize("depths", [[1], [2, 2], [1, 2, 3], [1, 2, 4, 1], [1, 1, 7, 1, 2]])
def test_layer_ids_of_any_depths_rise_one_by_one_and_in_groups_end_as_those_of_base(depths, decay_type):
    config = ConvNextV2Config(depths=depths, hidden_sizes=[8] * len(depths))
    names = [name for name, _ in ConvNextV2ForImageClassification(config).named_parameters()]
    ids = [layer_id(name, depths, decay_type) for name in names]
    assert ids == sorted(ids) and ids[-1] == last_layer_id(depths, decay_type)
    levels = sorted(set(ids))
    if decay_type == "group":
        assert levels[-2:] == [12, 13]
        levels = levels[:-2]
    assert levels == list(range(levels[0], levels[0] + len(levels)))


def test_the_schedule_is_a_warm_up_and_a_cosine_to_the_minimum_for_each_group():
    optimizer = torch.optim.AdamW(
        [{"params": nn.Linear(1, 1).parameters(), "lr": 0.1}, {"params": nn.Linear(1, 1).parameters(), "lr": 0.05}]
    )
    schedule = create_schedule(optimizer, 0.1, 0.01, warmup_steps=4, max_steps=20)
    rates = []
    for _ in range(20):
        rates.append(schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    expected = [0.1 * s / 4 for s in range(4)]
    expected += [0.01 + 0.09 * (1 + math.cos(math.pi * (s - 4) / 16)) / 2 for s in range(4, 20)]
    assert [rate[0] for rate in rates] == pytest.approx(expected)
    assert [rate[1] for rate in rates] == pytest.approx([rate / 2 for rate in expected])


CONVMAE_BASE = [2, 2, 11]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("convmae.embeddings.patch_embeddings.weight", 0),
        ("convmae.encoder.stages.0.layers.1.attn.weight", 0),
        ("convmae.encoder.stages.1.patch_embed.proj.weight", 0),
        ("convmae.encoder.stages.1.layers.1.mlp.fc2.bias", 0),
        ("convmae.encoder.stages.2.patch_embed.norm.weight", 0),
        ("convmae.encoder.stages.2.proj.weight", 0),
        ("convmae.encoder.stages.2.position_embeddings.weight", 0),
        ("convmae.encoder.stages.2.layers.0.attn.qkv.weight", 1),
        ("convmae.encoder.stages.2.layers.10.mlp.fc1.weight", 11),
        ("convmae.layernorm.weight", 12),
        ("classifier.weight", 12),
    ],
)
def test_layer_wise_rates_of_convmae_are_those_of_the_official_code(name, expected):
    """0.65 to the power of 12 - id: the whole convolutional part has the least, each block its own."""
    scale = layer_scale(CONVMAE_BASE, 0.65, rule=family_of(ConvMAEConfig()).layers)
    assert scale(name) == pytest.approx(0.65 ** (12 - expected))


def test_layers_of_convmae_rise_from_input_to_head_in_every_parameter():
    config = small_convmae_config()
    rule, depths = family_of(config).layers, list(config.depths)
    ids = [
        rule.layer_id(name, depths, "single") for name, _ in ConvMAEForImageClassification(config).named_parameters()
    ]
    assert sorted(set(ids)) == list(range(depths[-1] + 2)) and ids == sorted(ids)


@pytest.mark.parametrize("decay_type", ["group", "stage"])
def test_layers_of_convmae_have_one_rule(decay_type):
    rule = family_of(ConvMAEConfig()).layers
    message = message_of(lambda: layer_scale(CONVMAE_BASE, 0.65, decay_type, rule))
    assert message.startswith(f"`layer_decay_type` (={decay_type}) must be single for a ConvMAE")
    assert layer_scale(CONVMAE_BASE, 1.0, decay_type, rule)("classifier.weight") == 1  # not used, so not refused
