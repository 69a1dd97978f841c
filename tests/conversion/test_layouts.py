"""Layouts of stored weights: names written out by hand, the same numbers there and back, other libraries' answers."""

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from timm.models.convnext import checkpoint_filter_fn
from torch import Tensor

from conversion.families import CONVNEXTV2
from conversion.inferred_config import MODELS
from conversion.layouts import LAYOUTS, V1_LAYOUT, recognise_layout
from conversion.model_weights import ModelWeights, encoder_of, from_state_dict, to_state_dict, with_final_norm
from hf_convnextv2 import ConvNextV2ForImageClassification, ConvNextV2ForPreTraining, ConvNextV2Model
from hf_convnextv2.configuration_convnextv2 import SIZES
from tests.photographs import message_of
from tests.small_models import assert_close, small_config, small_fcmae_config

TWO_STAGES = {"hidden_sizes": [4, 8], "depths": [1, 2], "image_size": 32}
QUICK = ("atto", "tiny")  # timm stores one with 1x1 convolutions, the other with linear layers
EACH_SIZE = [size if size in QUICK else pytest.param(size, marks=pytest.mark.slow) for size in SIZES]


def dense(widths: tuple[int, int], patch: int, extra: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the dense official code for two stages of one and two blocks, as its modules are written."""
    first, second = widths
    shapes = {
        "downsample_layers.0.0.weight": (first, 3, patch, patch),
        "downsample_layers.0.0.bias": (first,),
        "downsample_layers.0.1.weight": (first,),
        "downsample_layers.0.1.bias": (first,),
        "downsample_layers.1.0.weight": (first,),
        "downsample_layers.1.0.bias": (first,),
        "downsample_layers.1.1.weight": (second, first, 2, 2),
        "downsample_layers.1.1.bias": (second,),
    }
    for block, width in (("0.0", first), ("1.0", second), ("1.1", second)):
        shapes |= {
            f"stages.{block}.dwconv.weight": (width, 1, 7, 7),
            f"stages.{block}.dwconv.bias": (width,),
            f"stages.{block}.norm.weight": (width,),
            f"stages.{block}.norm.bias": (width,),
            f"stages.{block}.pwconv1.weight": (4 * width, width),
            f"stages.{block}.pwconv1.bias": (4 * width,),
            f"stages.{block}.grn.gamma": (1, 1, 1, 4 * width),
            f"stages.{block}.grn.beta": (1, 1, 1, 4 * width),
            f"stages.{block}.pwconv2.weight": (width, 4 * width),
            f"stages.{block}.pwconv2.bias": (width,),
        }
    return shapes | extra


OFFICIAL = dense((4, 8), 4, {"norm.weight": (8,), "norm.bias": (8,), "head.weight": (5, 8), "head.bias": (5,)})
RELEASED = dense((4, 8), 4, {})
MINKOWSKI = {
    "mask_token": (1, 6, 1, 1),
    "encoder.downsample_layers.0.0.weight": (4, 3, 4, 4),
    "encoder.downsample_layers.0.0.bias": (4,),
    "encoder.downsample_layers.0.1.weight": (4,),
    "encoder.downsample_layers.0.1.bias": (4,),
    "encoder.downsample_layers.1.0.ln.weight": (4,),
    "encoder.downsample_layers.1.0.ln.bias": (4,),
    "encoder.downsample_layers.1.1.kernel": (4, 4, 8),
    "encoder.downsample_layers.1.1.bias": (1, 8),
    **{
        f"encoder.stages.{block}.{name}": shape
        for block, width in (("0.0", 4), ("1.0", 8), ("1.1", 8))
        for name, shape in {
            "dwconv.kernel": (49, width),
            "dwconv.bias": (1, width),
            "norm.ln.weight": (width,),
            "norm.ln.bias": (width,),
            "pwconv1.linear.weight": (4 * width, width),
            "pwconv1.linear.bias": (4 * width,),
            "pwconv2.linear.weight": (width, 4 * width),
            "pwconv2.linear.bias": (width,),
            "grn.gamma": (1, 4 * width),
            "grn.beta": (1, 4 * width),
        }.items()
    },
    "proj.weight": (6, 8, 1, 1),
    "proj.bias": (6,),
    "decoder.0.dwconv.weight": (6, 1, 7, 7),
    "decoder.0.dwconv.bias": (6,),
    "decoder.0.norm.weight": (6,),
    "decoder.0.norm.bias": (6,),
    "decoder.0.pwconv1.weight": (24, 6),
    "decoder.0.pwconv1.bias": (24,),
    "decoder.0.grn.gamma": (1, 1, 1, 24),
    "decoder.0.grn.beta": (1, 1, 1, 24),
    "decoder.0.pwconv2.weight": (6, 24),
    "decoder.0.pwconv2.bias": (6,),
    "pred.weight": (192, 6, 1, 1),
    "pred.bias": (192,),
}
RENAMED_BY_MMPRETRAIN = {"dwconv": "depthwise_conv", "pwconv": "pointwise_conv"}


def mmpretrain_names() -> dict[str, tuple[int, ...]]:
    """The same for mmpretrain's `ImageClassifier`, from the official names by its own few differences."""
    shapes = {}
    for name, shape in dense((4, 8), 4, {"norm1.weight": (8,), "norm1.bias": (8,)}).items():
        for old, new in RENAMED_BY_MMPRETRAIN.items():
            name = name.replace(old, new)
        shapes[f"backbone.{name}"] = shape[-1:] if ".grn." in name else shape
    return shapes | {"head.fc.weight": (5, 8), "head.fc.bias": (5,)}


def random_model(kind: str, dtype: torch.dtype = torch.float32, size: str | None = None) -> ModelWeights:
    """Random weights of a kind of model, none of them 0, as if read from a folder of Transformers."""
    model_class = MODELS[kind]
    if size is not None:
        config = model_class.config_class.from_size(size, num_labels=1000)
    elif kind == "fcmae":
        config = small_fcmae_config(**TWO_STAGES, decoder_hidden_size=6)
    else:
        config = small_config(**TWO_STAGES)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in model_class(config).state_dict().items()}
    # Not randn, which would take minutes for the largest size.
    values = {name: torch.empty(shape, dtype=dtype).uniform_(0.5, 1.5) for name, shape in shapes.items()}
    return from_state_dict(values, config.to_dict())


def random_timm(size: str) -> torch.nn.Module:
    """timm's model with noise on every parameter, GRN's included."""
    model = timm.create_model(f"convnextv2_{size}").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += torch.empty_like(parameter).uniform_(-1, 1) * (0.5 if ".grn." in name else 0.02)
    return model


# --- Names and shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "kind", "expected"),
    [
        ("official", "classifier", OFFICIAL),
        ("official-fcmae", "fcmae", RELEASED),
        ("official-minkowski", "fcmae", MINKOWSKI),
        ("mmpretrain", "classifier", mmpretrain_names()),
    ],
)
def test_names_and_shapes_are_those_written_out(layout, kind, expected):
    stored, _ = to_state_dict(random_model(kind), LAYOUTS[layout])
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == expected
    assert recognise_layout(stored).name == layout


@pytest.mark.parametrize("size", EACH_SIZE)
def test_names_and_shapes_are_timms(size):
    with torch.device("meta"):
        expected = timm.create_model(f"convnextv2_{size}").state_dict()
    stored, left_out = to_state_dict(random_model("classifier", torch.bfloat16, size), LAYOUTS["timm"])
    assert {n: t.shape for n, t in stored.items()} == {n: t.shape for n, t in expected.items()} and not left_out


@pytest.mark.parametrize("model_class", [ConvNextV2Model, ConvNextV2ForImageClassification, ConvNextV2ForPreTraining])
def test_names_and_shapes_are_transformers_own(model_class):
    fcmae = model_class is ConvNextV2ForPreTraining
    model = model_class(small_fcmae_config() if fcmae else small_config())
    weights = from_state_dict(model.state_dict())
    assert weights.layout.name == ("ours" if fcmae else "transformers")
    stored, _ = to_state_dict(weights, LAYOUTS["ours"])
    assert {n: t.shape for n, t in stored.items()} == {n: t.shape for n, t in model.state_dict().items()}
    if not fcmae:
        stock = getattr(transformers, model_class.__name__)(transformers.ConvNextV2Config(**model.config.to_dict()))
        stock.load_state_dict(stored)


# --- There and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", EACH_SIZE)
def test_there_and_back_again_every_bit_is_the_same(size, dtype):
    """Every layout holds every number of what it has a place for, and gives it back; the rest is named."""
    for kind in MODELS:
        weights = random_model(kind, dtype, size)
        for layout in (each for each in LAYOUTS.values() if each.family is CONVNEXTV2 and each.name != V1_LAYOUT):
            stored, left_out = to_state_dict(weights, layout)
            again = from_state_dict(stored)
            assert again.config.hidden_sizes == weights.config.hidden_sizes
            assert set(again.tensors) | set(left_out) == set(weights.tensors)
            assert not set(again.tensors) & set(left_out) and len(stored) == len(again.tensors)
            for name, tensor in again.tensors.items():
                assert tensor.dtype == dtype and torch.equal(tensor, weights.tensors[name]), (layout.name, name)
            stored_again, _ = to_state_dict(again, layout)
            assert stored_again.keys() == stored.keys()
            assert all(torch.equal(stored_again[name], tensor) for name, tensor in stored.items())
            assert all(tensor.is_contiguous() for tensor in stored.values())


def test_a_lost_number_would_be_seen():
    """The comparison above fails where a single number or the order of a kernel is another."""
    weights = random_model("fcmae")
    stored, _ = to_state_dict(weights, LAYOUTS["official-minkowski"])
    name = "encoder.stages.0.0.dwconv.kernel"
    stored[name] = stored[name].view(7, 7, -1).transpose(0, 1).reshape(stored[name].shape)
    again = from_state_dict(stored).tensors["encoder.stages.0.layers.0.dwconv.weight"]
    assert not torch.equal(again, weights.tensors["encoder.stages.0.layers.0.dwconv.weight"])


@pytest.mark.parametrize("layout", ["official", "timm", "mmpretrain", "transformers"])
def test_grn_is_read_in_every_rank(layout):
    weights = random_model("classifier")
    stored, _ = to_state_dict(weights, LAYOUTS[layout])
    for rank in (1, 2, 3, 4):
        shaped = {n: t.reshape(*[1] * (rank - 1), -1) if ".grn." in n else t for n, t in stored.items()}
        again = from_state_dict(shaped)
        assert all(torch.equal(tensor, weights.tensors[name]) for name, tensor in again.tensors.items())


def test_prefixes_of_wrappers_and_of_the_backbone_may_be_there_or_not():
    weights = random_model("classifier")
    stored, _ = to_state_dict(weights, LAYOUTS["mmpretrain"])
    bare = {n.removeprefix("backbone."): t for n, t in stored.items() if not n.startswith("head.")}
    assert from_state_dict(bare).kind == "encoder" and len(bare) == len(from_state_dict(bare).tensors)


def test_what_spark_and_a_backbone_add_is_left_out_and_said():
    stored, _ = to_state_dict(random_model("fcmae"), LAYOUTS["mmpretrain"])
    spark = ("neck.decoder.0.upsample.weight", "enc_dec_norms.0.weight", "enc_dec_projectors.0.bias", "mask_tokens.0")
    weights = from_state_dict(stored | dict.fromkeys(spark, torch.ones(3)))
    assert weights.kind == "encoder" and len(weights.notes) == 1 and all(name in weights.notes[0] for name in spark)
    backbone = {
        n: t for n, t in to_state_dict(random_model("encoder"), LAYOUTS["ours"])[0].items() if "layernorm" not in n[:9]
    }
    weights = from_state_dict(backbone | {"hidden_states_norms.stage2.weight": torch.ones(8)})
    assert weights.kind == "encoder" and "hidden_states_norms.stage2.weight" in weights.notes[0]


def test_an_encoder_gets_a_norm_that_changes_nothing_and_says_so():
    weights = with_final_norm(encoder_of(random_model("fcmae", torch.float16)))
    assert torch.equal(weights.tensors["layernorm.weight"], torch.ones(8, dtype=torch.float16))
    assert not weights.tensors["layernorm.bias"].any()
    assert "decoder.pred.weight" in weights.notes[0] and "layernorm" in weights.notes[1]
    classifier = random_model("classifier")
    assert with_final_norm(classifier) is classifier


# --- The same answers by another route --------------------------------------------------------------------------------


def stock_model(weights: ModelWeights) -> torch.nn.Module:
    """Transformers' own model with the converted weights."""
    fields = weights.config.to_dict()
    model_class = {
        "classifier": transformers.ConvNextV2ForImageClassification,
        "encoder": transformers.ConvNextV2Model,
    }[weights.kind]
    model = model_class(transformers.ConvNextV2Config.from_dict(fields)).eval()
    model.load_state_dict(to_state_dict(weights, LAYOUTS["transformers"])[0])
    return model


@pytest.mark.parametrize("size", EACH_SIZE)
@torch.no_grad()
def test_logits_are_timms(size, crops):
    model, image = random_timm(size), crops[:1]
    converted = stock_model(from_state_dict(model.state_dict()))
    assert_close(converted(image).logits, model(image), 1e-4)
    stored, _ = to_state_dict(from_state_dict(model.state_dict()), LAYOUTS["timm"])
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("size", EACH_SIZE)
@torch.no_grad()
def test_timms_own_loader_reads_the_official_layouts_alike(size, crops):
    """timm renames the official files by rules of its own: an independent reading of what we write and read."""
    source, image = random_timm(size), crops[:1]
    weights = from_state_dict(source.state_dict())
    official, left_out = to_state_dict(weights, LAYOUTS["official"])
    again = timm.create_model(f"convnextv2_{size}").eval()
    again.load_state_dict(checkpoint_filter_fn({"model": official}, again))
    assert not left_out
    assert_close(again(image), stock_model(from_state_dict(official))(image).logits, 1e-4)
    released, _ = to_state_dict(encoder_of(weights), LAYOUTS["official-fcmae"])
    released = {name: tensor for name, tensor in released.items() if not name.startswith("norm.")}
    encoder = with_final_norm(from_state_dict(released))
    headless = timm.create_model(f"convnextv2_{size}", num_classes=0).eval()
    missing = headless.load_state_dict(checkpoint_filter_fn({"model": released}, headless), strict=False)
    assert encoder.layout.name == "official-fcmae"
    assert missing.missing_keys == ["head.norm.weight", "head.norm.bias"] and not missing.unexpected_keys
    assert_close(stock_model(encoder)(image).last_hidden_state, headless.forward_features(image), 1e-4)


def minkowski_convolution(x: Tensor, kernel: Tensor, side: int, stride: int) -> Tensor:
    """A convolution as MinkowskiEngine defines it: position h + side * w of the kernel meets the neighbour (h, w).

    Odd sides are centred, even ones start at the site. `x (H, W, in)`, `kernel (side * side, in, out)` or `(., C)`.
    """
    height, width, _ = x.shape
    reach = side // 2 if side % 2 else 0
    out = torch.zeros(height // stride, width // stride, kernel.shape[-1])
    for row in range(0, height, stride):
        for column in range(0, width, stride):
            for w in range(side):
                for h in range(side):
                    i, j = row + h - reach, column + w - reach
                    if 0 <= i < height and 0 <= j < width:
                        weight = kernel[h + side * w]
                        value = x[i, j] * weight if weight.ndim == 1 else x[i, j] @ weight
                        out[row // stride, column // stride] += value
    return out


@pytest.mark.parametrize(("name", "side", "stride"), [("dwconv", 7, 1), ("downsampling_layer.1", 2, 2)])
def test_minkowski_kernels_are_in_the_engines_order(name, side, stride):
    stored, _ = to_state_dict(random_model("fcmae"), LAYOUTS["official-minkowski"])
    theirs = "stages.1.0.dwconv" if name == "dwconv" else "downsample_layers.1.1"
    kernel = torch.randn_like(stored[f"encoder.{theirs}.kernel"])
    stored[f"encoder.{theirs}.kernel"] = kernel
    stage = "encoder.stages.1." + ("layers.0." if name == "dwconv" else "")
    weight = from_state_dict(stored).tensors[f"{stage}{name}.weight"]
    depthwise = kernel.ndim == 2
    x = torch.randn(6, 8, kernel.shape[-1] if depthwise else kernel.shape[1])
    options = {"padding": side // 2, "groups": x.shape[-1]} if depthwise else {"stride": stride}
    ours = F.conv2d(x.permute(2, 0, 1)[None], weight, **options)[0].permute(1, 2, 0)
    assert_close(ours, minkowski_convolution(x, kernel, side, stride))
    wrong = minkowski_convolution(x, kernel.unflatten(0, (side, side)).transpose(0, 1).flatten(0, 1), side, stride)
    assert (ours - wrong).abs().max() > 0.1


# --- What does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["official", "timm", "mmpretrain", "transformers"])
def test_a_parameter_missing_unexpected_or_misshapen_is_named(layout):
    stored, _ = to_state_dict(random_model("classifier"), LAYOUTS[layout])
    for lost in stored:
        message = message_of(lambda lost=lost: from_state_dict({n: t for n, t in stored.items() if n != lost}))
        assert f"1 missing: {lost}" in message or "is of another model" in message, message
    assert "1 unexpected: stages.9.strange" in message_of(
        lambda: from_state_dict({**stored, "stages.9.strange": torch.ones(1)})
    )
    for wrong in stored:
        misshapen = {**stored, wrong: torch.ones(3, 2)}
        assert f"{wrong} (3, 2) instead of {tuple(stored[wrong].shape)}" in message_of(
            lambda m=misshapen: from_state_dict(m)
        )


def test_several_faults_are_said_together():
    stored, _ = to_state_dict(random_model("fcmae"), LAYOUTS["official-minkowski"])
    del stored["decoder.0.norm.bias"]
    stored["encoder.stages.1.1.grn.gamma"] = torch.ones(1, 7)
    message = message_of(lambda: from_state_dict({**stored, "optimizer": torch.ones(1)}))
    assert "official-minkowski, fcmae" in message and "1 missing: decoder.0.norm.bias (6,)" in message
    assert "1 unexpected: optimizer" in message
    assert "encoder.stages.1.1.grn.gamma (1, 7) instead of (1, 32)" in message


def test_other_models_are_named_as_such():
    resnet = timm.create_model("resnet18").state_dict()
    assert "of another model: conv1.weight" in message_of(lambda: from_state_dict(resnet))
    assert "of another model" in message_of(lambda: from_state_dict({}))


def test_weights_must_fit_the_configuration_beside_them():
    stored, _ = to_state_dict(random_model("classifier"), LAYOUTS["transformers"])
    ten_classes = small_config(**TWO_STAGES, num_labels=10).to_dict()
    message = message_of(lambda: from_state_dict(stored, ten_classes))
    assert "classifier.weight (5, 8) instead of (10, 8)" in message
