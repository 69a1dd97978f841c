"""Cards of models with GRN and LayerScale, which Transformers' own class reads without its LayerScale."""

import re

import pytest

from conversion.publish import publish
from hf_convnextv2 import ConvNextV2ForImageClassification, ConvNextV2Model, create_image_processor
from tests.small_models import awake, run_python, small_config
from training.models.detection import create_detection_processor, create_detector
from training.models.segmentation import backbone_of, create_segmentation_processor, create_segmenter
from training.settings.model import DetectorSettings, SegmenterSettings

BOTH = {"use_grn": True, "layer_scale_init_value": 0.5, "num_channels": 4}
STATISTICS = {"image_mean": [0.5] * 4, "image_std": [0.5] * 4}
SMALL = {"image_size": 64, "num_stages": 3, "decoder_hidden_size": 32, **STATISTICS, **BOTH}
# `model` is that of the card's code. Transformers tells of the weights that it leaves out, which is no warning.
SCALES = "\nprint(any('layer_scale' in name for name in model.state_dict()))"


def save_image_model(folder, model_class):
    config = small_config(**BOTH)
    awake(model_class(config)).save_pretrained(folder)
    create_image_processor(config, **STATISTICS).save_pretrained(folder)


def save_segmenter(folder):
    settings = SegmenterSettings(**SMALL)
    model = awake(create_segmenter(settings, ["sky", "tree"]))
    model.save_pretrained(folder)
    create_segmentation_processor(settings, None, backbone_of(model).config, "upernet").save_pretrained(folder)


def save_detector(folder):
    settings = DetectorSettings(architecture="rt_detr_v2", **SMALL)
    model = create_detector(settings, ["crown"])
    model.save_pretrained(folder)
    create_detection_processor(settings, None, model.config.backbone_config, "rt_detr_v2").save_pretrained(folder)


KINDS = {
    "encoder": lambda folder: save_image_model(folder, ConvNextV2Model),
    "classifier": lambda folder: save_image_model(folder, ConvNextV2ForImageClassification),
    "upernet": save_segmenter,
    "rt_detr_v2": save_detector,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_a_card_loads_the_layer_scale(kind, tmp_path):
    KINDS[kind](tmp_path / "model")
    publish(tmp_path / "model", "me/both", dry_run=True)
    card = (tmp_path / "model/README.md").read_text()
    assert "Transformers alone" not in card and "Transformers loads it all the same" in card
    code = re.search(r"```python\n(.*?)```", card, re.S)[1].replace('"me/both"', repr(str(tmp_path / "model")))  # type: ignore[index]
    assert run_python(code + SCALES, cwd=tmp_path).splitlines()[-1] == "True"
    without = "\n".join(line for line in code.splitlines() if "hf_convnextv2" not in line)
    assert run_python(without + SCALES, cwd=tmp_path).splitlines()[-1] == "False"  # the control
