"""OpenVINO's files of a classifier, run by OpenVINO, give what stock Transformers gives in eager mode."""

from importlib.util import find_spec

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor

from conversion.export import export
from conversion.exporting.record import Record
from hf_convnextv2 import ConvMAEForImageClassification, create_image_processor
from tests.conversion.exporting.conftest import photographed
from tests.small_models import assert_close, awake, difference, small_convmae_config

openvino = pytest.importorskip("openvino")

BATCHES = ((1, 64, 64), (3, 96, 96), (8, 64, 160))


def logits_of(file, images, precision="f32"):
    settings = {"INFERENCE_PRECISION_HINT": precision}
    return torch.from_numpy(openvino.Core().compile_model(file, "CPU", settings)({"pixel_values": images.numpy()})[0])


@torch.no_grad()
def test_files_give_the_logits_of_stock_transformers(tmp_path, classifier, photographs):
    has_bfloat16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    dtypes = ["float32", "float16", *(["bfloat16"] if has_bfloat16 else [])]
    export(str(classifier), tmp_path / "out", format="openvino", dtype=dtypes)
    stock = transformers.ConvNextV2ForImageClassification.from_pretrained(classifier)
    for batch in BATCHES:
        images = photographed(photographs, *batch)
        expected = stock(images).logits
        assert_close(logits_of(tmp_path / "out/openvino_model.xml", images), expected)
        assert 1e-6 < difference(logits_of(tmp_path / "out/openvino_model_fp16.xml", images), expected) < 1e-2
        if has_bfloat16:
            rounded = logits_of(tmp_path / "out/openvino_model_bf16.xml", images, "bf16")
            assert 1e-4 < difference(rounded, expected) < 0.1
    text = (tmp_path / "out/README.md").read_text()
    assert "`f32` for `openvino_model.xml`, `f32` for `openvino_model_fp16.xml`" in text
    assert ("`bf16` for `openvino_model_bf16.xml`" in text) == has_bfloat16


@torch.no_grad()
def test_a_convmae_is_right_where_a_side_of_the_image_is_one_cell(tmp_path, photographs):
    """Position embeddings, and biases of relative positions, are resized to one row or column of tokens."""
    settings = {"window_size": 3, "window_block_indices": [1], "use_relative_position_bias": True}
    model = awake(ConvMAEForImageClassification(small_convmae_config(depths=[1, 1, 2], **settings)))
    model.save_pretrained(tmp_path / "model")
    create_image_processor(model.config).save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), tmp_path / "out", format="openvino")
    for batch in ((1, 16, 16), (2, 16, 96), (3, 33, 20), (2, 64, 64)):
        images = photographed(photographs, *batch)
        assert_close(logits_of(tmp_path / "out/openvino_model.xml", images), model(images).logits)


@torch.no_grad()
@pytest.mark.skipif(find_spec("nncf") is None, reason="nncf is not installed")
def test_int8_keeps_the_stem_unless_told_otherwise(tmp_path, classifier, labelled):
    stock = transformers.ConvNextV2ForImageClassification.from_pretrained(classifier)
    processor = AutoImageProcessor.from_pretrained(classifier)
    pictures = [Image.open(file) for file in sorted(labelled.rglob("*.png"))]
    images = processor(pictures, return_tensors="pt").pixel_values
    for name, layers, kept in (("stem", None, ["stem"]), ("all", [], [])):
        export(
            str(classifier),
            tmp_path / name,
            format="openvino",
            dtype=["int8"],
            calibration_images=labelled,
            float_layers=layers,
        )
        file = tmp_path / name / "openvino_model_int8.xml"
        assert 1e-3 < difference(logits_of(file, images), stock(images).logits) < 0.3
        weights = [node for node in openvino.Core().read_model(file).get_ops() if node.get_type_name() == "Constant"]
        stored = [node for node in weights if node.get_element_type().get_type_name() == "i8"]
        # Three of each of four blocks, downsampling and head, and the stem.
        assert len(stored) == 4 * 3 + 3 + 1 + (not kept)
        assert Record.read(tmp_path / name).files["int8"].calibration == {"images": 36, "float_layers": kept}
