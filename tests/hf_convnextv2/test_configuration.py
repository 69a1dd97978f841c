"""Configurations: published sizes, checked settings, and folders that every reader understands."""

import json

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError

from hf_convnextv2 import (
    ConvMAEConfig,
    ConvNextV2Config,
    ConvNextV2FCMAEConfig,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
)
from hf_convnextv2.shared_config import height_and_width
from tests.small_models import SMALL, small_config, small_fcmae_config

# Parameters of the 1000-class classifier and of the FCMAE model: counted by hand from the paper's appendix A.1.
NUM_PARAMETERS = {
    "atto": (3_708_400, 7_257_992),
    "femto": (5_233_240, 8_751_472),
    "pico": (9_066_280, 12_521_792),
    "nano": (15_623_800, 19_016_592),
    "tiny": (28_635_496, 31_965_568),
    "small": (50_318_440, 53_648_512),
    "base": (88_717_800, 91_922_432),
    "large": (197_956_840, 200_910_592),
    "huge": (660_289_640, 662_616_192),
}
BOTH = pytest.mark.parametrize("make", [small_config, small_fcmae_config])


@pytest.mark.parametrize("size", NUM_PARAMETERS)
def test_sizes_have_the_published_number_of_parameters(size):
    with torch.device("meta"):
        classifier = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size, num_labels=1000))
        fcmae = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig.from_size(size))
    counts = [sum(p.numel() for p in model.parameters()) for model in (classifier, fcmae)]
    assert tuple(counts) == NUM_PARAMETERS[size]


def test_from_size_takes_overrides_and_returns_its_own_class():
    config = ConvNextV2FCMAEConfig.from_size("tiny", num_channels=13, mask_ratio=0.5)
    assert type(config) is ConvNextV2FCMAEConfig
    assert (config.num_channels, config.mask_ratio, list(config.depths)) == (13, 0.5, [3, 3, 9, 3])


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_num_stages_keeps_the_first_stages(num_stages):
    config = ConvNextV2Config.from_size("atto", num_stages=num_stages)
    assert list(config.depths) == [2, 2, 6, 2][:num_stages]
    assert list(config.hidden_sizes) == [40, 80, 160, 320][:num_stages]
    assert config.num_stages == num_stages
    assert config.out_features == [f"stage{num_stages}"]


def test_num_stages_follows_from_depths():
    assert ConvNextV2Config(depths=[1, 2], hidden_sizes=[8, 16]).num_stages == 2
    assert ConvNextV2Config().num_stages == 4


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, 32),
        ({"patch_size": 2}, 16),
        ({"patch_size": 1}, 8),
        ({"depths": [1, 1, 1], "hidden_sizes": [8, 8, 8]}, 16),
        ({"depths": [1], "hidden_sizes": [8]}, 4),
    ],
)
def test_cell_is_the_patch_doubled_by_each_further_stage(overrides, expected):
    assert small_config(**overrides).cell_size == small_fcmae_config(**overrides).cell_size == expected


def test_cell_of_an_oblong_patch_has_two_sides():
    assert small_config(patch_size=[2, 4]).cell_size == (16, 32)


@BOTH
def test_configuration_survives_json(make, tmp_path):
    config = make(num_channels=4, drop_path_rate=0.1, use_grn=False, head_init_scale=0.001, patch_size=2)
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert type(config)(**json.loads(config.to_json_string())).to_dict() == config.to_dict()


@BOTH
def test_common_properties_are_readable_and_writable(make):
    config = make()
    for name in ("hidden_sizes", "num_channels", "depths", "num_hidden_layers", "num_stages", "image_size"):
        setattr(config, name, getattr(config, name))
    assert config.num_hidden_layers == config.num_stages == 4
    assert make(num_labels=7).id2label == {index: f"LABEL_{index}" for index in range(7)}


@BOTH
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depths": [1, 1]}, r"`depths` \(=\[1, 1\]\) and `hidden_sizes` \(=\[8, 16, 24, 32\]\) must have the same"),
        ({"depths": [], "hidden_sizes": []}, r"`depths` \(=\[\]\) and `hidden_sizes` \(=\[\]\) must have the same"),
        ({"depths": [1, 0, 1, 1]}, r"`depths` \(=\[1, 0, 1, 1\]\) .* must be positive"),
        ({"hidden_sizes": [8, 16, 24, -1]}, r"`hidden_sizes` \(=\[8, 16, 24, -1\]\) must be positive"),
        ({"num_stages": 3}, r"`num_stages` \(=3\) must equal the length of `depths` \(=\[1, 1, 2, 1\]\)"),
        ({"num_channels": 0}, r"`num_channels` \(=0\) must be at least 1"),
        ({"patch_size": 0}, r"`patch_size` \(=0\) must be at least 1"),
        ({"drop_path_rate": 1.0}, r"`drop_path_rate` \(=1.0\) must be in \[0, 1\)"),
        ({"drop_path_rate": -0.1}, r"`drop_path_rate` \(=-0.1\) must be in \[0, 1\)"),
    ],
)
def test_bad_setting_is_named_with_its_value_and_rule(make, overrides, message):
    with pytest.raises(ValueError, match=message):
        make(**overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mask_ratio": 0.0}, r"`mask_ratio` \(=0.0\) must be in \(0, 1\)"),
        ({"mask_ratio": 1.0}, r"`mask_ratio` \(=1.0\) must be in \(0, 1\)"),
        ({"mask_ratio": -0.5}, r"`mask_ratio` \(=-0.5\) must be in \(0, 1\)"),
        ({"mask_ratio": float("nan")}, r"`mask_ratio` \(=nan\) must be in \(0, 1\)"),
        ({"patch_size": [2, 4]}, r"`patch_size` \(=\[2, 4\]\) must be one integer"),
        ({"decoder_hidden_size": 0}, r"`decoder_hidden_size` \(=0\) .* must be at least 1"),
        ({"decoder_num_hidden_layers": 0}, r"`decoder_num_hidden_layers` \(=0\) must be at least 1"),
    ],
)
def test_bad_pretraining_setting_is_named_with_its_value_and_rule(overrides, message):
    with pytest.raises(ValueError, match=message):
        small_fcmae_config(**overrides)


@pytest.mark.parametrize("setting", [{"mask_ratio": "0.6"}, {"norm_pix_loss": "yes"}, {"use_grn": 1.5}])
def test_setting_of_the_wrong_type_is_an_error(setting):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(setting))):
        small_fcmae_config(**setting)


def test_whole_numbers_are_taken_for_factors():
    config = small_fcmae_config(head_init_scale=1, feature_loss_weight=2, target_type="pixel+feature")
    assert (config.head_init_scale, config.feature_loss_weight) == (1, 2)


@pytest.mark.parametrize("name", ["mini", "", "Tiny"])
def test_unknown_size_names_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"`name` \(='{name}'\) must be one of atto, femto, pico, nano, tiny, small"):
        ConvNextV2Config.from_size(name)


@pytest.mark.parametrize("num_stages", [0, 5, "3", None])
def test_size_has_no_more_stages_than_published(num_stages):
    with pytest.raises(ValueError, match=rf"`num_stages` \(={num_stages!r}\) must be an integer between 1 and 4"):
        ConvNextV2Config.from_size("atto", num_stages=num_stages)


def test_overrides_at_loading_are_checked_together(tmp_path):
    small_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`depths` \(=\[1, 1\]\)"):
        ConvNextV2Config.from_pretrained(tmp_path, depths=[1, 1])
    config = ConvNextV2Config.from_pretrained(tmp_path, depths=[1, 1], hidden_sizes=[8, 16])
    assert (config.num_stages, config.stage_names) == (2, ["stem", "stage1", "stage2"])


def test_mask_ratio_is_written_resolved(tmp_path):
    small_fcmae_config(mask_ratio=None).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mask_ratio"] == 0.6


def test_model_accepts_a_stock_configuration():
    stock = transformers.ConvNextV2Config(**SMALL, num_labels=5, problem_type="regression")
    config = ConvNextV2ForImageClassification(stock).config
    assert type(config) is ConvNextV2Config
    assert config.problem_type == "regression"
    assert stock.to_dict().items() <= config.to_dict().items()


def test_stock_transformers_reads_our_configuration(tmp_path):
    config = small_config(drop_path_rate=0.1, layer_norm_eps=1e-6)
    config.save_pretrained(tmp_path)
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(read) is transformers.ConvNextV2Config
    assert {name: getattr(read, name) for name in SMALL} == SMALL
    assert (read.drop_path_rate, read.layer_norm_eps, read.num_labels) == (0.1, 1e-6, 5)


def test_we_read_a_stock_configuration(tmp_path):
    stock = transformers.ConvNextV2Config(**SMALL, num_labels=5)
    stock.save_pretrained(tmp_path)
    assert stock.to_dict().items() <= ConvNextV2Config.from_pretrained(tmp_path).to_dict().items()


def test_encoder_configuration_of_an_fcmae_folder_keeps_no_pretraining_field(tmp_path):
    small_fcmae_config(num_channels=4).save_pretrained(tmp_path)
    config = ConvNextV2Config.from_pretrained(tmp_path)
    assert config.model_type == config.to_dict()["model_type"] == "convnextv2"
    assert config.num_channels == 4
    assert not config.to_dict().keys() & {"mask_ratio", "norm_pix_loss", "decoder_hidden_size"}
    assert small_fcmae_config().to_dict().keys() >= {"mask_ratio", "norm_pix_loss", "decoder_hidden_size"}


def test_fcmae_configuration_of_an_encoder_folder_takes_defaults(tmp_path):
    small_config(num_channels=4).save_pretrained(tmp_path)
    config = ConvNextV2FCMAEConfig.from_pretrained(tmp_path)
    assert config.model_type == config.to_dict()["model_type"] == "convnextv2_fcmae"
    assert (config.num_channels, config.mask_ratio) == (4, 0.6)


@pytest.mark.parametrize("config_class", [ConvNextV2Config, ConvNextV2FCMAEConfig])
def test_folder_of_another_architecture_is_named_with_its_type(config_class, tmp_path):
    transformers.ResNetConfig().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"\(of type `resnet`\) must be a `convnextv2`, `convnextv2_fcmae` or `convnext` model"
    ):
        config_class.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="resnet"):
        ConvNextV2Model.from_pretrained(tmp_path)


def test_configuration_nested_in_another_model_is_read(tmp_path):
    outer = transformers.UperNetConfig(backbone_config=transformers.ConvNextV2Config(**SMALL))
    outer.save_pretrained(tmp_path)
    assert ConvNextV2Config.from_pretrained(tmp_path).hidden_sizes == SMALL["hidden_sizes"]


@BOTH
def test_out_features_and_out_indices_agree(make):
    assert make().out_features == ["stage4"]
    assert make(out_indices=[1, 3]).out_features == ["stage1", "stage3"]
    assert make(out_features=["stem", "stage2"]).out_indices == [0, 2]
    with pytest.raises(ValueError, match="should correspond to the same stages"):
        make(out_features=["stage1"], out_indices=[2])
    with pytest.raises(ValueError, match="must be a subset of stage_names"):
        make(out_features=["stage5"])


@pytest.mark.parametrize("size", ["96", [32], [32, 32, 32]])
@pytest.mark.parametrize("config_class", [ConvNextV2FCMAEConfig, ConvMAEConfig])
def test_a_size_that_is_no_number_or_pair_is_refused_in_words(size, config_class):
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match="image_size"):
        height_and_width(config_class(image_size=size).image_size)
