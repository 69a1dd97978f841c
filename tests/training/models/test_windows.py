"""Windows of a ConvMAE backbone by the settings of segmentation and detection."""

import pytest

from hf_convnextv2 import ConvMAEConfig, ConvMAEForPreTraining
from tests.photographs import message_of
from tests.small_models import SMALL_CONVMAE, awake
from training.models.backbone import backbone_of, create_backbone
from training.models.detection import create_detector
from training.models.optimizer import decayed_parameters
from training.settings.model import DetectorSettings, SegmenterSettings

WINDOWS = {"window_size": 4, "use_relative_position_bias": True}
TABLES = [f"encoder.stages.2.{name}_bias.relative_position_bias_table" for name in ("windowed", "global")]


@pytest.fixture
def pretrained(tmp_path):
    model = awake(ConvMAEForPreTraining(ConvMAEConfig(**{**SMALL_CONVMAE, "depths": [1, 1, 5]})))
    model.save_pretrained(tmp_path / "pretrained")
    return model, str(tmp_path / "pretrained")


@pytest.mark.parametrize("kind", [DetectorSettings, SegmenterSettings])
def test_a_pre_trained_encoder_gets_windows(pretrained, kind):
    model, folder = pretrained
    backbone = create_backbone(kind(model_name_or_path=folder, image_size=96, **WINDOWS))
    assert (backbone.config.window_size, backbone.config.window_block_indices) == (4, [3])
    found = dict(backbone.named_parameters())
    assert [tuple(found[name].shape) for name in TABLES] == [(49, 2), (121, 2)]
    assert not any(found[name].any() for name in TABLES)
    for name, parameter in model.convmae.encoder.named_parameters():
        assert (parameter == found[f"encoder.{name}"]).all(), name
    assert not {*TABLES} & {*decayed_parameters(backbone)}
    plain = create_backbone(kind(model_name_or_path=folder, image_size=96))
    assert plain.config.window_size is None and not {*TABLES} & {*dict(plain.named_parameters())}


def test_a_new_detector_has_windows_and_keeps_them_in_its_folder(tmp_path):
    sizes = {"model_type": "convmae", "model_size": "tiny", "image_size": 64, "anchor_sizes": [8, 16, 32, 64]}
    heads = {"decoder_hidden_size": 16, "box_head_size": 16}
    model = create_detector(DetectorSettings(**sizes, **heads, **WINDOWS), ["a", "b"])
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for each in (model, loaded):
        config = backbone_of(each).config
        assert (config.window_size, config.window_block_indices) == (4, [2, 4]) and config.use_relative_position_bias
        assert TABLES[0] in dict(backbone_of(each).named_parameters())


def test_windows_are_refused_for_the_other_family():
    for name, value in WINDOWS.items():
        message = message_of(lambda name=name, value=value: DetectorSettings(**{name: value}))
        assert f"`{name}` (={value}) must not be given for a ConvNeXt V2" in message
    assert "`window_size` (=0)" in message_of(lambda: DetectorSettings(model_type="convmae", window_size=0))
