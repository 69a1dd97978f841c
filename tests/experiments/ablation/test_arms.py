"""The arms are those of the plan: the settings that the scripts get, the blocks, and the hours that they take."""

import re
from pathlib import Path

import pytest

from experiments.ablation.arms import (
    ARMS,
    BLOCKS,
    GATE,
    GATE_SEEDS,
    PRETRAININGS,
    PRIMARY,
    RATES,
    SEEDS,
    STARTS,
)
from experiments.ablation.cases import Case, Length, cases_of, finetuning_flags, pretraining_flags, pretrainings_of
from experiments.ablation.estimate import estimate, runs_of
from experiments.ablation.replacements import REPLACEMENTS
from experiments.solar_cells import RECIPES
from hf_convnextv2.masking import count_visible
from training.settings.command_line import parse_settings
from training.settings.scripts import FinetuneSettings, PretrainSettings

ROOT = Path(__file__).parents[3]
REQUIRED = ["--dataset_name", "images", "--output_dir", "out"]


def settings_of(kind, recipe, flags):
    return parse_settings(kind, [*REQUIRED, "--config", str(RECIPES / f"{recipe}.yaml"), *flags]).values()


def pretraining(name, seed=3):
    return settings_of(PretrainSettings, "pretrain_demo", pretraining_flags(name, seed, Length()))


def finetuning(name, seed=3, rate=5e-4, steps=308):
    return settings_of(FinetuneSettings, "finetune_demo", finetuning_flags(ARMS[name], seed, rate, steps))


@pytest.mark.parametrize("name", PRETRAININGS)
def test_a_pre_training_is_the_recipes_with_one_change(name):
    found, expected = pretraining(name), settings_of(PretrainSettings, "pretrain_demo", [])
    changed = {key for key in found if found[key] != expected[key]}
    free = {"max_train_steps", "warmup_steps", "seed", "logging_steps", "checkpointing_steps", "with_tracking"}
    free |= {"check_images", "num_train_epochs", "warmup_epochs"}
    axes = {
        "v1": {"use_grn"},
        "hidden": {"mask_ratio"},
        "decoder_depth": {"decoder_num_hidden_layers"},
        "decoder_width": {"decoder_hidden_size"},
        "plain": {"norm_pix_loss"},
    }
    expected_changes = [names for start, names in axes.items() if name.startswith(start)]
    assert changed - free == (expected_changes[0] if expected_changes else set())
    steps = 6000 if name.endswith("_long") else 600
    assert (found["max_train_steps"], found["seed"], found["per_device_train_batch_size"]) == (steps, 3, 64)
    assert found["checkpointing_steps"] == steps // 4 and found["image_size"] == 96
    assert (found["model_size"], found["use_grn"]) == ("atto", False if name.startswith("v1") else None)


def test_masks_hide_as_many_of_nine_cells_as_their_names_say():
    ratios = {name: pretraining(name)["mask_ratio"] for name in PRETRAININGS}
    hidden = {name: 9 - count_visible(9, 0.6 if ratio is None else ratio) for name, ratio in ratios.items()}
    named = {name: int(name.removeprefix("hidden_")) for name in hidden if name.startswith("hidden_")}
    assert set(named.values()) == {3, 5, 7, 8} and all(hidden[name] == number for name, number in named.items())
    assert {hidden[name] for name in set(hidden) - set(named)} == {6}


def test_decoders_are_those_of_table_1():
    found = {name: pretraining(name) for name in PRETRAININGS}
    depths = [found[f"decoder_depth_{depth}"]["decoder_num_hidden_layers"] for depth in (2, 4)]
    widths = [found[f"decoder_width_{width}"]["decoder_hidden_size"] for width in (128, 256)]
    assert (depths, widths) == ([2, 4], [128, 256]) and found["plain_pixels"]["norm_pix_loss"] is False


@pytest.mark.parametrize("name", ARMS)
def test_fine_tuning_has_30_epochs_of_328_images_and_the_seed_and_rate(name):
    found, is_fresh = finetuning(name), ARMS[name].pretraining is None
    assert found["max_train_steps"] == 30 * 328 // 32 + 1 == 308 and found["per_device_train_batch_size"] == 32
    assert (found["seed"], found["learning_rate"]) == (3, 5e-4) and found["eval_steps"] == 308
    assert found["layer_decay"] == (1.0 if is_fresh else 0.85)
    assert found["use_grn"] == (False if name == "v1_random" else None)  # of weights, it follows from these


def test_blocks_have_the_arms_and_seeds_of_the_plan():
    assert {name: len(block.seeds) for name, block in BLOCKS.items()} == {
        "G": 3,
        "E1": 8,
        "E2": 8,
        "E3": 3,
        "E4": 3,
        "E5": 3,
        "L": 1,
    }
    named = {arm for block in BLOCKS.values() for arm in block.arms}
    assert named == set(ARMS) | set(GATE) and len(GATE) == len(STARTS) * len(RATES) == 8
    assert {each.replacement for each in PRETRAININGS.values()} == {None, *REPLACEMENTS}
    assert not set(GATE_SEEDS) & set(SEEDS)
    assert [(contrast.first, contrast.other) for contrast in PRIMARY] == [
        ("v2_fcmae", other) for other in ("v2_random", "v1_fcmae", "dense", "grn_dropped", "grn_added")
    ]
    eight = {case.key for case in cases_of(["E1", "E2"]) if case.seed == 7}
    assert {arm for contrast in PRIMARY for arm in (contrast.first, contrast.other)} <= eight


def test_an_arm_has_the_rate_of_the_start_that_it_modifies():
    starts = {name: arm.start for name, arm in ARMS.items()}
    own = {"v1_fcmae", "v1_fcmae_long", "grn_added", "v1_random", "v2_random", "v2_random_same_time"}
    assert {starts[name] for name in set(starts) - own} == {"v2_fcmae"}
    assert starts["grn_added"] == starts["v1_fcmae_long"] == "v1_fcmae" and starts["v2_random_same_time"] == "v2_random"
    assert [Case(key, 8).arm.start for key in GATE] == [start for start in STARTS for _ in RATES]


def test_what_blocks_share_is_run_once():
    runs = runs_of(list(BLOCKS), Length())
    folders = [run.folder for run in runs]
    assert len(folders) == len(set(folders))
    by_block = {name: [str(run.folder) for run in runs if run.block == name] for name in BLOCKS}
    # Pre-trainings and classifiers: (2 + 8) x 3; (2 + 7) x 8; 2 x 8; then two runs for each new arm and of three seeds.
    assert [len(found) for found in by_block.values()] == [30, 72, 16, 18, 24, 30, 4]
    alone = [str(run.folder) for run in runs_of(["E3"], Length())]
    assert "pretrain/v2_fcmae-2" in alone and "finetune/v1_fcmae-0" in alone and len(alone) == 30
    assert len(pretrainings_of(cases_of(["E1"]))) == 16
    assert {case.seed for case in cases_of(["G", "E1"], [1])} == {1, *GATE_SEEDS}


def test_the_estimate_tells_what_is_left():
    runs = runs_of(["G"], Length())
    text = estimate(runs, {runs[0].folder}, 2)
    hours = sum(run.seconds for run in runs[1:]) / 3600
    assert "30 runs,   1 done" in text and f"29 runs are left: {hours:.1f} core-hours" in text and "--jobs 2" in text


def test_make_knows_the_blocks():
    (line,) = re.findall(r"^BLOCKS := (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert line.split() == list(BLOCKS)
