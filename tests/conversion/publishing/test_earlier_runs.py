"""Cards of folders from before runs noted their recipe, and that no other folder depends on the tables for them."""

import json
import re
from pathlib import Path
from typing import Any

from conversion.publishing import earlier_runs
from conversion.publishing.card import render_card
from conversion.publishing.earlier_runs import has_license_of_nobody, is_earlier_run
from hf_convnextv2 import ConvNextV2ForImageClassification
from tests.small_models import small_config

# training_config.json as a development version of October 2026 wrote it, in its order.
EARLIER: dict[str, Any] = {
    "run": "finetune",
    "local": ["model_name_or_path"],
    "dataset_name": "me/flowers",
    "train_split": "train",
    "eval_split": "validation",
    "train_val_split": 0.15,
    "output_dir": "/home/someone/out",
    "overwrite_output_dir": False,
    "model_name_or_path": "/home/someone/pretrained",
    "model_size": "atto",
    "num_stages": 4,
    "patch_size": 4,
    "image_size": 64,
    "streaming": False,
    "shuffle_buffer_size": 1000,
    "mixup": 0.0,
    "randaugment_num_ops": 0,
    "randaugment_magnitude": 9,
    "base_learning_rate": 0.0005,
    "learning_rate": 0.001,
    "weight_decay": 0.05,
    "num_train_epochs": 100,
    "max_train_steps": 500,
    "warmup_epochs": 20.0,
    "warmup_steps": None,
    "layer_decay": 0.9,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 128,
    "activation_checkpointing": True,
    "num_workers": 4,
    "report_to": "tensorboard",
    "ddp_timeout": 1800,
    "hub_model_id": "me/flowers-atto",
    "license": None,
    "seed": 0,
}
RECIPE = {
    "dataset_name": "me/flowers",
    "train_split": "train",
    "eval_split": "validation",
    "model_name_or_path": "pretrained",
    "image_size": "64",
    "streaming": "no",
    "mixup": "0",
    "randaugment_num_ops": "0",
    "learning_rate": "0.001",
    "weight_decay": "0.05",
    "max_train_steps": "500",
    "warmup_epochs": "20",
    "layer_decay": "0.9",
    "per_device_train_batch_size": "64",
    "seed": "0",
}


def recipe_in_card(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    ConvNextV2ForImageClassification(small_config()).save_pretrained(folder)
    (folder / "training_config.json").write_text(json.dumps(settings))
    section = render_card(folder).split("## Recipe")[1].split("## ")[0]
    return dict(re.findall(r"\| `(\w+)` \| (.+) \|", section))


def test_the_card_of_an_earlier_run_shows_what_its_result_depends_on(tmp_path):
    assert recipe_in_card(tmp_path, EARLIER) == RECIPE


def test_without_the_tables_it_would_show_everything(tmp_path, monkeypatch):
    """The control of the test above."""
    for name in ("NOT_OF_THE_RECIPE", "REPLACED_BY", "NEEDS"):
        monkeypatch.setattr(earlier_runs, name, {})
    shown = recipe_in_card(tmp_path, EARLIER)
    assert {"output_dir", "ddp_timeout", "model_size", "randaugment_magnitude"} <= set(shown)


def test_the_tables_are_not_read_for_a_run_that_noted_its_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr("conversion.publishing.sections.recipe.names_of_earlier_recipe", lambda settings: 1 / 0)
    noted = {**EARLIER, "recipe": ["seed", "output_dir", "a setting that is gone"]}
    assert recipe_in_card(tmp_path, noted) == {"seed": "0", "output_dir": "/home/someone/out"}


def test_which_runs_are_earlier_ones():
    assert is_earlier_run(EARLIER)
    assert not is_earlier_run({**EARLIER, "recipe": []})
    assert not is_earlier_run({}), "no run at all"


def test_only_the_licence_that_an_earlier_run_noted_by_itself_is_of_nobody():
    from_nothing = {"model_name_or_path": None, "license": "apache-2.0"}
    assert has_license_of_nobody({**EARLIER, **from_nothing})
    for stated in ({"license": "mit"}, {"license": None}, {"recipe": []}, {"model_name_or_path": "me/base"}):
        assert not has_license_of_nobody({**EARLIER, **from_nothing, **stated})
