"""Why YAML goes through our own few lines to the parser: what the libraries' ways break, beside ours that keeps it.

Each test fails on the day when the library keeps the promise: then call it, and delete ours with the test.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser
from transformers import HfArgumentParser

from training.settings.command_line import parse_settings
from training.settings.scripts import PretrainSettings

NEEDED = ["--dataset_name", "owner/images", "--output_dir", "my images"]
NEAREST = "Did you mean `mask_ratio`?"


@dataclass
class Settings:
    output_dir: str
    learning_rate: float = 0.1
    mask_ratio: float = 0.6
    seed: int = 0
    streaming: bool = False
    crop_scale: list[float] = field(default_factory=lambda: [0.2, 1.0])


def recipe(folder, text):
    file = folder / "recipe.yaml"
    file.write_text(text)
    return str(file)


def ours(*arguments):
    return SimpleNamespace(**parse_settings(PretrainSettings, [*NEEDED, *arguments]).values())


def by_dictionary(file):
    return HfArgumentParser(Settings).parse_yaml_file(file)[0]  # type: ignore[arg-type]


def by_arguments_file(*arguments):
    parser = HfArgumentParser(Settings)  # type: ignore[arg-type]
    return parser.parse_args_into_dataclasses(list(arguments), args_file_flag="--config", look_for_args_file=False)[0]


def by_jsonargparse(*arguments):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_class_arguments(Settings)
    return parser.parse_args(["--output_dir", "my images", *arguments])


def said_by_ours(capsys, *arguments):
    with pytest.raises(SystemExit):
        ours(*arguments)
    return capsys.readouterr().err


# `HfArgumentParser.parse_yaml_file`


def test_a_dictionary_of_yaml_is_not_checked_for_types(tmp_path, capsys):
    file = recipe(tmp_path, "output_dir: out\nlearning_rate: 1e-3\nseed: x\nstreaming: perhaps\n")
    assert by_dictionary(file) == Settings("out", "1e-3", seed="x", streaming="perhaps")  # type: ignore[arg-type]
    assert "argument --seed: invalid int value: 'x'" in said_by_ours(capsys, "--config", recipe(tmp_path, "seed: x"))
    assert ours("--config", recipe(tmp_path, "learning_rate: 1e-3")).learning_rate == 0.001


def test_a_dictionary_of_yaml_takes_no_flags_beside_it(tmp_path):
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'output_dir'"):
        by_dictionary(file := recipe(tmp_path, "seed: 3"))
    assert ours("--config", file).seed == 3 and ours("--config", file, "--seed", "4").seed == 4


def test_a_dictionary_of_yaml_names_no_nearest_key(tmp_path, capsys):
    file = recipe(tmp_path, "output_dir: out\nmask_ration: 0.5\n")
    with pytest.raises(ValueError, match="'mask_ration'") as error:
        by_dictionary(file)
    assert "mask_ratio'" not in str(error.value)
    assert f"{file}: `mask_ration` is not a setting. {NEAREST}" in said_by_ours(capsys, "--config", file)


# Its `args_file_flag`, which does take flags


def test_a_file_of_arguments_is_no_yaml_tears_texts_and_may_be_missing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        by_arguments_file("--config", recipe(tmp_path, "output_dir: out"))
    assert "required: --output_dir" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"not used by the HfArgumentParser: \[\"images'\"\]"):
        by_arguments_file("--config", recipe(tmp_path, "--output_dir 'my images'"))
    assert by_arguments_file("--config", "none.yaml", "--output_dir", "out") == Settings("out")
    assert ours("--config", recipe(tmp_path, "data_note: my images")).data_note == "my images"
    assert "`config` (=none.yaml) must be a YAML file." in said_by_ours(capsys, "--config", "none.yaml")


# jsonargparse


def test_in_jsonargparse_a_file_goes_before_a_flag_that_stands_before_it(tmp_path):
    file = recipe(tmp_path, "seed: 7")
    assert by_jsonargparse("--config", file, "--seed", "8").seed == 8
    assert by_jsonargparse("--seed", "8", "--config", file).seed == 7
    assert ours("--seed", "8", "--config", file).seed == 8


def test_jsonargparse_names_no_nearest_key(tmp_path, capsys):
    file = recipe(tmp_path, "mask_ration: 0.5")
    for arguments in (["--config", file], ["--mask_ration", "0.5"]):
        with pytest.raises(ArgumentError) as error:
            by_jsonargparse(*arguments)
        assert "mask_ration" in str(error.value) and "mask_ratio " not in str(error.value).replace("'", " ")
        assert NEAREST in said_by_ours(capsys, *arguments)


@pytest.mark.parametrize("flags", [["--streaming"], ["--crop_scale", "0.1", "0.5"], ["--mask-ratio", "0.5"]])
def test_jsonargparse_takes_no_flags_as_the_readme_writes_them(flags):
    """A switch alone, a list without brackets, a hyphen."""
    with pytest.raises(ArgumentError):
        by_jsonargparse(*flags)
    config = ours(*flags)
    assert (config.streaming, config.crop_scale == [0.1, 0.5], config.mask_ratio == 0.5).count(True) == 1
