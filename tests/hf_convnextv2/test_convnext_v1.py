"""ConvNeXt V1: Transformers' `convnext` checkpoints in our classes and back, and its pre-training."""

import json

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import ConvNextConfig, ConvNextForImageClassification

import hf_convnextv2
from hf_convnextv2 import (
    ConvNextV2Backbone,
    ConvNextV2Config,
    ConvNextV2FCMAEConfig,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
)
from hf_convnextv2.configuration_convnextv2 import V1_LAYER_SCALE
from tests.small_models import SMALL, assert_close, awake, difference, small_config, small_fcmae_config

V1 = {"use_grn": False, "layer_scale_init_value": 1e-6}
# Depths and widths of facebook/convnext-SIZE-224 (arXiv 2201.03545, section 3).
SIZES = {
    "tiny": ([3, 3, 9, 3], [96, 192, 384, 768]),
    "small": ([3, 3, 27, 3], [96, 192, 384, 768]),
    "base": ([3, 3, 27, 3], [128, 256, 512, 1024]),
    "large": ([3, 3, 27, 3], [192, 384, 768, 1536]),
    "xlarge": ([3, 3, 27, 3], [256, 512, 1024, 2048]),
}
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("base", "large", "xlarge")]


def waken(model, std=0.1):
    """A stock model whose LayerScale is as after training, so that the blocks count."""
    awake(model, std)
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale_parameter"):
            torch.nn.init.uniform_(parameter, 0.05, 0.5)
    return model


@pytest.fixture
def stock():
    """A small stock classifier."""
    torch.manual_seed(0)
    return waken(ConvNextForImageClassification(ConvNextConfig(**SMALL, num_labels=5)))


@pytest.fixture
def folder(stock, tmp_path):
    """Its folder."""
    stock.save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


def pixels(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", ["tiny", "small", *LARGE])
def test_logits_of_each_size_are_those_of_stock_and_stock_reads_them_back(size, tmp_path):
    torch.manual_seed(0)
    depths, hidden_sizes = SIZES[size]
    stock = ConvNextForImageClassification(ConvNextConfig(depths=depths, hidden_sizes=hidden_sizes, num_labels=1000))
    waken(stock, std=0.02).save_pretrained(tmp_path / "stock")
    ours = ConvNextV2ForImageClassification.from_pretrained(tmp_path / "stock")
    with torch.no_grad():
        expected = stock(pixels(224)).logits
        assert_close(ours(pixels(224)).logits, expected)
        ours.save_pretrained(tmp_path / "ours")
        del stock, ours
        again = ConvNextForImageClassification.from_pretrained(tmp_path / "ours")
        assert torch.equal(again(pixels(224)).logits, expected)


def test_what_is_saved_is_a_convnext_bit_by_bit(stock, folder, tmp_path):
    ours = ConvNextV2ForImageClassification.from_pretrained(folder)
    ours.save_pretrained(tmp_path / "ours")
    again, report = ConvNextForImageClassification.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in stock.state_dict().items())
    written = json.loads((tmp_path / "ours/config.json").read_text())
    assert (written["model_type"], written["architectures"]) == ("convnext", ["ConvNextForImageClassification"])
    assert (written["use_grn"], written["layer_scale_init_value"]) == (False, V1_LAYER_SCALE)
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "ours")) is transformers.ConvNextModel


def test_new_model_of_v1_is_saved_as_one_and_read_again(tmp_path):
    ours = awake(ConvNextV2ForImageClassification(small_config(**V1)))
    for name in ("first", "second"):  # also after it has been loaded from such a folder
        ours.save_pretrained(tmp_path / name)
        ours = ConvNextV2ForImageClassification.from_pretrained(tmp_path / name)
        stock = ConvNextForImageClassification.from_pretrained(tmp_path / name)
        assert_close(ours(pixels()).logits, stock(pixels()).logits)
    assert (ours.config.use_grn, ours.config.layer_scale_init_value) == (False, 1e-6)


def test_layer_scale_counts(folder, stock):
    """The control of the tests above: without it the logits are others."""
    ours = ConvNextV2ForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        ours.convnextv2.encoder.stages[0].layers[0].layer_scale_parameter.mul_(2)
    assert difference(ours(pixels()).logits, stock(pixels()).logits) > 1e-3


def test_every_class_reads_a_convnext(folder, stock):
    x = pixels()
    expected = stock.convnext(x).last_hidden_state
    assert_close(ConvNextV2Model.from_pretrained(folder)(x).last_hidden_state, expected)
    backbone = ConvNextV2Backbone.from_pretrained(folder, out_features=["stage4"])
    assert_close(backbone(x).feature_maps[0], backbone.hidden_states_norms["stage4"](expected))
    pretraining = ConvNextV2ForPreTraining.from_pretrained(folder, decoder_hidden_size=16)
    assert_close(pretraining.convnextv2(x).last_hidden_state, expected)
    assert pretraining.decoder.layers[0].grn is None
    assert ConvNextV2ForImageClassification(stock.config).config.is_convnext_v1


def test_encoder_alone_goes_to_stock_and_back(stock, tmp_path):
    stock.convnext.save_pretrained(tmp_path / "stock")
    ours = ConvNextV2Model.from_pretrained(tmp_path / "stock")
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.ConvNextModel.from_pretrained(tmp_path / "ours")
    assert torch.equal(again(pixels()).pooler_output, stock.convnext(pixels()).pooler_output)
    assert_close(ours(pixels()).pooler_output, stock.convnext(pixels()).pooler_output)


def test_sharded_folder_has_the_names_of_a_convnext_in_its_index(folder, tmp_path):
    ours = ConvNextV2ForImageClassification.from_pretrained(folder)
    ours.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    index = json.loads((tmp_path / "shards/model.safetensors.index.json").read_text())["weight_map"]
    assert {name.split(".")[0] for name in index} == {"convnext", "classifier"}
    again = ConvNextForImageClassification.from_pretrained(tmp_path / "shards")
    assert_close(again(pixels()).logits, ours(pixels()).logits)


def test_pretraining_model_of_v1_keeps_our_names_and_its_encoder_loads(folder, tmp_path):
    pretraining = ConvNextV2ForPreTraining.from_pretrained(folder, decoder_hidden_size=16)
    pretraining.save_pretrained(tmp_path / "fcmae")
    with safe_open(tmp_path / "fcmae/model.safetensors", "pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"convnextv2", "decoder"}  # noqa: SIM118
    assert json.loads((tmp_path / "fcmae/config.json").read_text())["model_type"] == "convnextv2_fcmae"
    classifier = ConvNextV2ForImageClassification.from_pretrained(tmp_path / "fcmae", num_labels=5)
    assert classifier.config.is_convnext_v1 and not hasattr(classifier.config, "mask_ratio")
    classifier.save_pretrained(tmp_path / "classifier")
    stock = ConvNextForImageClassification.from_pretrained(tmp_path / "classifier")
    assert_close(classifier.eval()(pixels()).logits, stock(pixels()).logits)


def test_registered_auto_classes_read_a_convnext_with_ours(folder, stock):
    hf_convnextv2.register()
    try:
        ours = transformers.AutoModelForImageClassification.from_pretrained(folder)
        assert type(ours) is ConvNextV2ForImageClassification
        assert_close(ours(pixels()).logits, stock(pixels()).logits)
    finally:
        hf_convnextv2.unregister()
    assert type(transformers.AutoModelForImageClassification.from_pretrained(folder)) is ConvNextForImageClassification


def test_upernet_on_a_backbone_of_v1_is_read_by_stock(tmp_path):
    backbone = ConvNextV2Backbone(small_config(**V1, out_features=["stage1", "stage2", "stage3", "stage4"]))
    config = transformers.UperNetConfig(backbone_config=backbone.config, hidden_size=16, auxiliary_channels=8)
    config.auxiliary_in_channels, config.num_labels = 24, 3
    with hf_convnextv2.registration.registered():
        model = awake(transformers.UperNetForSemanticSegmentation(config))
        model.save_pretrained(tmp_path)
    assert type(model.backbone) is ConvNextV2Backbone
    again = transformers.UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(again.backbone) is transformers.ConvNextBackbone
    assert_close(again(pixels()).logits, model(pixels()).logits)


# --- Configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_those_of_the_published_checkpoints(size):
    config = ConvNextV2Config.from_size(size, **V1)
    assert (list(config.depths), list(config.hidden_sizes)) == SIZES[size]


def test_xlarge_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size("xlarge", num_labels=1000, **V1))
    assert sum(p.numel() for p in model.parameters()) == 350_196_968  # counted by hand from the paper's section 3
    pretraining = ConvNextV2FCMAEConfig.from_size("xlarge", num_stages=2, **V1)
    assert list(pretraining.hidden_sizes) == [256, 512] and pretraining.has_v1_blocks


@pytest.mark.parametrize("blocks", [{}, {"use_grn": False}, {"layer_scale_init_value": 1e-6}])
@pytest.mark.parametrize("config_class", [ConvNextV2Config, ConvNextV2FCMAEConfig])
def test_xlarge_with_other_blocks_is_refused(config_class, blocks):
    with pytest.raises(
        ValueError, match=r"`name` \(='xlarge'\) must come with `use_grn=False` and a `layer_scale_init"
    ):
        config_class.from_size("xlarge", **blocks)


def test_default_of_layer_scale_is_that_of_transformers(tmp_path):
    assert ConvNextConfig().layer_scale_init_value == V1_LAYER_SCALE
    stored = ConvNextConfig(**SMALL).to_dict()
    del stored["layer_scale_init_value"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    for config_class in (ConvNextV2Config, ConvNextV2FCMAEConfig):
        config = config_class.from_pretrained(tmp_path)
        assert (config.use_grn, config.layer_scale_init_value) == (False, V1_LAYER_SCALE)


def test_models_without_layer_scale_are_as_before(tmp_path):
    for config in (small_config(), small_config(use_grn=False), small_fcmae_config()):
        config.save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert "layer_scale_init_value" not in written and written["model_type"] == config.model_type
        assert type(config).from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert not any("layer_scale" in name for name in ConvNextV2ForImageClassification(small_config()).state_dict())


@pytest.mark.parametrize("use_grn", [True, False])
@pytest.mark.parametrize("config_class", [ConvNextV2Config, ConvNextV2FCMAEConfig])
def test_configuration_with_layer_scale_survives_saving(config_class, use_grn, tmp_path):
    config = config_class(**SMALL, use_grn=use_grn, layer_scale_init_value=0.25)
    config.save_pretrained(tmp_path)
    again = config_class.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert (again.use_grn, again.layer_scale_init_value) == (use_grn, 0.25)


@pytest.mark.parametrize("value", [-1e-6, float("inf"), float("nan")])
def test_impossible_layer_scale_is_refused(value):
    with pytest.raises(ValueError, match=r"`layer_scale_init_value` \(=.*\) must be finite and not negative"):
        small_config(layer_scale_init_value=value)


# --- Pre-training -----------------------------------------------------------------------------------------------------


def test_fresh_layer_scale_has_its_initial_value_in_encoder_and_decoder():
    model = ConvNextV2ForPreTraining(small_fcmae_config(use_grn=False, layer_scale_init_value=1e-3))
    scales = [p for name, p in model.named_parameters() if name.endswith("layer_scale_parameter")]
    assert len(scales) == 5 + 1
    assert all(torch.equal(scale, torch.full_like(scale, 1e-3)) for scale in scales)
    assert not any("grn" in name for name, _ in model.named_parameters())


def test_hidden_pixels_do_not_reach_the_features_of_v1():
    model = waken(ConvNextV2ForPreTraining(small_fcmae_config(**V1)))
    masked = torch.tensor([[True, False, False, True]] * 2)
    x, changed = pixels(), pixels()
    changed[:, :, :32, :32] = 9  # the first cell
    predictions = [model(each, bool_masked_pos=masked).logits for each in (x, changed)]
    assert torch.equal(*predictions)
    seen = changed.clone()
    seen[:, :, :32, 32:] = 9
    assert difference(model(seen, bool_masked_pos=masked).logits, predictions[0]) > 1e-3


@pytest.mark.parametrize("settings", [V1, {"use_grn": False}], ids=["V1", "neither"])
def test_exported_program_of_any_batch_and_image_computes_the_same(settings):
    model = waken(ConvNextV2ForImageClassification(small_config(**settings)))
    batch, height = torch.export.Dim("batch"), torch.export.Dim("cells", min=1, max=64)
    shapes = {"pixel_values": {0: batch, 2: 32 * height}}
    program = torch.export.export(model, (), {"pixel_values": pixels()}, dynamic_shapes=shapes).module()
    for images in (pixels(), torch.randn(5, 3, 96, 64), torch.randn(1, 3, 256, 64)):
        assert_close(program(pixel_values=images).logits, model(images).logits)


def test_compiled_pretraining_of_v1_has_the_gradients_of_the_fused_one():
    model, noise = waken(ConvNextV2ForPreTraining(small_fcmae_config(**V1))).train(), torch.rand(2, 4)
    torch.compiler.reset()
    results = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        loss = run(pixels(), noise=noise).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, tolerance=1e-4)
