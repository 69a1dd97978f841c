"""ConvNeXt V1 from and to the layouts of Transformers, the official code, timm and mmpretrain."""

import json

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file
from timm.models.convnext import checkpoint_filter_fn
from transformers import AutoModelForImageClassification, ConvNextConfig, ConvNextForImageClassification

from conversion.checkpoint_reader import StoredCheckpoint
from conversion.families import describe_size, size_of
from conversion.known_settings import known_settings
from conversion.layouts import BLOCKS, LAYOUTS, V1_BLOCK, V1_LAYOUT, recognise_layout
from conversion.model_folder import read_config
from conversion.model_weights import from_state_dict, to_state_dict
from conversion.publishing.card import render_card
from conversion.publishing.staging import check_folder
from conversion.timm_models import timm_model
from hf_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification, ConvNextV2ForPreTraining, ConvNextV2Model
from tests.conversion.conversion_command import FILES, run
from tests.photographs import message_of
from tests.small_models import SMALL, assert_close, awake, difference, small_config, small_fcmae_config

V1 = {"use_grn": False, "layer_scale_init_value": 1e-6}
FOREIGN = ["official", "timm", "mmpretrain"]
TWO_STAGES = {"hidden_sizes": [4, 8], "depths": [1, 2], "image_size": 32}
# A block of the official code at 8 channels, as its module is written.
OFFICIAL_BLOCK = {
    "gamma": (8,),
    "dwconv.weight": (8, 1, 7, 7),
    "dwconv.bias": (8,),
    "norm.weight": (8,),
    "norm.bias": (8,),
    "pwconv1.weight": (32, 8),
    "pwconv1.bias": (32,),
    "pwconv2.weight": (8, 32),
    "pwconv2.bias": (8,),
}
RENAMED = {
    "official": {},
    "timm": {"dwconv": "conv_dw", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"},
    "mmpretrain": {"dwconv": "depthwise_conv", "pwconv": "pointwise_conv"},
}
OF_BLOCK = {"official": "stages.1.1.", "timm": "stages.1.blocks.1.", "mmpretrain": "backbone.stages.1.1."}


def classifier(**settings):
    """A small classifier with V1's blocks, none of whose parameters is 0."""
    torch.manual_seed(0)
    model = awake(ConvNextV2ForImageClassification(small_config(**{**V1, **settings})))
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale_parameter"):
            torch.nn.init.uniform_(parameter, 0.1, 0.5)
    return model


def stored_in(layout, model):
    """Its parameters in a layout."""
    return to_state_dict(from_state_dict(model.state_dict(), model.config.to_dict()), LAYOUTS[layout])[0]


@pytest.mark.parametrize("layout", FOREIGN)
def test_names_and_shapes_of_a_block_are_those_written_out(layout):
    stored, expected = stored_in(layout, classifier(**TWO_STAGES)), {}
    for name, shape in OFFICIAL_BLOCK.items():
        for old, new in RENAMED[layout].items():
            name = name.replace(old, new)
        expected[name] = shape
    block, prefix = {}, OF_BLOCK[layout]
    block = {name.removeprefix(prefix): tuple(t.shape) for name, t in stored.items() if name.startswith(prefix)}
    assert block == expected
    assert recognise_layout(stored).name == layout


@pytest.mark.parametrize("size", ["atto", "tiny", "base"])  # timm stores the first with 1x1 convolutions
def test_names_and_shapes_are_timms_and_of_stock(size):
    model = ConvNextV2ForImageClassification(ConvNextV2ForImageClassification.config_class.from_size(size, **V1))
    with torch.device("meta"):
        theirs = timm.create_model(f"convnext_{size}", num_classes=2).state_dict()
        config = ConvNextConfig.from_dict(model.config.to_dict())
        stock = ConvNextForImageClassification(config).state_dict()
    for layout, expected in (("timm", theirs), (V1_LAYOUT, stock)):
        assert {n: t.shape for n, t in stored_in(layout, model).items()} == {n: t.shape for n, t in expected.items()}


@pytest.mark.parametrize("layout", [*FOREIGN, V1_LAYOUT])
def test_xlarge_is_recognised(layout):
    with torch.device("meta"):
        model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size("xlarge", **V1))
    source = StoredCheckpoint("xlarge.pth", stored_in(layout, model), "")
    weights = from_state_dict(source.tensors, known_settings(source, "xlarge", {}))
    assert describe_size(weights.config) == "xlarge"
    name, arguments = timm_model(weights.config)
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=2, **arguments)
    assert name == "convnext_xlarge" and sum(p.numel() for p in theirs.parameters()) == model.num_parameters()


def test_no_model_with_grn_is_an_xlarge(tmp_path, capsys):
    depths, widths = [3, 3, 27, 3], [256, 512, 1024, 2048]
    config = ConvNextV2Config(depths=depths, hidden_sizes=widths)
    assert size_of(config) is None
    assert timm_model(config) == ("convnextv2_tiny", {"depths": depths, "dims": widths})
    sizes = "atto, femto, pico, nano, tiny, small, base, large, huge"
    refused = {"v2": ({}, f"`--model_size` (=xlarge) must be {sizes} for a ConvNeXt V2."), "v1": (V1, "does not fit")}
    for name, (blocks, said) in refused.items():
        ConvNextV2Model(small_config(**blocks)).save_pretrained(tmp_path / name)
        weights = tmp_path / name / "model.safetensors"
        code, printed = run(weights, tmp_path / "out", "--model_size", "xlarge", capsys=capsys)
        assert code == 2 and said in printed, printed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [*FOREIGN, V1_LAYOUT, "ours"])
def test_there_and_back_again_every_bit_is_the_same(layout, dtype):
    model = classifier().to(dtype)
    stored = stored_in(layout, model)
    again = from_state_dict(stored)
    assert (again.kind, again.config.use_grn, again.config.layer_scale_init_value) == ("classifier", False, 1e-6)
    expected = {name.removeprefix("convnextv2."): tensor for name, tensor in model.state_dict().items()}
    assert again.tensors.keys() == expected.keys() and len(stored) == len(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.tensors.items())
    changed = {**expected, "encoder.stages.0.layers.0.layer_scale_parameter": torch.ones(8, dtype=dtype)}
    assert not all(torch.equal(tensor, changed[name]) for name, tensor in again.tensors.items())


@pytest.mark.parametrize("layout", FOREIGN)
def test_a_missing_or_misshapen_layer_scale_is_named(layout):
    stored = stored_in(layout, classifier())
    name = next(name for name in stored if name.endswith(".gamma"))
    assert f"1 missing: {name}" in message_of(lambda: from_state_dict({n: t for n, t in stored.items() if n != name}))
    assert f"{name} (3,) instead of (8,)" in message_of(lambda: from_state_dict({**stored, name: torch.ones(3)}))


@torch.no_grad()
def test_logits_are_timms(crops):
    """timm's own loader renames the official files by its own rules: an independent reading of what is written."""
    model = classifier(hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3], layer_norm_eps=1e-6).eval()
    expected = model(crops[:1]).logits
    timms = timm.create_model("convnext_tiny", num_classes=5).eval()
    for layout in ("timm", "official"):
        stored = stored_in(layout, model)
        timms.load_state_dict(stored if layout == "timm" else checkpoint_filter_fn({"model": stored}, timms))
        assert_close(timms(crops[:1]), expected, 1e-4)
    timms.stages[0].blocks[0].gamma.mul_(2)
    assert difference(timms(crops[:1]), expected) > 1e-3


@pytest.mark.parametrize("layout", [*FOREIGN, V1_LAYOUT])
@torch.no_grad()
def test_a_checkpoint_becomes_a_folder_that_stock_loads(layout, tmp_path, capsys):
    model = classifier(layer_norm_eps=1e-6).eval()
    torch.save({"model": stored_in(layout, model)}, tmp_path / "source.pt")
    arguments = ("--image_size", 64, *(["--verify"] if layout != "mmpretrain" else []))
    code, printed = run(tmp_path / "source.pt", tmp_path / "out", *arguments, capsys=capsys)
    assert code == 0 and f"layout {layout}, classifier" in printed, printed
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    loaded, report = AutoModelForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(loaded) is ConvNextForImageClassification and not any(report.values())
    x = torch.randn(2, 3, 64, 64)
    assert_close(loaded(x).logits, model(x).logits)
    assert not {"use_grn", "head_init_scale"} & set(json.loads((tmp_path / "out/config.json").read_text()))
    assert check_folder(tmp_path / "out") == "classifier" and read_config(tmp_path / "out").is_convnext_v1
    assert "A [ConvNeXt V1](https://arxiv.org/abs/2201.03545) image classifier" in render_card(tmp_path / "out")


@pytest.mark.parametrize("to", ["official", "timm"])
@torch.no_grad()
def test_a_folder_of_stock_goes_to_other_libraries_and_back(to, tmp_path, capsys):
    torch.manual_seed(0)
    stock = awake(ConvNextForImageClassification(ConvNextConfig(**SMALL, num_labels=5, layer_norm_eps=1e-6)))
    stock.save_pretrained(tmp_path / "stock")
    code, printed = run(tmp_path / "stock", tmp_path / "there", "--to", to, "--verify", capsys=capsys)
    assert code == 0 and "verify: logits" in printed, printed
    code, printed = run(tmp_path / "there", tmp_path / "back", "--image_size", 64, capsys=capsys)
    assert code == 0, printed
    again, expected = load_file(tmp_path / "back/model.safetensors"), stock.state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.items())


@torch.no_grad()
def test_timm_builds_the_folder(tmp_path, capsys):
    for name, settings in {"v1": V1, "none": {"use_grn": False}, "both": {"layer_scale_init_value": 0.3}}.items():
        model = awake(ConvNextV2ForImageClassification(small_config(layer_norm_eps=1e-6, **settings))).eval()
        model.save_pretrained(tmp_path / name)
        code, printed = run(tmp_path / name, tmp_path / f"{name}-timm", "--to", "timm", "--verify", capsys=capsys)
        assert code == 0 and "verify: logits" in printed, printed
        built = timm.create_model(f"local-dir:{tmp_path / name}-timm", pretrained=True).eval()
        assert_close(built(torch.ones(1, 3, 64, 64)), model(torch.ones(1, 3, 64, 64)).logits)


def test_scripts_of_v1_are_named_for_a_model_of_v1(tmp_path, capsys):
    classifier(layer_norm_eps=1e-6).save_pretrained(tmp_path / "in")
    code, printed = run(tmp_path / "in", tmp_path / "out", "--to", "official", "--with_pt", capsys=capsys)
    assert code == 0 and "model.pt: for main.py --resume of ConvNeXt V1" in printed
    stored = torch.load(tmp_path / "out/model.pt", weights_only=True)["model"]
    assert "stages.0.0.gamma" in stored and not any("grn" in name for name in stored)
    assert "python main.py --resume model.pt" in (tmp_path / "out/README.md").read_text()


@torch.no_grad()
def test_pretraining_of_v1_becomes_an_encoder_of_stock(tmp_path, capsys):
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config(**V1))).eval()
    model.save_pretrained(tmp_path / "fcmae")
    code, printed = run(tmp_path / "fcmae", tmp_path / "out", "--to", "transformers", "--verify", capsys=capsys)
    assert code == 0 and "verify: last map" in printed, printed
    stock = transformers.ConvNextModel.from_pretrained(tmp_path / "out")
    x = torch.randn(2, 3, 64, 64)
    assert_close(stock(x).last_hidden_state, model.convnextv2(x).last_hidden_state)
    code, printed = run(tmp_path / "fcmae", tmp_path / "same", capsys=capsys)
    again = ConvNextV2ForPreTraining.from_pretrained(tmp_path / "same").state_dict()
    assert code == 0 and all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    card = render_card(tmp_path / "fcmae")
    assert "of this package, loads the encoder alone" in card
    assert "A [ConvNeXt V1](https://arxiv.org/abs/2201.03545) encoder" in card


# --- What has no place ------------------------------------------------------------------------------------------------

BOTH = {"layer_scale_init_value": 0.5}
REFUSED = [
    ("transformers", BOTH, "must be one of timm, mmpretrain, ours for a model with GRN and with LayerScale"),
    ("official", BOTH, "must be one of timm, mmpretrain, ours"),
    ("official-minkowski", V1, "for a model without GRN and with LayerScale"),
    ("official-minkowski", BOTH, "for a model with GRN and with LayerScale"),
]


@pytest.mark.parametrize(("to", "settings", "message"), REFUSED)
def test_a_library_without_such_blocks_is_refused(to, settings, message, tmp_path, capsys):
    ConvNextV2Model(small_config(layer_norm_eps=1e-6, **settings)).save_pretrained(tmp_path / "in")
    code, printed = run(tmp_path / "in", tmp_path / "out", "--to", to, capsys=capsys)
    assert code == 2 and message in printed, printed
    assert not (tmp_path / "out").exists()


def test_grn_and_layer_scale_stay_in_this_package(tmp_path, capsys):
    model = awake(ConvNextV2ForImageClassification(small_config(**BOTH))).eval()
    model.save_pretrained(tmp_path / "in")
    code, printed = run(tmp_path / "in", tmp_path / "out", "--verify", capsys=capsys)
    assert code == 0 and "Transformers has no model with GRN and LayerScale" in printed
    again = ConvNextV2ForImageClassification.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_a_model_with_neither_is_one_of_stock_v1(tmp_path, capsys):
    model = awake(ConvNextV2ForImageClassification(small_config(use_grn=False))).eval()
    model.save_pretrained(tmp_path / "in")
    code, printed = run(tmp_path / "in", tmp_path / "out", "--verify", capsys=capsys)
    assert code == 0, printed
    stock, report = AutoModelForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(stock) is ConvNextForImageClassification and not any(report.values())
    assert_close(stock(torch.ones(1, 3, 64, 64)).logits, model(torch.ones(1, 3, 64, 64)).logits)


def test_every_layout_that_builds_some_blocks_alone_is_one_of_ours():
    assert set(BLOCKS) < set(LAYOUTS) and V1_BLOCK in BLOCKS[V1_LAYOUT]
