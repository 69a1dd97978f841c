"""ConvMAE: sizes, settings, positions, loading, masks and targets; what it computes is in test_convmae_parity.py."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from hf_convnextv2 import (
    ConvMAEBackbone,
    ConvMAEConfig,
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvMAEModel,
    ConvNextV2ForImageClassification,
)
from hf_convnextv2.configuration_convmae import CONVMAE_SIZES
from hf_convnextv2.convmae_layers import ATTENTION, ConvMAELayer
from hf_convnextv2.layers import ConvNextV2DropPath
from hf_convnextv2.position_embeddings import PositionEmbeddings
from tests.small_models import assert_close, awake, difference, small_config, small_convmae_config

CLASSES = [ConvMAEModel, ConvMAEBackbone, ConvMAEForImageClassification, ConvMAEForPreTraining]
MODELS = pytest.mark.parametrize("model_class", CLASSES, ids=lambda model_class: model_class.__name__)


def small_model(model_class=ConvMAEForPreTraining, **overrides):
    return awake(model_class(small_convmae_config(**overrides)))


def make_inputs(model_class, height=64, width=96):
    masks = {"noise": torch.rand(2, height * width // 256)} if model_class is ConvMAEForPreTraining else {}
    return {"pixel_values": torch.randn(2, 3, height, width), **masks}


def tensors(output):
    return [t for value in output.values() for t in (value if isinstance(value, tuple) else (value,))]


# --- Size -------------------------------------------------------------------------------------------------------------


def count(module):
    """Numbers that a folder holds: parameters, and positions that are fixed."""
    return sum(tensor.numel() for tensor in module.state_dict().values())


def test_the_base_model_has_the_published_numbers_of_parameters():
    with torch.device("meta"):
        model = ConvMAEForPreTraining(ConvMAEConfig.from_size("base"))
        classifier = ConvMAEForImageClassification(ConvMAEConfig.from_size("base", num_labels=1000))
    decoder = model.decoder
    assert count(model) == 115_041_408
    assert sum(parameter.numel() for parameter in model.parameters()) == 114_790_528
    assert count(model.convmae) + count(decoder.norm) == 84_605_824
    assert count(decoder.fusion) == 4_326_912
    assert count(decoder) - count(decoder.fusion) - count(decoder.norm) == 26_108_672
    assert count(classifier) == sum(parameter.numel() for parameter in classifier.parameters()) == 85_374_824
    stages = model.convmae.encoder.stages
    assert [count(stage.layers) for stage in stages] == [1_329_664, 2_977_536, 77_966_592]
    embeddings = [model.convmae.embeddings, stages[1].patch_embed, stages[2].patch_embed, stages[2].proj]
    assert [count(module) for module in embeddings] == [13_056, 394_368, 1_181_952, 590_592]


def test_the_default_configuration_is_the_base_model():
    assert ConvMAEConfig().to_dict() == ConvMAEConfig.from_size("base").to_dict()


@pytest.mark.parametrize("name", CONVMAE_SIZES)
def test_every_size_survives_a_round_trip(name):
    config = ConvMAEConfig.from_size(name, cell_size=32, image_size=(96, 160), num_visible_sets=4)
    assert ConvMAEConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert (config.mask_ratio, config.target_size, config.cell_size) == (0.75, 16, 32)


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": [1, 1]}, r"`depths` \(=\[1, 1\]\) must be 3 positive numbers, one for each stage"),
        ({"patch_sizes": [4, 0, 2]}, r"`patch_sizes` \(=\[4, 0, 2\]\)"),
        ({"image_size": 8}, r"`image_size` \(=8\) must be at least 16"),
        ({"num_channels": 0}, r"`num_channels` \(=0\)"),
        ({"cell_size": 24}, r"`cell_size` \(=24\) must be a multiple of 16"),
        ({"cell_size": 0}, r"`cell_size` \(=0\) must be a multiple of 16"),
        ({"num_attention_heads": 5}, r"`num_attention_heads` \(=5\) must divide the width of `hidden_sizes` \(=16\)"),
        ({"decoder_hidden_size": 18, "decoder_num_attention_heads": 2}, r"`decoder_hidden_size` \(=18\) must be a mul"),
        ({"decoder_num_hidden_layers": 0}, r"`decoder_num_hidden_layers` \(=0\) must be at least 1"),
        ({"mlp_ratio": 0}, r"`mlp_ratio` \(=0\)"),
        ({"drop_path_rate": 1.0}, r"`drop_path_rate` \(=1.0\) must be in \[0, 1\)"),
        ({"mask_ratio": 0.5, "num_visible_sets": 4}, r"`mask_ratio` \(=0.5\) must be 0.75 with `num_visible_sets`"),
        ({"mask_ratio": 1.0}, r"`mask_ratio` \(=1.0\) must be in \(0, 1\)"),
        ({"fusion_stages": ["stage3"]}, r"`fusion_stages` \(=\['stage3'\]\) must be some of \['stage1', 'stage2'\]"),
        ({"target_type": "pixels"}, r"`target_type` \(='pixels'\) must be one of"),
        ({"patch_size": 8}, r"`patch_size` \(=8\) must be left out: give `patch_sizes`"),
        ({"with_fuse": True}, r"`with_fuse` \(=True\) must be left out: give `fusion_stages`"),
        ({"in_chans": 8}, r"`in_chans` \(=8\) must be left out: give `num_channels`"),
        ({"qkv_bias": False}, r"`qkv_bias` \(=False\) must be left out"),
        ({"layer_norm_eps": -1.0}, r"`layer_norm_eps` \(=-1.0\) must be finite and not negative"),
        ({"mlp_ratio": float("nan")}, r"`mlp_ratio` \(=nan\) must be finite"),
        ({"hidden_act": "foo"}, r"`hidden_act` \(='foo'\) must be one of gelu, "),
    ],
)
def test_settings_that_break_a_rule_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small_convmae_config(**settings)


def test_settings_that_follow_from_others_follow_them():
    config = ConvMAEConfig.from_dict(ConvMAEConfig().to_dict(), patch_sizes=[2, 2, 2], num_visible_sets=2)
    assert (config.cell_size, config.mask_ratio) == (8, 0.5)
    with pytest.raises(ValueError, match=r"`name` \(='huge'\) must be one of tiny, small, base"):
        ConvMAEConfig.from_size("huge")


# --- Positions --------------------------------------------------------------------------------------------------------


def test_positions_are_those_of_mae():
    config = small_convmae_config(image_size=224, hidden_sizes=[8, 12, 32])
    model = ConvMAEForPreTraining(config)
    ours = model.convmae.encoder.stages[2].position_embeddings.weight[0]
    of_rows, of_columns = build_2d_sinusoidal_position_embedding(14, 14, 32).chunk(2, dim=1)
    torch.testing.assert_close(ours, torch.cat([of_columns, of_rows], dim=1), rtol=0, atol=1e-6)  # MAE's order
    classifier = ConvMAEForImageClassification(config)
    assert torch.equal(classifier.convmae.encoder.stages[2].position_embeddings.weight[0], ours)
    assert "convmae.encoder.stages.2.position_embeddings.weight" in dict(classifier.named_parameters())
    assert not [name for name, _ in model.named_parameters() if "position" in name]


def test_positions_of_other_grids_are_computed_where_fixed_and_interpolated_where_learned():
    fixed, learned = PositionEmbeddings(64, 16, 8, learned=False), PositionEmbeddings(64, 16, 8, learned=True)
    assert_close(fixed(6, 10), PositionEmbeddings((96, 160), 16, 8, learned=False).initial_weight())
    weight = torch.randn(1, 16, 8)
    learned.weight.data.copy_(weight)
    expected = F.interpolate(weight.mT.reshape(1, 8, 4, 4), size=(6, 10), mode="bicubic")
    assert_close(learned(6, 10), expected.flatten(2).mT)
    assert torch.equal(learned(4, 4), weight)
    learned.set_image_size((96, 160))
    assert_close(learned(6, 10), expected.flatten(2).mT)


# --- Models -----------------------------------------------------------------------------------------------------------


@MODELS
def test_saved_model_loads_with_equal_outputs(model_class, tmp_path):
    model, inputs = small_model(model_class), make_inputs(model_class)
    model.save_pretrained(tmp_path)
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    for actual, expected in zip(tensors(loaded(**inputs)), tensors(model(**inputs)), strict=True):
        assert torch.equal(actual, expected)


@MODELS
def test_every_parameter_gets_a_gradient_with_and_without_checkpointing(model_class):
    keywords = {"add_pooling_layer": False} if model_class is ConvMAEModel else {}
    model, inputs = awake(model_class(small_convmae_config(), **keywords)).train(), make_inputs(model_class)
    twin = copy.deepcopy(model)
    twin.activation_checkpointing_enable()
    for m in (model, twin):
        output = m(**inputs)
        value = output.loss if model_class is ConvMAEForPreTraining else output[0]
        (value if torch.is_tensor(value) else value[0]).square().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None and parameter.grad.any(), name
        assert_close(other.grad, parameter.grad)


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (100, 70), (96, 160)])
def test_classifier_and_backbone_take_images_of_any_size(size):
    x, classifier = torch.randn(2, 3, *size), small_model(ConvMAEForImageClassification)
    assert classifier(x).logits.shape == (2, 5)
    backbone = ConvMAEBackbone(small_convmae_config(out_features=["stage1", "stage2", "stage3"]))
    shapes = [tuple(map_.shape) for map_ in backbone(x).feature_maps]
    assert shapes == [(2, dim, size[0] // side, size[1] // side) for dim, side in ((8, 4), (12, 8), (16, 16))]


@pytest.mark.parametrize("num_sets", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_pretraining_compiles_as_one_graph(num_sets):
    model = small_model(depths=[1, 1, 1], decoder_num_hidden_layers=1, num_visible_sets=num_sets)
    inputs = make_inputs(ConvMAEForPreTraining)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
    assert_close(compiled(**inputs).loss, model(**inputs).loss)


@pytest.mark.parametrize("num_sets", [1, 3])
@pytest.mark.parametrize("stage", [0, 2])
def test_drop_path_drops_the_branches_of_whole_views(stage, num_sets):
    """A view of which the branch is dropped leaves the block as it came; of any other, the branch counts double."""
    model = small_model(num_visible_sets=num_sets)
    layer, seen = model.convmae.encoder.stages[stage].layers[0], []
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.append(inputs))
    model(**make_inputs(ConvMAEForPreTraining))
    handle.remove()
    x, where = seen[0]
    groups = where if stage == 2 else where.groups
    for parameter in layer.mlp.fc2.parameters():  # leaves the first branch alone
        nn.init.zeros_(parameter)
    branch = layer(x, where) - x
    layer.drop_path = ConvNextV2DropPath(0.5).train()
    counts = torch.zeros(2, 2 * num_sets)  # how often each view was kept, and dropped
    for _ in range(20):
        parts = split_by_views(layer(x, where) - x, groups)
        for view, (part, full) in enumerate(zip(parts, split_by_views(branch, groups), strict=True)):
            is_dropped = not part.any()
            assert is_dropped or difference(part, 2 * full) < 1e-4
            counts[int(is_dropped), view] += 1
    assert counts.all()


def split_by_views(x, groups):
    """The rows, or packed cells, of each view."""
    return x.split([size for views, size in groups for _ in range(views)])


def test_drop_path_rates_rise_to_that_of_the_configuration():
    model = small_model(drop_path_rate=0.5)
    rates = [m.drop_prob for m in model.convmae.modules() if type(m).__name__ == "ConvNextV2DropPath"]
    assert rates == pytest.approx([0.125, 0.25, 0.375, 0.5])


@MODELS
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_compute_in_other_precisions(model_class, dtype):
    model, inputs = small_model(model_class).to(dtype), make_inputs(model_class)
    output = model(**{**inputs, "pixel_values": inputs["pixel_values"].to(dtype)})
    kept = torch.float32 if dtype == torch.bfloat16 else dtype  # of losses
    assert {t.dtype for t in tensors(output) if t.is_floating_point()} <= {dtype, kept}
    with torch.autocast("cpu", torch.bfloat16):
        value = small_model(model_class)(**inputs)[0]
    (value if torch.is_tensor(value) else value[0]).float().sum().backward()


@MODELS
def test_the_residuals_of_the_transformers_stay_in_single_precision_under_autocast(model_class):
    model, inputs, found = small_model(model_class), make_inputs(model_class), []
    for module in model.modules():
        if isinstance(module, ConvMAELayer):
            module.register_forward_pre_hook(lambda module, args: found.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs)
    assert found and set(found) == {torch.float32}


@MODELS
def test_eager_attention_computes_the_same(model_class, monkeypatch):
    windows = {"window_size": 3, "window_block_indices": [1], "use_relative_position_bias": True}
    settings = {} if model_class is ConvMAEForPreTraining else windows
    model, inputs = small_model(model_class, **settings), make_inputs(model_class)
    expected = tensors(model(**inputs))
    model.set_attn_implementation("eager")
    monkeypatch.setitem(ATTENTION, "sdpa", None)
    for actual, wanted in zip(tensors(model(**inputs)), expected, strict=True):
        assert_close(actual, wanted)


def test_eager_attention_alone_has_gradients_of_gradients_on_a_cpu():
    attention = small_model(ConvMAEModel).double().encoder.stages[2].layers[0].attn
    tokens = torch.randn(1, 3, 16, dtype=torch.double, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented"):
        torch.autograd.gradgradcheck(attention, tokens)
    attention.config._attn_implementation = "eager"
    assert torch.autograd.gradgradcheck(attention, tokens)


@pytest.mark.parametrize("name", ["flash_attention_9", "flash_attention_2", "flex_attention", "paged|eager", "written"])
def test_attention_that_these_models_do_not_have_is_refused(name, tmp_path):
    """Those of Transformers, and one that a user has registered with it."""
    transformers.AttentionInterface.register("written", lambda *_: pytest.fail("attends"))
    model, x = small_model(ConvMAEModel), torch.randn(1, 3, 64, 64)
    model.save_pretrained(tmp_path)
    try:
        with pytest.raises((ValueError, ImportError), match=r"attn_implementation|[Aa]ttention"):
            ConvMAEModel.from_pretrained(tmp_path, attn_implementation=name)
        with pytest.raises((ValueError, ImportError), match=r"attn_implementation|[Aa]ttention"):
            model.set_attn_implementation(name)
        model.config._attn_implementation_internal = name  # as whoever goes round the check
        with pytest.raises(ValueError, match=r"`attn_implementation` .* must be one of sdpa, eager for a ConvMAE"):
            model(x)
    finally:
        del transformers.AttentionInterface._global_mapping["written"]


@MODELS
def test_a_batch_without_images_gives_no_maps_or_is_refused(model_class):
    model, x = small_model(model_class), torch.randn(0, 3, 64, 96)
    if model_class is ConvMAEForPreTraining:
        with pytest.raises(ValueError, match=r"`pixel_values` \(of shape \(0, 3, 64, 96\)\) must hold an image"):
            model(x)
        return
    one = tensors(model(torch.randn(1, 3, 64, 96)))
    found = tensors(model(x))
    assert [tensor.shape for tensor in found] == [(0, *tensor.shape[1:]) for tensor in one]
    sum(tensor.sum() for tensor in found).backward()


@MODELS
@pytest.mark.parametrize("config", [None, {}, small_config()], ids=lambda config: type(config).__name__)
def test_another_configuration_is_refused(model_class, config):
    with pytest.raises(TypeError, match=rf"`config` \(a {type(config).__name__}\) must be a ConvMAEConfig for ConvMAE"):
        model_class(config)


def test_a_fresh_model_predicts_no_better_than_the_mean():
    model = ConvMAEForPreTraining(ConvMAEConfig.from_size("tiny", image_size=96)).eval()
    assert 0.9 <= model(torch.randn(8, 3, 96, 96)).loss.item() <= 1.6


def test_initial_weights_are_the_official_ones():
    model = ConvMAEForPreTraining(small_convmae_config(hidden_sizes=[32, 48, 64], decoder_hidden_size=64))
    conv_layer, stage = model.convmae.encoder.stages[0].layers[0], model.convmae.encoder.stages[2]
    bounds = {conv_layer.conv1: 32**-0.5, conv_layer.attn: 0.2, conv_layer.mlp.fc2: 128**-0.5}
    bounds |= {stage.layers[0].attn.qkv: (6 / 256) ** 0.5, stage.proj: (6 / 128) ** 0.5}
    bounds[stage.patch_embed.proj] = (6 / (64 + 4 * 48)) ** 0.5  # as a linear layer
    for module, bound in bounds.items():
        assert 0.97 * bound <= module.weight.abs().max() <= bound
        assert isinstance(module, nn.Conv2d | nn.Linear)
    assert conv_layer.conv1.bias.any() and not stage.proj.bias.any()
    assert model.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.5)


# --- Loading ----------------------------------------------------------------------------------------------------------


def test_a_pretrained_folder_loads_into_the_other_models(tmp_path):
    model, x = small_model(), torch.randn(2, 3, 64, 64)
    model.save_pretrained(tmp_path)
    expected = model.convmae(x).last_hidden_state
    heads = {ConvMAEModel: (), ConvMAEBackbone: ("hidden_states_norms.stage3",)}
    heads[ConvMAEForImageClassification] = ("convmae.layernorm", "classifier")
    for model_class, names in heads.items():
        loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert report["missing_keys"] == {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
        assert not report["unexpected_keys"] and not report["mismatched_keys"]
        encoder = getattr(loaded, "convmae", loaded)
        assert torch.equal(encoder.encoder(encoder.embeddings(x))[-1], expected)


def test_auto_classes_know_the_type(tmp_path):
    small_model().save_pretrained(tmp_path)
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is ConvMAEConfig
    assert type(transformers.AutoModel.from_pretrained(tmp_path)) is ConvMAEModel
    assert type(transformers.AutoModelForPreTraining.from_pretrained(tmp_path)) is ConvMAEForPreTraining
    auto = transformers.AutoModelForImageClassification
    assert type(auto.from_pretrained(tmp_path)) is ConvMAEForImageClassification
    assert type(transformers.AutoBackbone.from_config(small_convmae_config())) is ConvMAEBackbone


@pytest.mark.parametrize("model_class", [ConvMAEModel, ConvMAEForPreTraining])
def test_weights_adapt_to_other_channels_and_image_sizes(model_class, tmp_path):
    small_model().save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, num_channels=1, image_size=(96, 160))
    assert model.config.num_channels == 1 and tuple(model.config.image_size) == (96, 160)
    positions = getattr(model, "convmae", model).encoder.stages[2].position_embeddings
    assert positions.weight.shape == (1, 60, 16)
    stored = model_class.from_pretrained(tmp_path)
    grey = torch.randn(2, 1, 96, 160)
    given = {"noise": torch.rand(2, 60), "return_loss": False} if model_class is ConvMAEForPreTraining else {}
    actual, expected = model(grey, **given)[0], stored(grey.repeat(1, 3, 1, 1), **given)[0]
    if model_class is ConvMAEForPreTraining:  # one channel's prediction is the mean of three
        expected = expected.unflatten(-1, (-1, 3)).mean(-1)
    assert_close(actual, expected)


@pytest.mark.parametrize("image_size", [64, (96, 160)])
def test_pretraining_does_not_start_from_the_learned_positions_of_a_fine_tuned_model(image_size, tmp_path, caplog):
    small_model(ConvMAEForImageClassification).save_pretrained(tmp_path)
    model = ConvMAEForPreTraining.from_pretrained(tmp_path, image_size=image_size)
    actual = model.convmae.encoder.stages[2].position_embeddings.weight
    assert_close(actual, PositionEmbeddings(image_size, 16, 16, learned=False).initial_weight())
    assert f"`{tmp_path}` has learned position embeddings" in caplog.text


def test_fixed_positions_that_were_stored_in_half_precision_are_no_learned_ones(tmp_path, caplog):
    small_model().bfloat16().save_pretrained(tmp_path)
    stored = ConvMAEForPreTraining.from_pretrained(tmp_path, dtype=torch.float32)
    actual = stored.convmae.encoder.stages[2].position_embeddings.weight
    assert torch.equal(actual, actual.bfloat16().float()) and not caplog.text


def test_positions_of_pretraining_that_are_those_of_another_grid_are_named(tmp_path, caplog):
    small_model(ConvMAEForPreTraining, image_size=(64, 96)).save_pretrained(tmp_path)
    ConvMAEForPreTraining.from_pretrained(tmp_path)
    assert not caplog.text
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "image_size": [96, 64]}))  # as many tokens
    ConvMAEForPreTraining.from_pretrained(tmp_path)
    assert "position embeddings of the encoder and of the decoder" in caplog.text
    assert "`image_size` (=[96, 64])" in caplog.text


@pytest.mark.parametrize("model_class", [ConvMAEModel, ConvMAEBackbone, ConvMAEForImageClassification])
@pytest.mark.parametrize("name", ["noise", "bool_masked_pos"])
def test_masks_that_would_hide_nothing_are_refused(name, model_class):
    model = model_class(small_convmae_config())
    with pytest.raises(TypeError, match=rf"`{name}` is not a keyword of `{model_class.__name__}.forward`, which hides"):
        model(torch.randn(1, 3, 64, 64), **{name: torch.ones(1, 4)})


def test_a_folder_of_another_family_or_size_is_refused(tmp_path):
    awake(ConvNextV2ForImageClassification(small_config())).save_pretrained(tmp_path / "convnext")
    small_model().save_pretrained(tmp_path / "convmae")
    with pytest.raises(ValueError, match="must be a `convmae` model"):
        ConvMAEModel.from_pretrained(tmp_path / "convnext")
    with pytest.raises(ValueError, match="must hold a model of the size of the configuration"):
        ConvMAEModel.from_pretrained(tmp_path / "convmae", depths=[1, 2, 3])


# --- Masks ------------------------------------------------------------------------------------------------------------


def test_a_cell_of_several_tokens_is_hidden_as_a_whole():
    model, noise = small_model(cell_size=32, mask_ratio=0.5), torch.rand(2, 6)
    output = model(torch.randn(2, 3, 64, 96), noise=noise)
    hidden = (noise.argsort(1).argsort(1) >= 3).float().view(2, 1, 2, 3)
    assert torch.equal(output.mask.view(2, 1, 4, 6), F.interpolate(hidden, scale_factor=2))
    assert output.logits.shape == (2, 24, 16 * 16 * 3)
    given = model(torch.randn(2, 3, 64, 96), bool_masked_pos=hidden[:, 0].bool())
    assert torch.equal(given.mask, output.mask)


def test_the_official_number_of_tokens_is_kept():
    output = small_model()(torch.randn(1, 3, 224, 224))
    assert output.mask.shape == (1, 196) and output.mask.sum() == 147


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        ((2, 3, 64, 72), {}, "sides that are multiples of 32"),
        ((2, 4, 64, 64), {}, r"`num_channels` \(=3\)"),
        ((2, 3, 64, 64), {"noise": torch.rand(2, 16)}, r"`noise` .* must be of shape \(2, 4\)"),
        ((2, 3, 64, 64), {"bool_masked_pos": torch.ones(2, 4).bool()}, "at least one visible and one hidden"),
    ],
)
def test_what_does_not_fit_is_refused(shape, given, message):
    with pytest.raises(ValueError, match=message):
        small_model(cell_size=32)(torch.randn(shape), **given)


def test_patches_and_reconstructions_are_images_again():
    model, x = small_model(), torch.randn(2, 3, 64, 64)
    assert torch.equal(model.unpatchify(model.patchify(x)), x)
    output = model(x)
    hidden = F.interpolate(output.mask.view(2, 1, 4, 4), scale_factor=16).bool().expand_as(x)
    painted = model.reconstruct(x, output.logits, output.mask)
    assert torch.equal(painted[~hidden], x[~hidden]) and not torch.isclose(painted[hidden], x[hidden]).all()


# --- Features of a teacher --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_sets", [1, 2])
@pytest.mark.parametrize("where", ["visible", "masked"])
def test_features_are_predicted_of_the_tokens_that_are_asked_for(where, num_sets):
    settings = {"target_type": "pixel+feature", "feature_target_on": where, "feature_loss": "mse"}
    model = small_model(feature_target_dim=6, num_visible_sets=num_sets, cell_size=32, **settings)
    targets = torch.randn(2, 6, 4, 6)
    output = model(torch.randn(2, 3, 64, 96), noise=torch.rand(2, 6), feature_targets=targets)
    masked, wanted = output.mask.bool().unflatten(0, (num_sets, 2)), targets.flatten(2).mT
    if where == "masked":
        errors = (output.feature_logits.unflatten(0, (num_sets, 2)) - wanted).square().mean(-1)
        expected = errors[masked].mean()
    else:
        seen = ~masked.all(0)
        expected = (output.feature_logits - wanted)[seen].square().mean()
    assert_close(output.feature_loss, expected)
    assert_close(output.loss, output.pixel_loss + output.feature_loss)
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.decoder.pred_feature.weight)
    assert difference(twin(torch.randn(2, 3, 64, 96)).feature_logits, output.feature_logits) > 0.1
