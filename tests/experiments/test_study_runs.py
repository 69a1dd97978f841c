"""The draws, the command lines and the folders of `make study`, written out: its published figures are of these."""

import argparse
import os
import subprocess

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from PIL import Image as Pictures
from sklearn.model_selection import train_test_split

from experiments import label_efficiency as study
from experiments.search import START, try_out
from experiments.solar_cells import normalization_flags, scratch_flags
from tests.photographs import quick_datasets
from training.comparison import launching

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
PHOTOGRAPHS = ["--image_mean", "0.6", "0.6", "0.6", "--image_std", "0.16", "0.16", "0.16"]


class Launched(Exception):
    """Raised instead of running a command."""


@pytest.fixture
def launched(monkeypatch):
    """The command lines that would be run, on a machine of four cores."""
    found = []

    def record(command, **options):
        found.append([os.path.basename(word) if word.endswith((".py", ".yaml")) else word for word in command[1:]])
        raise Launched

    monkeypatch.setattr(subprocess, "run", record)
    monkeypatch.setattr(launching, "usable_cores", lambda: 4)
    return found


def write_labelled(output, count):
    """Grey squares of two classes, as `data/labelled/{train,test}.parquet`."""
    features = Features({"image": Image(), "label": ClassLabel(names=["functional", "defective"])})
    (output / "data/labelled").mkdir(parents=True)
    for split in ("train", "test"):
        images = [Pictures.new("L", (8, 8), color=number % 256) for number in range(count)]
        rows = Dataset.from_dict({"image": images, "label": [n % 2 for n in range(count)]}, features=features)
        rows.to_parquet(output / f"data/labelled/{split}.parquet")
    return study.photographs_of(output, "train")


def begins(threads, script, recipe):
    return ["-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", threads, script, "--config", recipe]


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.25])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_share_is_drawn_by_scikit_learn_with_the_seed_as_its_state(share, seed):
    labels = [int(number % 10 < 3) for number in range(1968)]
    expected, _ = train_test_split(np.arange(1968), train_size=share, random_state=seed, stratify=labels)
    assert study.draw(labels, share, seed).tolist() == expected.tolist()
    assert study.draw(labels, share, seed).tolist() != study.draw(labels, share, seed + 1).tolist()


def test_all_labels_are_in_order():
    assert study.draw([0, 1, 1], 1.0, 5).tolist() == [0, 1, 2]


def test_pretraining_has_these_flags(launched, tmp_path):
    with pytest.raises(Launched):
        study.pretrain(tmp_path, tmp_path / "pretrain", normalization_flags())
    expected = [f"--dataset_name={tmp_path}/data/unlabelled", f"--output_dir={tmp_path}/pretrain"]
    expected += ["--checkpointing_steps=200", "--resume_from_checkpoint=latest", *PHOTOGRAPHS]
    assert launched == [begins("4", "pretrain.py", "pretrain_small_images.yaml") + expected]


@pytest.mark.parametrize(("count", "steps"), [(40, 123), (98, 158), (196, 200), (492, 281), (1968, 492)])
def test_fine_tuning_has_these_flags_and_steps(launched, tmp_path, count, steps):
    train = write_labelled(tmp_path, count)
    subset = study.write_subset(tmp_path, train, np.arange(count), "0.5-3")
    assert subset == tmp_path / "subsets/0.5-3"
    for name, start, at_a_time in ((study.FINETUNED, ["--model_name_or_path=x"], 2), (study.SCRATCH, ["--y=1"], 1)):
        with pytest.raises(Launched):
            study.finetune(subset, train, name, 3, start, at_a_time)
    runs = ["0.5-3-fine-tuned_from_FCMAE", "0.5-3-fine-tuned_from_random_weights"]
    for command, run, start, threads in zip(launched, runs, ("--model_name_or_path=x", "--y=1"), "24", strict=True):
        expected = [start, f"--dataset_name={subset}", f"--output_dir={tmp_path}/runs/{run}", "--seed=3"]
        expected += [f"--max_train_steps={steps}", f"--warmup_steps={steps // 8}", f"--eval_steps={steps}"]
        expected += ["--resume_from_checkpoint=latest"]
        assert command == begins(threads, "finetune.py", "finetune_demo.yaml") + expected


def test_random_weights_have_the_recipes_shape_and_one_rate():
    assert scratch_flags(study.RECIPE) == ["--model_size=atto", "--layer_decay=1.0"]


def test_the_search_pretrains_a_candidate_with_these_flags(launched, tmp_path):
    with pytest.raises(Launched):
        try_out(tmp_path, START, argparse.Namespace(jobs=2, seeds=[0]))
    name = "cell_size=16-crop_scale=0.3-learning_rate=0.0015-num_train_epochs=9"
    expected = [f"--dataset_name={tmp_path}/data/unlabelled", f"--output_dir={tmp_path}/pretrain/{name}"]
    expected += ["--checkpointing_steps=200", "--resume_from_checkpoint=latest", *PHOTOGRAPHS]
    expected += ["--patch_size=4", "--num_stages=3", "--learning_rate=0.0015", "--num_train_epochs=9"]
    expected += ["--warmup_epochs=1.0", "--crop_scale", "0.3", "1.0"]
    assert launched == [begins("2", "pretrain.py", "pretrain_small_images.yaml") + expected]


def test_a_subset_has_the_chosen_images_and_all_held_out_ones(tmp_path):
    folder = study.write_subset(tmp_path, write_labelled(tmp_path, 10), np.array([7, 2]), "0.2-0")
    found = load_dataset("parquet", data_dir=str(folder))
    assert [picture.getpixel((0, 0)) for picture in found["train"]["image"]] == [7, 2]
    assert found["train"]["label"][:] == [1, 0] and len(found["test"]) == 10


def test_pixel_statistics_are_of_the_brightness(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    images = [Pictures.fromarray(image) for image in pixels]
    rows = Dataset.from_dict({"image": images, "label": [0, 1, 0]}, features=features)
    statistics, labels = study.pixel_statistics(rows)
    scaled = pixels / 255
    expected = [[p.mean(), p.std(), *np.histogram(p, bins=16, range=(0, 1), density=True)[0]] for p in scaled]
    assert np.array_equal(statistics.numpy(), np.array(expected, np.float32)) and labels.tolist() == [0, 1, 0]


def test_the_table_has_means_and_deviations_over_the_seeds():
    scores = {"some": {"0.02-0": 0.5, "0.02-1": 0.6, "1-0": 0.7, "1-1": 0.7}}
    summary = study.summarise(scores, [0.02, 1.0], [0, 1])
    rows = study.table(summary).splitlines()
    assert rows == ["| method | 2% | 100% |", "|---|---:|---:|", "| some | 55.0 ± 7.1 | 70.0 ± 0.0 |"]
