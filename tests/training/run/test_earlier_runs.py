"""A run that an earlier version of this package stopped goes on with this one.

`earlier_runs/` was written by version 0.1.0 of 24 November 2026, before settings had owners: `start`, a tiny
pre-training model, and of two runs from it `checkpoint-2` of 4 steps, the settings and the log of all 4.
"""

import shutil
from pathlib import Path

import pytest

from tests.photographs import fresh_accelerate, quick_datasets, write_folder
from training import finetune, pretrain
from training.evaluation.pictures import read_metrics
from training.settings.scripts import FinetuneSettings, PretrainSettings

__all__ = ["fresh_accelerate", "quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets", "fresh_accelerate")
EARLIER = Path(__file__).parent / "earlier_runs"
COMMON = {"num_workers": 0, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1}
COMMON |= {"with_tracking": False, "ema_decay": 0.5, "learning_rate": 1e-2, "warmup_steps": 1, "max_train_steps": 4}
TASKS = {
    "pretrain": (pretrain, PretrainSettings, {"target_type": "pixel+feature", "num_visible_sets": 2}),
    "finetune": (
        finetune,
        FinetuneSettings,
        {"eval_split": "test", "mixup": 0.8, "layer_decay": 0.9, "label_smoothing": 0.1},
    ),
}


def losses(folder):
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line or "eval_loss" in line]
    return [line.get("loss", line.get("eval_loss")) for line in lines]


@pytest.mark.parametrize("task", TASKS)
def test_a_checkpoint_of_an_earlier_version_is_taken_up_with_the_losses_that_it_would_have_had(task, tmp_path, capsys):
    script, settings_class, own = TASKS[task]
    shutil.copytree(EARLIER / task, tmp_path / "run")
    images = write_folder(tmp_path / "images", {"train": 6, "test": 3})
    places = {"dataset_name": str(images), "output_dir": str(tmp_path / "run")}
    places |= {"model_name_or_path": str(EARLIER / "start"), "resume_from_checkpoint": "latest"}
    script.main(settings_class(**{**COMMON, **own, **places}))
    said = capsys.readouterr().out
    assert "checkpoint-2 after step 2." in said and "Warning" not in said
    changed = {line.split("`")[1] for line in said.splitlines() if "was written with `" in line}
    assert changed == {"dataset_name", "model_name_or_path"}  # which lie elsewhere here
    # Another processor rounds differently.
    assert losses(tmp_path / "run") == pytest.approx(losses(EARLIER / task), rel=1e-4)


def test_a_run_from_the_start_without_the_checkpoint_has_other_losses(tmp_path):
    """The control: the losses compared above depend on what the checkpoint holds."""
    script, settings_class, own = TASKS["pretrain"]
    images = write_folder(tmp_path / "images", {"train": 6, "test": 3})
    places = {"dataset_name": str(images), "output_dir": str(tmp_path / "run")}
    places |= {"model_name_or_path": str(EARLIER / "start"), "seed": 1}
    script.main(settings_class(**{**COMMON, **own, **places}))
    assert losses(tmp_path / "run") != pytest.approx(losses(EARLIER / "pretrain"), rel=1e-4)
