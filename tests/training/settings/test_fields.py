"""What every setting is to a run is said at its field."""

from dataclasses import dataclass, fields

import pytest

from training.models.architecture import ARCHITECTURE
from training.settings.fields import about, operation, recipe
from training.settings.scripts import (
    DetectSettings,
    FinetuneSettings,
    PretrainSettings,
    SegmentSettings,
    ValidateSettings,
)

SCRIPTS = [PretrainSettings, FinetuneSettings, SegmentSettings, DetectSettings, ValidateSettings]
CONFIGS = pytest.mark.parametrize("config_class", SCRIPTS)


@CONFIGS
def test_every_setting_says_whether_the_result_depends_on_it(config_class):
    standings = config_class.facts()
    assert {standing.affects_result for standing in standings.values()} == {True, False}
    for name, standing in standings.items():
        others = {standing.overridden_by, standing.unused_with and standing.unused_with[0]} - {None}
        assert others <= set(standings) - {name}, name


def test_a_setting_of_which_nobody_said_it_is_found():
    @dataclass
    class Config:
        said: int = recipe(1, "said")
        forgotten: int = 2

    said, forgotten = fields(Config)
    assert about(said).affects_result
    with pytest.raises(ValueError, match="`forgotten` must be declared"):
        about(forgotten)


def test_a_default_that_is_a_list_is_no_two_configurations():
    @dataclass
    class Config:
        scale: list[float] = operation([1.0, 2.0], "of two numbers")

    Config().scale.append(3.0)
    assert Config().scale == [1.0, 2.0]


def test_a_resume_compares_the_recipe_and_leaves_what_the_plan_sums_up():
    compared = set(FinetuneSettings(dataset_name="images", output_dir="out").record().compared)
    assert {"mixup", "weight_decay", "dataset_name", "layer_decay", "seed", "warmup_steps"} <= compared
    assert not {"learning_rate", "gradient_accumulation_steps", "output_dir", "num_workers", "ddp_timeout"} & compared


# By the order of the images: test_batches.py
REFUSED_ELSEWHERE = {"seed", "streaming", "shuffle_buffer_size", "mixture_weights"}


@CONFIGS
def test_what_a_resume_refuses_is_the_order_of_the_images_or_the_shape_of_the_model(config_class):
    refused = {name for name, fact in config_class.facts().items() if fact.on_resume == "refuse"}
    shapes = {"model_size", *ARCHITECTURE}  # a size stands for widths and depths
    assert refused - REFUSED_ELSEWHERE <= shapes | {"num_stages", "num_labels"}
    given = set(ARCHITECTURE) & set(config_class.facts())
    assert given <= refused, "another shape must not be taken up"


def test_no_object_gets_all_settings_and_each_setting_has_one_owner():
    for settings_class in SCRIPTS:
        names = [field.name for field in settings_class.fields()]
        assert len(names) == len(set(names))
        assert max(len(fields(owner)) for owner in settings_class.owners().values()) <= 24
