"""An exported ONNX file gives what stock Transformers gives, for every batch and size of images, and says how well."""

import json
import re
import shutil
import warnings

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
import transformers
from onnx.reference import ReferenceEvaluator
from onnxruntime.transformers.float16 import convert_float_to_float16
from PIL import Image
from sklearn.metrics import accuracy_score
from transformers import AutoConfig, AutoImageProcessor

from conversion.export import export
from conversion.exporting.record import Record
from hf_convnextv2 import (
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    create_image_processor,
)
from tests.conversion.exporting.conftest import photographed
from tests.conversion.exporting.onnx_session import outputs_of
from tests.photographs import save_turned
from tests.readme import blocks
from tests.small_models import (
    assert_close,
    awake,
    difference,
    small_config,
    small_convmae_config,
    small_fcmae_config,
)
from training.models.segmentation import create_segmentation_processor, create_segmenter
from training.settings.model import SegmenterSettings

# The last has sides that are no multiple of a cell: what is left over at the edges is in no patch.
BATCHES = ((1, 64, 64), (3, 96, 96), (5, 64, 160), (2, 100, 90))
SHORT = {"hidden_sizes": [8, 16], "depths": [1, 1], "image_size": 64}


def save(folder, model):
    config = getattr(model.config, "backbone_config", None) or model.config
    model.save_pretrained(folder)
    create_image_processor(config).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_a_float32_file_gives_the_logits_of_stock_transformers(exported, photographs, batch):
    stock = transformers.ConvNextV2ForImageClassification.from_pretrained(exported.model)
    images = photographed(photographs, *batch)
    found = outputs_of(exported.folder / "onnx/model.onnx", pixel_values=images)
    assert list(found) == ["logits"]
    assert_close(found["logits"], stock(images).logits)


def test_the_folder_holds_what_libraries_look_for(exported):
    files = {file.relative_to(exported.folder).as_posix() for file in exported.folder.rglob("*") if file.is_file()}
    names = {"model", "model_fp16", "model_quantized"}  # of transformers.js: fp32, fp16 and q8
    assert files == {"README.md", "config.json", "export.json", "preprocessor_config.json"} | {
        f"onnx/{name}.onnx" for name in names
    }
    config = AutoConfig.from_pretrained(exported.folder)
    assert config.model_type == "convnextv2" and config.architectures == ["ConvNextV2ForImageClassification"]
    stored = [json.loads((each / "preprocessor_config.json").read_text()) for each in (exported.folder, exported.model)]
    assert stored[0] == stored[1]
    graph = onnx.load(exported.folder / "onnx/model.onnx").graph
    (images,) = graph.input
    assert [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim] == [
        *("batch_size", 3, "height", "width")
    ]
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch_size"
    for name in names:
        assert b"site-packages" not in (exported.folder / f"onnx/{name}.onnx").read_bytes(), "a path of this machine"


@torch.no_grad()
def test_a_float16_file_takes_and_returns_float32(exported, photographs):
    stock = transformers.ConvNextV2ForImageClassification.from_pretrained(exported.model)
    for batch in BATCHES:
        images = photographed(photographs, *batch)
        found = outputs_of(exported.folder / "onnx/model_fp16.onnx", pixel_values=images)["logits"]
        assert found.dtype == torch.float32
        assert 1e-6 < difference(found, stock(images).logits) < 1e-2


@torch.no_grad()
def test_an_int8_file_is_near_on_images_like_those_of_its_calibration(exported):
    stock = transformers.ConvNextV2ForImageClassification.from_pretrained(exported.model)
    processor = AutoImageProcessor.from_pretrained(exported.model)
    images = processor([Image.open(file) for file in exported.images], return_tensors="pt").pixel_values
    found = outputs_of(exported.folder / "onnx/model_quantized.onnx", pixel_values=images)["logits"]
    assert found.dtype == torch.float32
    assert 1e-3 < difference(found, stock(images).logits) < 0.3


def test_int8_has_weights_with_a_scale_for_each_channel(exported):
    graph = onnx.load(exported.folder / "onnx/model_quantized.onnx").graph
    scales = {value.name: value for value in graph.initializer}
    weights = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in scales:
            weights[node.input[0]] = (scales[node.input[0]], list(scales[node.input[1]].dims))
    wide = {name: (stored, dims) for name, (stored, dims) in weights.items() if len(stored.dims) > 1}
    assert len(wide) == 4 * 3 + 3 + 2  # three of each block, downsampling, stem and head
    for stored, dims in wide.values():
        assert stored.data_type == onnx.TensorProto.INT8 and dims in ([stored.dims[0]], [stored.dims[1]])
    sizes = [(exported.folder / f"onnx/{name}.onnx").stat().st_size for name in ("model_fp16", "model")]
    assert sizes[0] < 0.8 * sizes[1]


def test_accuracy_and_agreement_are_what_they_are_on_the_images(exported):
    processor = AutoImageProcessor.from_pretrained(exported.model)
    images = [Image.open(file) for file in exported.images]
    pixel_values = processor(images, return_tensors="pt").pixel_values
    answers = {
        dtype: outputs_of(exported.folder / f"onnx/{name}.onnx", pixel_values=pixel_values)["logits"].argmax(1)
        for dtype, name in (("float32", "model"), ("float16", "model_fp16"), ("int8", "model_quantized"))
    }
    noted = Record.read(exported.folder).files
    for dtype, found in answers.items():
        measured = noted[dtype].measured
        assert measured is not None and measured["images"] == len(images)
        assert measured["accuracy"] == pytest.approx(accuracy_score(exported.labels, found))
        assert measured["agreement"] == pytest.approx(accuracy_score(answers["float32"], found))
        assert measured["seconds"] > 0
    assert accuracy_score(exported.labels, answers["float32"]) > 0.9, "else the classes are noise"
    assert accuracy_score(answers["float32"], answers["int8"]) > 0.85


def test_what_was_found_is_noted_for_programs_and_for_people(exported):
    noted, text = Record.read(exported.folder), (exported.folder / "README.md").read_text()
    assert [(each.batch, each.height, each.width) for each in noted.files["float32"].parity] == [
        *((1, 64, 64), (3, 160, 160), (8, 64, 128), (2, 32, 32))
    ]
    assert noted.files["float32"].largest_difference < 1e-4 < noted.files["int8"].largest_difference
    assert noted.files["int8"].calibration == {"images": 36, "float_layers": []}
    assert noted.picture in text and "china.jpg" in text
    for found in noted.files.values():
        assert f"{found.largest_difference:.1e}" in text and f"`{found.file}`" in text
    assert "36 images" in text and not re.search(r"None(?!, )|\{\{|\{%|/tmp/", text)


@torch.no_grad()
def test_the_readme_runs_the_file_on_a_photograph_of_a_phone(tmp_path, exported, monkeypatch):
    """It lies on its side in the file, and its EXIF data say so."""
    folder = shutil.copytree(exported.folder, tmp_path / "onnx")
    picture = save_turned(Image.open(exported.images[0]), folder / "photo.jpg")
    monkeypatch.chdir(folder)
    (code,) = (block.text for block in blocks(folder / "README.md") if block.language == "python")
    names: dict = {}
    exec(code, names)
    stock = transformers.ConvNextV2ForImageClassification.from_pretrained(exported.model)
    processor = AutoImageProcessor.from_pretrained(exported.model)
    expected, lying = (
        stock(processor(image, return_tensors="pt").pixel_values).logits
        for image in (picture, Image.open(folder / "photo.jpg"))
    )
    found = torch.from_numpy(names["outputs"][0])
    assert_close(found, expected)
    assert difference(lying, expected) > 0.01  # the control


@pytest.mark.parametrize("num_channels", [1, 4])
def test_the_readme_runs_the_file_of_other_channels(num_channels, tmp_path, monkeypatch):
    model = ConvNextV2ForImageClassification(small_config(num_channels=num_channels, **SHORT))
    export(save(tmp_path / "model", awake(model)), tmp_path / "onnx")
    monkeypatch.chdir(tmp_path / "onnx")
    (code,) = (block.text for block in blocks(tmp_path / "onnx/README.md") if block.language == "python")
    names: dict = {}
    exec(code, names)
    assert names["outputs"][0].shape == (1, model.config.num_labels)


# --- Half precision ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A classifier with activations of thousands: their L2 norm over an image leaves the range of float16."""
    torch.manual_seed(0)
    model = awake(ConvNextV2ForImageClassification(small_config(**SHORT)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pwconv1.bias" in name:
                parameter.uniform_(5000, 6000)
            if "pwconv2.weight" in name:
                parameter.mul_(1e-3)
    return save(tmp_path_factory.mktemp("large") / "model", model)


@torch.no_grad()
def test_the_statistics_of_grn_stay_in_float32_where_float16_overflows(tmp_path, large, photographs):
    """By ONNX's reference, which computes float16 in float16: ONNX Runtime has no such kernels on most processors."""
    stock = transformers.ConvNextV2ForImageClassification.from_pretrained(large)
    export(large, tmp_path / "out", dtype=["float32", "float16"])
    images = photographed(photographs, 1, 64, 64)

    def logits(model) -> torch.Tensor:
        with np.errstate(all="ignore"):
            (found,) = ReferenceEvaluator(model).run(None, {"pixel_values": images.numpy()})
        return torch.from_numpy(found)

    found = logits(onnx.load(tmp_path / "out/onnx/model_fp16.onnx"))
    assert difference(found, stock(images).logits) < 2e-2
    # As converters do that round every tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers that are rounded to zero
        naive = convert_float_to_float16(onnx.load(tmp_path / "out/onnx/model.onnx"), keep_io_types=True)
    in_order = onnx_ir.from_proto(naive)  # the converter has put casts after what reads them
    in_order.graph.sort()
    assert not logits(onnx_ir.to_proto(in_order)).isfinite().all()


# --- Other models -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_features_and_maps_of_a_pretrained_encoder(tmp_path, photographs):
    folder = save(tmp_path / "model", awake(ConvNextV2ForPreTraining(small_fcmae_config(**SHORT))))
    export(folder, tmp_path / "features", task="features")
    export(folder, tmp_path / "backbone", task="backbone")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = transformers.ConvNextV2Model.from_pretrained(tmp_path / "model")
        backbone = transformers.ConvNextV2Backbone.from_pretrained(tmp_path / "model")
    for batch in BATCHES:
        images = photographed(photographs, *batch)
        found, expected = outputs_of(tmp_path / "features/onnx/model.onnx", pixel_values=images), encoder(images)
        assert_close(found["last_hidden_state"], expected.last_hidden_state)
        assert_close(found["pooler_output"], expected.pooler_output)
        maps = outputs_of(tmp_path / "backbone/onnx/model.onnx", pixel_values=images)
        for actual, map_ in zip(maps.values(), backbone(images).feature_maps, strict=True):
            assert_close(actual, map_)


@torch.no_grad()
def test_a_reconstruction_is_that_of_the_noise(tmp_path, photographs):
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config(**SHORT)))
    export(save(tmp_path / "model", model), tmp_path / "out")
    for count in (1, 4):
        inputs = {"pixel_values": photographed(photographs, count, 64, 64), "noise": torch.rand(count, 64)}
        found, expected = outputs_of(tmp_path / "out/onnx/model.onnx", **inputs), model(**inputs)
        assert torch.equal(found["mask"], expected.mask)
        assert_close(found["logits"], expected.logits)


@torch.no_grad()
def test_segmentation_at_sizes_that_pooling_divides_and_others(tmp_path, photographs):
    settings = SegmenterSettings(image_size=64, num_stages=2, decoder_hidden_size=8, auxiliary_loss_weight=0)
    model = awake(create_segmenter(settings, ["sky", "tree", "sea"]))
    model.save_pretrained(tmp_path / "model")
    processor = create_segmentation_processor(settings, None, model.config.backbone_config, "upernet")
    processor.save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), tmp_path / "out")
    stock = transformers.UperNetForSemanticSegmentation.from_pretrained(tmp_path / "model")
    for batch in ((1, 64, 64), (2, 96, 96), (1, 112, 160)):
        images = photographed(photographs, *batch)
        assert_close(outputs_of(tmp_path / "out/onnx/model.onnx", pixel_values=images)["logits"], stock(images).logits)


@torch.no_grad()
@pytest.mark.parametrize("task", ["classification", "reconstruction"])
def test_convmae(tmp_path, photographs, task):
    kinds = {"classification": ConvMAEForImageClassification, "reconstruction": ConvMAEForPreTraining}
    model = awake(kinds[task](small_convmae_config(depths=[1, 1, 1], decoder_num_hidden_layers=1)))
    export(save(tmp_path / "model", model), tmp_path / "out")
    for batch in ((1, 64, 64), (3, 96, 128)) if task == "classification" else ((2, 64, 64),):
        inputs = {"pixel_values": photographed(photographs, *batch)}
        if task == "reconstruction":
            inputs["noise"] = torch.rand(batch[0], 16)
        assert_close(outputs_of(tmp_path / "out/onnx/model.onnx", **inputs)["logits"], model(**inputs).logits)


@pytest.mark.parametrize("with_bias", [False, True])
def test_windows_of_a_convmae_fit_images_of_some_sizes_and_not_of_others(tmp_path, photographs, with_bias):
    settings = {"window_size": 3, "window_block_indices": [1], "use_relative_position_bias": with_bias}
    model = awake(ConvMAEForImageClassification(small_convmae_config(depths=[1, 1, 2], **settings)))
    export(save(tmp_path / "model", model), tmp_path / "out")
    for batch in ((1, 64, 64), (3, 96, 48), (2, 32, 112)):
        images = photographed(photographs, *batch)
        with torch.no_grad():
            expected = model(images).logits
        assert_close(outputs_of(tmp_path / "out/onnx/model.onnx", pixel_values=images)["logits"], expected)


def create_short_classifier(family):
    """Two blocks of convolutions, which have three layers each in ConvNeXt V2, and five in ConvMAE."""
    if family == "convnextv2":
        return ConvNextV2ForImageClassification(small_config(**SHORT))
    return ConvMAEForImageClassification(small_convmae_config(depths=[1, 1, 1]))


# Beside the blocks of convolutions: stem, downsampling once or twice and head; in ConvMAE, four layers of the block of
# the transformer and one before it.
@pytest.mark.parametrize(
    ("family", "layers", "kept", "total"),
    [
        ("convnextv2", ["depthwise", "head"], 3, 9),
        ("convnextv2", ["up", "down"], 4, 9),
        ("convnextv2", ["stem", "downsampling"], 2, 9),
        ("convmae", ["depthwise", "head"], 3, 19),
        ("convmae", ["up", "down"], 6, 19),
        ("convmae", ["stem", "downsampling"], 3, 19),
    ],
)
def test_layers_that_int8_leaves_out_keep_their_weights(tmp_path, labelled, family, layers, kept, total):
    folder = save(tmp_path / "model", awake(create_short_classifier(family)))
    export(folder, tmp_path / "out", dtype=["int8"], calibration_images=labelled, float_layers=layers)
    graph = onnx.load(tmp_path / "out/onnx/model_quantized.onnx").graph
    stored = {value.name: value.data_type for value in graph.initializer}
    read = {name: node.input[0] for node in graph.node for name in node.output if node.op_type == "DequantizeLinear"}
    products = [node.input[1] for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    types = [stored.get(read.get(name, name)) for name in products]
    weights = [each for each in types if each is not None]  # two activations are multiplied in attention
    counts = {each: weights.count(each) for each in set(weights)}
    assert counts == {onnx.TensorProto.FLOAT: kept, onnx.TensorProto.INT8: total - kept}
    assert Record.read(tmp_path / "out").files["int8"].calibration == {"images": 36, "float_layers": layers}


def test_a_layer_that_a_model_lacks_cannot_be_left_out_of_int8(tmp_path, labelled, monkeypatch):
    monkeypatch.delattr("conversion.exporting.writing.export_program")  # it is refused before
    folder = save(tmp_path / "model", awake(create_short_classifier("convmae")))
    with pytest.raises(
        ValueError, match=r"`--float_layers` \(=head\) must be layers that the model has: stem, .*, down"
    ):
        export(
            folder,
            tmp_path / "out",
            task="features",
            dtype=["int8"],
            calibration_images=labelled,
            float_layers=["stem", "head"],
        )
    assert not (tmp_path / "out").exists()
