"""What every setting is to a run is said at its field."""

from dataclasses import dataclass, fields

import pytest

from training.settings.config import FinetuneConfig, PretrainConfig, ValidateConfig
from training.settings.fields import names_compared, operation, recipe, standing_of

CONFIGS = pytest.mark.parametrize("config_class", [PretrainConfig, FinetuneConfig, ValidateConfig])


@CONFIGS
def test_every_setting_says_whether_the_result_depends_on_it(config_class):
    standings = {setting.name: standing_of(setting) for setting in fields(config_class)}
    assert {standing.affects_result for standing in standings.values()} == {True, False}
    for name, standing in standings.items():
        assert not standing.is_planned or standing.affects_result, name
        others = {standing.unless, standing.beside and standing.beside[0]} - {None}
        assert others <= set(standings) - {name}, name


def test_a_setting_of_which_nobody_said_it_is_found():
    @dataclass
    class Config:
        said: int = recipe(1, "said")
        forgotten: int = 2

    said, forgotten = fields(Config)
    assert standing_of(said).affects_result
    with pytest.raises(ValueError, match="`forgotten` must be declared"):
        standing_of(forgotten)


def test_a_default_that_is_a_list_is_no_two_configurations():
    @dataclass
    class Config:
        scale: list[float] = operation([1.0, 2.0], "of two numbers")

    Config().scale.append(3.0)
    assert Config().scale == [1.0, 2.0]


def test_a_resume_compares_the_recipe_and_leaves_what_the_plan_sums_up():
    compared = set(names_compared(FinetuneConfig(dataset_name="images", output_dir="out")))
    assert {"mixup", "weight_decay", "dataset_name", "layer_decay", "seed", "warmup_steps"} <= compared
    assert not {"learning_rate", "gradient_accumulation_steps", "output_dir", "num_workers", "ddp_timeout"} & compared
