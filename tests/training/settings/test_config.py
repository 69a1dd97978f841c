"""Settings: YAML, then flags; every wrong one is a line with the name, the value and the rule."""

import dataclasses
import re
from dataclasses import MISSING, fields, make_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from accelerate.utils import LoggerType
from transformers import HfArgumentParser

from hf_convnextv2 import ConvNextV2FCMAEConfig
from hf_convnextv2.configuration_convmae import CONVMAE_SIZES
from hf_convnextv2.configuration_convnextv2 import SIZES, V1_ONLY_SIZES
from tests.photographs import message_of
from training.console import errors
from training.settings.checks import may_be_there
from training.settings.command_line import Parser, parse_settings, say_once
from training.settings.families import FAMILIES
from training.settings.masked_autoencoder import CELLS, FEATURE_LOSSES, TARGET_TYPES
from training.settings.prediction import PredictSettings
from training.settings.run import TRACKERS
from training.settings.scripts import (
    DetectSettings,
    FinetuneSettings,
    PretrainSettings,
    SegmentSettings,
    ValidateSettings,
)

CONFIGS = (PretrainSettings, FinetuneSettings, SegmentSettings, DetectSettings, ValidateSettings)
OF_RECIPE = {"pretrain": PretrainSettings, "finetune": FinetuneSettings, "segment": SegmentSettings}
OF_RECIPE |= {"detect": DetectSettings}

RECIPES = sorted(Path("training/recipes").glob("*.yaml"))
NEEDED = ["--dataset_name", "images", "--output_dir", "out"]


def test_flags_go_before_the_file_and_the_file_before_the_defaults(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("base_learning_rate: 1e-3\nseed: 7\nstreaming: true\ncrop_scale: [0.3, 0.9]\nweight_decay: null\n")
    config = parse_settings(PretrainSettings, ["--seed", "8", "--config", str(file), *NEEDED])
    assert (config.data.seed, config.schedule.base_learning_rate, config.data.streaming) == (8, 1e-3, True)
    assert config.augmentation.crop_scale == [0.3, 0.9]
    assert config.optimizer.weight_decay == 0.05


@pytest.mark.parametrize(
    ("flags", "expected"), [([], False), (["--streaming"], True), (["--streaming", "false"], False)]
)
def test_a_switch_needs_no_value(flags, expected):
    assert parse_settings(PretrainSettings, [*NEEDED, *flags]).data.streaming is expected


@pytest.mark.parametrize("name", ["labels.csv", "labels.CSV", "metadata.jsonl", "*.csv"])
@pytest.mark.parametrize("settings", [PretrainSettings, FinetuneSettings, PredictSettings])
def test_a_list_of_images_in_place_of_their_folder_is_told_what_to_be_called(settings, name, tmp_path):
    (tmp_path / name).write_text("file_name,label\n1.jpg,cat\n")
    needed = {"output_dir": "o"}
    if settings is PredictSettings:
        needed = {"output_file": "o.csv", "model_name_or_path": "me/model"}
    message = message_of(lambda: settings(**needed, dataset_name=str(tmp_path / name)))
    assert f"`dataset_name` (={tmp_path / name}) must be the folder of the images" in message
    assert "called metadata.csv or metadata.jsonl and has a column `file_name`" in message
    assert settings(**needed, dataset_name=str(tmp_path)) and settings(**needed, dataset_name="me/labels.csv")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mask_ration", "0.5"], "`mask_ration` is not a setting. Did you mean `mask_ratio`?"),
        (["--mask-ration=0.5"], "Did you mean `mask_ratio`?"),
        (["--zzz", "1"], "`zzz` is not a setting. See --help."),
        (["--max-train-steps", "x"], "argument --max_train_steps: invalid int value: 'x'"),
        (["--dataset_name", "/no/such"], "`dataset_name` (=/no/such) must be a file or folder that exists, or a Hub"),
        (["--mask_ratio", "1.2"], "`mask_ratio` (=1.2) must be in (0, 1)."),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--config", "none.yaml"], "`config` (=none.yaml) must be a YAML file."),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_settings(PretrainSettings, [*NEEDED, *flags])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.count("\n") == 1


def test_an_unknown_key_of_a_file_names_file_and_nearest_key(tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text("num_epochs: 3\n")
    with pytest.raises(SystemExit):
        parse_settings(PretrainSettings, [*NEEDED, "--config", str(file)])
    assert f"{file}: `num_epochs` is not a setting. Did you mean `num_train_epochs`?" in capsys.readouterr().err


def test_a_flag_goes_before_what_a_recipe_would_put_in_its_place(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("eval_split: test\nmax_train_steps: 9\ncrop_scale: [0.1, 0.5]\nlearning_rate: 0.1\n")
    flags = [*NEEDED, "--config", str(recipe), "--train_val_split", "0.2", "--num-train-epochs=3"]
    say_once.cache_clear()
    config = parse_settings(FinetuneSettings, flags)
    assert parse_settings(FinetuneSettings, flags) == config  # as a script does
    assert (config.data.eval_split, config.data.train_val_split, config.schedule.max_train_steps) == (None, 0.2, None)
    assert (config.schedule.num_train_epochs, config.augmentation.crop_scale) == (3, [0.1, 0.5])
    assert config.schedule.learning_rate == 0.1
    said = capsys.readouterr().err
    assert "`--train_val_split` goes before `eval_split` of the recipe." in said and said.count("\n") == 2
    both = [*NEEDED, "--config", str(recipe), "--train_val_split", "0.2", "--eval_split", "test"]
    with pytest.raises(SystemExit):
        parse_settings(FinetuneSettings, both)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [1, 2", "must be valid YAML"),
        ("? [a, b]\n: 3", "must be valid YAML"),
        ("config: other.yaml", "`config` is not a setting."),
        ("help: true", "`help` is not a setting."),
    ],
)
def test_a_file_that_is_no_list_of_settings_is_one_line(text, message, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        parse_settings(PretrainSettings, [*NEEDED, "--config", str(tmp_path / "recipe.yaml")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_a_mistyped_flag_is_named_before_the_one_that_is_missing_for_it(capsys):
    with pytest.raises(SystemExit):
        parse_settings(PretrainSettings, ["--dataset_nam", "images", "--output_dir", "out"])
    assert "`dataset_nam` is not a setting. Did you mean `dataset_name`?" in capsys.readouterr().err


def test_of_several_processes_the_others_leave_the_first_one_time_to_tell_of_a_wrong_flag(monkeypatch, capsys):
    waited: list[float] = []
    monkeypatch.setattr(errors.time, "sleep", waited.append)
    for rank, expected in (("0", []), ("1", [errors.LAUNCHER_SECONDS])):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit) as stop:
            parse_settings(PretrainSettings, [*NEEDED, "--zzz"])
        assert stop.value.code == 2 and waited == expected and len(capsys.readouterr().err.splitlines()) == 1
        with pytest.raises(SystemExit):
            parse_settings(PretrainSettings, ["--help"])
        assert bool(capsys.readouterr().out) is (rank == "0")


def test_the_sizes_that_a_setting_takes_are_those_of_the_model():
    assert list(SIZES) == list(FAMILIES["convnextv2"].names)
    assert list(V1_ONLY_SIZES) == list(FAMILIES["convnextv2"].v1_only_names)
    assert list(CONVMAE_SIZES) == list(FAMILIES["convmae"].names)


def test_a_missing_output_folder_is_named(capsys):
    with pytest.raises(SystemExit):
        parse_settings(PretrainSettings, ["--dataset_name", "images"])
    assert "--output_dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (PretrainSettings, {"mask_ratio": 0.0}, "`mask_ratio` (=0.0) must be in (0, 1)."),
        (PretrainSettings, {"mask_ratio": 1.0}, "`mask_ratio` (=1.0) must be in (0, 1)."),
        (
            PretrainSettings,
            {"teacher_revision": "v2"},
            "`teacher_revision` (=v2) must come with `teacher_name_or_path`.",
        ),
        (PretrainSettings, {"decoder_hidden_size": 0}, "`decoder_hidden_size` (=0) must be at least 1."),
        (PretrainSettings, {"dataset_name": ""}, "`dataset_name` (=) must be given."),
        (PretrainSettings, {"json": True}, "`json` (=True) must come with `dry_run`."),
        (PretrainSettings, {"image_size": 0}, "`image_size` (=0) must be at least 1."),
        (PretrainSettings, {"num_workers": -1}, "`num_workers` (=-1) must be at least 0."),
        (
            PretrainSettings,
            {"gradient_accumulation_steps": 0},
            "`gradient_accumulation_steps` (=0) must be at least 1.",
        ),
        (PretrainSettings, {"learning_rate": float("nan")}, "`learning_rate` (=nan) must be finite."),
        (PretrainSettings, {"image_mean": [float("inf"), 0.0, 0.0]}, "`image_mean` (=[inf, 0.0, 0.0]) must be finite"),
        (PretrainSettings, {"model_size": "micro"}, "`model_size` (=micro) must be one of atto, femto, pico"),
        (PretrainSettings, {"model_type": "vit"}, "`model_type` (=vit) must be one of convnextv2, convmae."),
        (
            PretrainSettings,
            {"model_type": "convmae", "model_size": "atto"},
            "`model_size` (=atto) must be one of tiny, small, base.",
        ),
        (
            PretrainSettings,
            {"model_type": "convmae", "num_stages": 2},
            "`num_stages` (=2) must not be given for a ConvMAE: it is a setting of ConvNeXt V2.",
        ),
        (
            PretrainSettings,
            {"cell_size": 32},
            "`cell_size` (=32) must not be given for a ConvNeXt V2: it is a setting of ConvMAE.",
        ),
        (
            PretrainSettings,
            {"decoder_num_attention_heads": 4},
            "`decoder_num_attention_heads` (=4) must not be given for a ConvNeXt V2",
        ),
        (
            PretrainSettings,
            {"model_type": "convmae", "cell_size": 24},
            "`cell_size` (=24) must be a multiple of 16, the size of a token.",
        ),
        (
            PretrainSettings,
            {"model_type": "convmae", "cell_size": 64, "image_size": 96},
            "`image_size` (=96) must be a multiple of 64, the size of a cell (`cell_size`).",
        ),
        (
            PretrainSettings,
            {"model_name_or_path": "./none"},
            "(=./none) must be a folder that exists",
        ),
        (PretrainSettings, {"ema_decay": 1.0}, "`ema_decay` (=1.0) must be in [0, 1)."),
        (PretrainSettings, {"mixed_precision": "fp8"}, "`mixed_precision` (=fp8) must be no, fp16 or bf16."),
        (PretrainSettings, {"crop_scale": [0.5, 0.2]}, "must be two numbers, 0 < least <= largest <= 1."),
        (PretrainSettings, {"push_to_hub": True}, "`hub_model_id` (=None) must be given with `push_to_hub`."),
        (PretrainSettings, {"num_channels": 2, "image_std": [1.0]}, "must have one number for each of the 2 channels."),
        (PretrainSettings, {"skip_bad_images": True, "check_images": False}, "must be true with `skip_bad_images`"),
        (FinetuneSettings, {"layer_decay": 1.1}, "`layer_decay` (=1.1) must be in (0, 1]."),
        (FinetuneSettings, {"randaugment_magnitude": 31}, "must be between 0 and 30."),
        (
            FinetuneSettings,
            {"randaugment_num_ops": 2, "num_channels": 4},
            "must be 0 unless images have 1 or 3 channels.",
        ),
        (FinetuneSettings, {"train_val_split": 0.1, "eval_split": "test"}, "must not be given while streaming or with"),
        (
            FinetuneSettings,
            {"dataset_name": "a/*.parquet", "eval_split": "test"},
            "name the folder that has those of both",
        ),
        (
            ValidateSettings,
            {"dataset_name": "a.tar", "protocols": ["knn"], "model_name_or_path": "a/b"},
            "name the folder that has those of both",
        ),
        (ValidateSettings, {}, "`model_name_or_path` (=None) must be given."),
    ],
)
def test_a_bad_value_is_an_error_with_name_value_and_rule(config_class, settings, message):
    output = {} if config_class is ValidateSettings else {"output_dir": "out"}
    assert message in message_of(lambda: config_class(**{"dataset_name": "images", **output, **settings}))


def stock_of(owners):
    """The same dataclasses with the metadata that the parser of Transformers allows."""
    stock = []
    for owner in owners:
        named = []
        for field in fields(owner):
            default = {"default": field.default} if field.default_factory is MISSING else {}
            default = default or {"default_factory": field.default_factory}
            default = {} if default.get("default") is MISSING else default
            plain = dataclasses.field(**default, kw_only=True, metadata={"help": field.metadata["help"]})
            named.append((field.name, get_type_hints(owner)[field.name], plain))
        stock.append(make_dataclass(owner.__name__, named))
    return stock


SAMPLES = {int: "3", float: "0.5", str: "a text", bool: "true"}


@pytest.mark.parametrize("config_class", CONFIGS)
def test_flags_mean_what_the_parser_of_transformers_makes_of_them(config_class):
    owners = list(config_class.owners().values())
    stock, ours = HfArgumentParser(stock_of(owners)), Parser(owners, allow_abbrev=False)
    flags = [flag for flag in ours._option_string_actions if flag not in ("-h", "--help")]
    assert flags == [flag for flag in stock._option_string_actions if flag not in ("-h", "--help")]
    needed = [flag for action in ours._actions if action.required for flag in (action.option_strings[0], "x")]
    for flag in flags:
        action = ours._option_string_actions[flag]
        value = action.choices[0] if action.choices else SAMPLES.get(action.type, "true")
        values = [[value]] if action.nargs is None else {"?": [[], [value], ["no"]], "+": [[value] * 2], 0: [[]]}
        for given in values if isinstance(values, list) else values[action.nargs]:
            arguments = [*needed, flag, *given]
            assert vars(ours.parse_args(arguments)) == vars(stock.parse_args(arguments)), arguments


COUNTS = """max_train_samples shuffle_buffer_size patch_size num_stages per_device_train_batch_size max_train_steps
gradient_accumulation_steps logging_steps checkpointing_steps checkpoints_total_limit max_eval_samples num_labels
per_device_eval_batch_size eval_steps image_size num_channels"""
AMOUNTS = """min_learning_rate warmup_epochs warmup_steps weight_decay num_workers max_bad_images seed mixup cutmix
head_init_scale randaugment_num_ops randaugment_magnitude"""
RATES = "adam_beta1 adam_beta2 ema_decay train_val_split label_smoothing drop_path_rate"
SETS = "num_visible_sets decoder_hidden_size decoder_num_hidden_layers reconstruction_steps feature_target_layers"


@pytest.mark.parametrize(
    ("config_class", "names", "accepted", "refused"),
    [
        (FinetuneSettings, COUNTS, (1,), (0,)),
        (FinetuneSettings, AMOUNTS, (0,), (-1,)),
        (FinetuneSettings, "num_train_epochs base_learning_rate learning_rate max_grad_norm", (1e-9,), (0.0, -1.0)),
        (FinetuneSettings, RATES, (0.0, 0.999), (-0.001, 1.0)),
        (FinetuneSettings, "horizontal_flip random_erasing", (0.0, 1.0), (-0.001, 1.001)),
        (FinetuneSettings, "layer_decay", (0.001, 1.0), (0.0, 1.001)),
        (PretrainSettings, SETS, (1,), (0,)),
        (PretrainSettings, "mask_ratio", (0.001, 0.999), (0.0, 1.0)),
        (ValidateSettings, "knn_neighbors max_train_samples", (1,), (0,)),
        (ValidateSettings, "knn_temperature linear_probe_strength", (1e-9,), (0.0,)),
    ],
)
def test_the_ends_of_a_settings_range_are_where_they_are_said_to_be(config_class, names, accepted, refused):
    needed = {"model_name_or_path": "a/b"} if config_class is ValidateSettings else {"output_dir": "o"}
    for name in names.split():
        for value in accepted:
            assert config_class(dataset_name="x", **needed, **{name: value}).values()[name] == value
        for value in refused:
            message = message_of(lambda: config_class(dataset_name="x", **needed, **{name: value}))  # noqa: B023
            assert message.startswith(f"`{name}` (={value}) must be")


@pytest.mark.parametrize("config_class", CONFIGS)
def test_help_tells_of_each_setting_what_it_is_and_its_default_once(config_class, capsys):
    with pytest.raises(SystemExit):
        parse_settings(config_class, ["--help"])
    page = capsys.readouterr().out
    entries = {entry.split()[0]: " ".join(entry.split()) for entry in re.split(r"\n(?=  --)", page)[1:]}
    for field in config_class.fields():
        entry = entries[f"--{field.name}"].split("\n\n")[0]
        assert field.metadata["help"] in entry
        assert len(re.findall(r"\(default: |\(required\)", entry)) == 1, entry
        if field.default is True:
            assert entries[f"--no_{field.name}"].startswith(f"--no_{field.name} as --{field.name} false")
    assert len(page.split("  --", 1)[0].splitlines()) < 16  # no list of all flags before the text of the first one


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_made_of_settings_and_says_where_it_is_from(recipe):
    config_class = OF_RECIPE[recipe.name.split("_")[0]]
    config = parse_settings(config_class, ["--config", str(recipe), *NEEDED])
    assert all(config.values()[key] == value for key, value in yaml.safe_load(recipe.read_text()).items())
    header = recipe.read_text().partition("\n\n")[0]
    assert header.startswith("#") and ("accelerate launch training/" in header or "make demo" in header)


def test_a_folder_that_may_not_be_looked_into_is_no_missing_one(monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    assert may_be_there("/closed/images")  # what reads it says that it may not be read


def test_the_names_of_trackers_targets_and_losses_are_those_that_accelerate_and_the_models_know():
    assert set(TRACKERS) == {str(kind) for kind in LoggerType} - {"all"}
    for name, choices in (
        ("target_type", TARGET_TYPES),
        ("feature_target_on", CELLS),
        ("feature_loss", FEATURE_LOSSES),
    ):
        for choice in choices:
            features = {"target_type": "pixel+feature", "feature_target_on": "masked"}
            assert getattr(ConvNextV2FCMAEConfig(**{**features, name: choice}), name) == choice
