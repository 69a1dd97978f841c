"""Layouts of ConvMAE: names and shapes written out by hand, the same numbers there and back, the official formulas."""

import math
import re

import pytest
import torch
from torch import Tensor

from conversion import official_convmae
from conversion.families import CONVMAE
from conversion.layouts import LAYOUTS
from conversion.model_weights import from_state_dict, to_state_dict
from conversion.targets import check_target
from hf_convnextv2 import ConvMAEBackbone, ConvMAEForImageClassification, ConvMAEForPreTraining, ConvMAEModel
from tests import dense_convmae
from tests.photographs import message_of
from tests.small_models import assert_close, awake, difference, small_convmae_config

Shapes = dict[str, tuple[int, ...]]
HEADS = {"num_attention_heads": 2, "decoder_num_attention_heads": 4}
SMALL = {"widths": (8, 12, 16), "depths": (1, 2, 2), "num_tokens": 16}
BASE = {"widths": (256, 384, 768), "depths": (2, 2, 11), "num_tokens": 196}


def layer(name: str, *weight: int) -> Shapes:
    """A weight, and a bias as long as its first axis."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def conv_block(name: str, dim: int) -> Shapes:
    return {
        **layer(f"{name}.norm1", dim),
        **layer(f"{name}.conv1", dim, dim, 1, 1),
        **layer(f"{name}.conv2", dim, dim, 1, 1),
        **layer(f"{name}.attn", dim, 1, 5, 5),
        **layer(f"{name}.norm2", dim),
        **layer(f"{name}.mlp.fc1", 4 * dim, dim, 1, 1),
        **layer(f"{name}.mlp.fc2", dim, 4 * dim, 1, 1),
    }


def transformer_block(name: str, dim: int) -> Shapes:
    return {
        **layer(f"{name}.norm1", dim),
        **layer(f"{name}.attn.qkv", 3 * dim, dim),
        **layer(f"{name}.attn.proj", dim, dim),
        **layer(f"{name}.norm2", dim),
        **layer(f"{name}.mlp.fc1", 4 * dim, dim),
        **layer(f"{name}.mlp.fc2", dim, 4 * dim),
    }


def encoder(widths: tuple[int, ...], depths: tuple[int, ...], num_tokens: int) -> Shapes:
    """The official encoder, as its modules are written."""
    first, second, third = widths
    shapes = {
        **layer("patch_embed1.proj", first, 3, 4, 4),
        **layer("patch_embed1.norm", first),
        **layer("patch_embed2.proj", second, first, 2, 2),
        **layer("patch_embed2.norm", second),
        **layer("patch_embed3.proj", third, second, 2, 2),
        **layer("patch_embed3.norm", third),
        **layer("patch_embed4", third, third),
        "pos_embed": (1, num_tokens, third),
    }
    for stage, block in enumerate((conv_block, conv_block, transformer_block)):
        for index in range(depths[stage]):
            shapes |= block(f"blocks{stage + 1}.{index}", widths[stage])
    return shapes


def of_encoder(widths: tuple[int, ...]) -> Shapes:
    """What only the decoder sees of the official pre-training model's encoder."""
    first, second, third = widths
    return {
        **layer("stage1_output_decode", third, first, 4, 4),
        **layer("stage2_output_decode", third, second, 2, 2),
        **layer("norm", third),
    }


def decoder(width: int, dim: int, depth: int, num_tokens: int) -> Shapes:
    shapes = {
        **layer("decoder_embed", dim, width),
        "mask_token": (1, 1, dim),
        "decoder_pos_embed": (1, num_tokens, dim),
    }
    for index in range(depth):
        shapes |= transformer_block(f"decoder_blocks.{index}", dim)
    return {**shapes, **layer("decoder_norm", dim), **layer("decoder_pred", 16 * 16 * 3, dim)}


PRETRAINING = {**encoder(**SMALL), **of_encoder(SMALL["widths"]), **decoder(16, 16, 2, 16)}
CLASSIFIER = {**encoder(**SMALL), **layer("fc_norm", 16), **layer("head", 5, 16)}
EASYCV = {
    **{f"encoder.{name}": shape for name, shape in {**encoder(**SMALL), **of_encoder(SMALL["widths"])}.items()},
    **{f"decoder.{name}": shape for name, shape in decoder(16, 16, 2, 16).items()},
}
EASYCV_CLASSIFIER = {
    **{f"backbone.{name}": shape for name, shape in {**encoder(**SMALL), **layer("fc_norm", 16)}.items()},
    **layer("head_0.fc_cls", 5, 16),
}
CASES = {
    "convmae-official": [("convmae", PRETRAINING), ("classifier", CLASSIFIER)],
    "convmae-easycv": [("convmae", EASYCV)],
    "convmae-easycv-classifier": [("classifier", EASYCV_CLASSIFIER)],
}
EACH_CASE = pytest.mark.parametrize(
    ("layout", "kind", "shapes"), [(layout, *case) for layout, cases in CASES.items() for case in cases]
)
# The official names, as regular expressions, and ours.
RENAMED = {
    r"patch_embed1\.proj\.": r"embeddings.patch_embeddings.",
    r"patch_embed1\.norm\.": r"embeddings.layernorm.",
    r"patch_embed2\.": r"encoder.stages.1.patch_embed.",
    r"patch_embed3\.": r"encoder.stages.2.patch_embed.",
    r"patch_embed4\.": r"encoder.stages.2.proj.",
    r"pos_embed$": r"encoder.stages.2.position_embeddings.weight",
    r"blocks1\.(\d)\.": r"encoder.stages.0.layers.\1.",
    r"blocks2\.(\d)\.": r"encoder.stages.1.layers.\1.",
    r"blocks3\.(\d)\.": r"encoder.stages.2.layers.\1.",
    r"stage([12])_output_decode\.": r"decoder.fusion.stage\1.",
    r"norm\.": r"decoder.norm.",
    r"decoder_embed\.": r"decoder.embed.",
    r"mask_token$": r"decoder.mask_token",
    r"decoder_pos_embed$": r"decoder.position_embeddings.weight",
    r"decoder_blocks\.": r"decoder.layers.",
    r"decoder_norm\.": r"decoder.layernorm.",
    r"decoder_pred\.": r"decoder.pred.",
    r"fc_norm\.": r"layernorm.",
    r"(head|head_0\.fc_cls)\.": r"classifier.",
}


def our_name(name: str) -> str:
    """Ours of an official name, which EasyCV may have put a prefix before."""
    name = re.sub(r"^(encoder|backbone|decoder)\.", "", name)
    found = [re.sub(rf"^{theirs}", ours, name) for theirs, ours in RENAMED.items() if re.match(theirs, name)]
    assert len(found) == 1, (name, found)
    return found[0]


def random(shapes: Shapes, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Numbers of which no two are the same; norms around 1."""
    return {
        name: (torch.randn(shape) * 0.2 + (1 if re.search(r"norm\d?\.weight$", name) else 0)).to(dtype)
        for name, shape in shapes.items()
    }


def model_of(stored: dict[str, Tensor]):
    """The model with the converted weights."""
    weights = from_state_dict(stored, HEADS)
    model = CONVMAE.models[weights.kind](weights.config).eval()
    model.load_state_dict(to_state_dict(weights, LAYOUTS["convmae"])[0])
    return model


# --- Names and shapes -------------------------------------------------------------------------------------------------


@EACH_CASE
def test_every_tensor_has_our_name_and_the_same_bits(layout, kind, shapes):
    stored = random(shapes)
    weights = from_state_dict(stored, HEADS)
    assert weights.layout.name == layout and weights.kind == kind
    assert {our_name(name) for name in stored} == set(weights.tensors)
    for name, tensor in stored.items():
        assert torch.equal(weights.tensors[our_name(name)].flatten(), tensor.flatten()), name
    config = weights.config
    assert (config.hidden_sizes, config.depths, config.patch_sizes) == ([8, 12, 16], [1, 2, 2], [4, 2, 2])
    assert (config.image_size, config.num_channels, config.mlp_ratio) == (64, 3, 4)
    assert config.num_visible_sets == (4 if layout == "convmae-easycv" else 1) and config.mask_ratio == 0.75
    if kind == "classifier":
        assert config.num_labels == 5
    else:
        assert (config.decoder_hidden_size, config.decoder_num_hidden_layers) == (16, 2)


@EACH_CASE
def test_names_and_shapes_are_those_written_out(layout, kind, shapes):
    model_class = CONVMAE.models[kind]
    model = awake(model_class(small_convmae_config()))
    weights = from_state_dict(model.state_dict(), model.config.to_dict())
    stored, left_out = to_state_dict(weights, LAYOUTS[layout])
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == shapes and not left_out


def test_the_base_model_has_the_published_numbers_of_parameters():
    official = {**encoder(**BASE), **of_encoder(BASE["widths"]), **decoder(768, 512, 8, 196)}
    with torch.device("meta"):
        weights = from_state_dict({name: torch.empty(shape) for name, shape in official.items()})
        classifier = {**encoder(**BASE), **layer("fc_norm", 768), **layer("head", 1000, 768)}
        classifier = from_state_dict({name: torch.empty(shape) for name, shape in classifier.items()})
    sizes = {name: tensor.numel() for name, tensor in weights.tensors.items()}
    fusion = sum(size for name, size in sizes.items() if name.startswith("decoder.fusion."))
    decoding = sum(size for name, size in sizes.items() if name.startswith("decoder.")) - fusion - 2 * 768
    assert sum(sizes.values()) == 115_041_408
    assert (fusion, decoding) == (4_326_912, 26_108_672)
    assert sum(sizes.values()) - fusion - decoding == 84_605_824  # with the norm after the fusion
    assert sum(tensor.numel() for tensor in classifier.tensors.values()) == 85_374_824
    config = weights.config
    assert (config.num_attention_heads, config.decoder_num_attention_heads, config.image_size) == (12, 16, 224)


@pytest.mark.parametrize(
    "overrides", [{"patch_sizes": [2, 4, 1]}, {"num_channels": 5, "image_size": 96, "mlp_ratio": 2}]
)
def test_strides_channels_image_size_and_mlp_ratio_follow_from_the_shapes(overrides):
    model = ConvMAEForImageClassification(small_convmae_config(**overrides))
    stored, _ = to_state_dict(from_state_dict(model.state_dict(), model.config.to_dict()), LAYOUTS["convmae-official"])
    config = from_state_dict(stored, HEADS).config
    assert {name: getattr(config, name) for name in overrides} == overrides


# --- There and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shapes", [PRETRAINING, CLASSIFIER], ids=["pretraining", "classifier"])
def test_there_and_back_again_every_bit_is_the_same(shapes, dtype):
    official = random(shapes, dtype)
    weights = from_state_dict(official, HEADS)
    easycv = "convmae-easycv" if weights.kind == "convmae" else "convmae-easycv-classifier"
    for layout in ("convmae", easycv):
        stored, left_out = to_state_dict(weights, LAYOUTS[layout])
        assert not left_out and len(stored) == len(official)
        back, _ = to_state_dict(from_state_dict(stored, HEADS), LAYOUTS["convmae-official"])
        assert back.keys() == official.keys()
        for name, tensor in official.items():
            assert back[name].dtype == dtype and torch.equal(back[name], tensor), (layout, name)
            assert back[name].is_contiguous()


@torch.no_grad()
def test_logits_are_those_of_the_official_formulas():
    stored, x = random(CLASSIFIER), torch.randn(2, 3, 64, 64)
    model = model_of(stored)
    logits = model(x).logits
    assert_close(logits, official_convmae.logits(stored, x, num_heads=2))
    exchanged = {
        re.sub("conv[12]", lambda found: {"conv1": "conv2"}.get(found[0], "conv1"), n): t for n, t in stored.items()
    }
    assert difference(official_convmae.logits(exchanged, x, num_heads=2), logits) > 0.01
    assert difference(official_convmae.logits(stored, x, num_heads=4), logits) > 0.001


@torch.no_grad()
def test_predicted_tokens_are_those_of_the_official_formulas_and_of_dense_passes():
    stored, x = random(PRETRAINING), torch.randn(2, 3, 64, 64)
    # Those of the official code are sines and cosines, which the dense passes compute.
    stored |= dict.fromkeys(("pos_embed", "decoder_pos_embed"), dense_convmae.positions(4, 4, 16))
    model, hidden = model_of(stored), official_convmae.hidden_tokens(16).repeat(2, 1)
    logits = model(x, bool_masked_pos=hidden).logits
    expected = official_convmae.predicted_tokens(stored, x, hidden, num_heads=2, decoder_num_heads=4)
    assert hidden.sum(1).tolist() == [12, 12]
    assert_close(logits, expected)
    assert_close(logits, dense_convmae.decode(model, dense_convmae.encode(model, x, hidden), hidden))
    others = official_convmae.predicted_tokens(stored, x, hidden.roll(1, 1), num_heads=2, decoder_num_heads=4)
    assert difference(logits, others) > 0.01


# --- Encoders and backbones -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_encoder_without_a_decoder_leaves_out_what_only_the_decoder_sees():
    stored, x = random({**encoder(**SMALL), **of_encoder(SMALL["widths"])}), torch.randn(1, 3, 64, 64)
    weights = from_state_dict(stored, HEADS)
    assert weights.kind == "encoder" and "stage1_output_decode.weight" in weights.notes[0]
    assert "norm.bias, which only a decoder sees" in weights.notes[0]
    model = ConvMAEModel(weights.config, add_pooling_layer=False).eval()
    model.load_state_dict(weights.tensors)
    assert_close(model(x).last_hidden_state, official_convmae.last_map(stored, x, num_heads=2))
    easycv, left_out = to_state_dict(weights, LAYOUTS["convmae-easycv"])
    assert easycv.keys() == encoder(**SMALL).keys() and not left_out  # without prefix, as EasyCV's backbones start from


def test_a_backbone_is_read_as_an_encoder():
    model = ConvMAEBackbone(small_convmae_config(out_features=["stage2", "stage3"]))
    weights = from_state_dict(model.state_dict(), model.config.to_dict())
    assert weights.kind == "encoder" and "hidden_states_norms.stage2.weight" in weights.notes[0]
    stored, _ = to_state_dict(weights, LAYOUTS["convmae-official"])
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == encoder(**SMALL)


# --- What does not fit ------------------------------------------------------------------------------------------------


@EACH_CASE
def test_a_parameter_missing_unexpected_or_misshapen_is_named(layout, kind, shapes):
    stored = random(shapes)

    def message(changed: dict[str, Tensor]) -> str:
        return message_of(lambda: from_state_dict(changed, HEADS))

    names = list(stored)
    for lost, wrong in zip(names, names[2:] + names[:2], strict=True):
        said = message({n: torch.ones(3, 2) if n == wrong else t for n, t in stored.items() if n != lost})
        assert f"1 missing: {lost}" in said, said
        if not (kind == "classifier" and wrong.endswith("pos_embed")):  # which alone tells the size of the images
            assert f"1 of the wrong shape: {wrong} (3, 2) instead of {shapes[wrong]}" in said, said
    for strange in ("blocks1.0.gamma_1", "cls_token", "blocks4.0.norm1.weight", "optimizer"):
        assert f"1 unexpected: {strange}" in message({**stored, strange: torch.ones(1)})


def test_a_whole_block_too_many_or_too_few_is_named():
    stored = random(PRETRAINING)
    gap = {name: tensor for name, tensor in stored.items() if not name.startswith("blocks3.0.")}
    assert "12 missing: blocks3.0.norm1.weight" in message_of(lambda: from_state_dict(gap, HEADS))
    fusion = {name: tensor for name, tensor in stored.items() if not name.startswith("stage1_output")}
    assert "2 missing: stage1_output_decode.weight" in message_of(lambda: from_state_dict(fusion, HEADS))


def test_a_square_grid_is_needed_where_no_configuration_tells_the_sides():
    stored = random({**CLASSIFIER, "pos_embed": (1, 15, 16)})
    assert "those of 15 tokens, which fill no square" in message_of(lambda: from_state_dict(stored, HEADS))
    model = ConvMAEForImageClassification(small_convmae_config(image_size=[48, 80]))
    weights = from_state_dict(model.state_dict(), model.config.to_dict())
    assert weights.config.image_size == [48, 80] and math.prod(weights.tensors["encoder.stages.2.proj.weight"].shape)


@pytest.mark.parametrize("to", ["official", "easycv"])
@pytest.mark.parametrize("create", [ConvMAEForImageClassification, ConvMAEForPreTraining])
def test_a_grid_that_is_no_square_is_not_written_where_only_its_number_of_tokens_is_stored(create, to):
    model = create(small_convmae_config(image_size=[64, 144]))  # 4 x 9 tokens, as many as 6 x 6
    weights = from_state_dict(model.state_dict(), model.config.to_dict())
    assert "`image_size` (=[64, 144]) must be square" in message_of(lambda: check_target(weights, to))
    check_target(weights, "ours")
    square = create(small_convmae_config(image_size=96))
    check_target(from_state_dict(square.state_dict(), square.config.to_dict()), to)


def test_settings_of_pre_training_that_a_layout_does_not_store_are_noted():
    settings = {"cell_size": 32, "mask_ratio": 0.5, "norm_pix_loss": False, "num_visible_sets": 2}
    model = ConvMAEForPreTraining(small_convmae_config(image_size=96, **settings))
    weights = from_state_dict(model.state_dict(), model.config.to_dict())
    check_target(weights, "official")
    assert all(
        f"`{name}` is {value}, which official does not store" in weights.notes for name, value in settings.items()
    )
    usual = ConvMAEForPreTraining(small_convmae_config())
    weights = from_state_dict(usual.state_dict(), usual.config.to_dict())
    check_target(weights, "official")
    assert not any(name in note for note in weights.notes for name in settings)


def test_heads_that_no_size_tells_must_be_given():
    message = message_of(lambda: from_state_dict(random(CLASSIFIER)))
    assert "`--num_attention_heads` must be given for a ConvMAE of widths [8, 12, 16]" in message
    message = message_of(lambda: from_state_dict(random(PRETRAINING), {"num_attention_heads": 2}))
    assert "`--decoder_num_attention_heads` must be given" in message


def test_pre_training_with_features_is_stored_without_what_predicts_them():
    model = ConvMAEForPreTraining(small_convmae_config(target_type="pixel+feature"))
    weights = from_state_dict(model.state_dict(), model.config.to_dict())
    assert to_state_dict(weights, LAYOUTS["convmae"])[1] == []
    left_out = to_state_dict(weights, LAYOUTS["convmae-official"])[1]
    assert left_out == ["decoder.pred_feature.weight", "decoder.pred_feature.bias"]
