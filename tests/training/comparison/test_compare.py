"""compare.py from images to the sentence: each run once, taken up after a stop, and figures that others confirm.

The scripts run in this process, with the flags of their command lines; `test_compare_killed.py` launches them.
"""

import json
import shutil

import numpy as np
import pytest
import yaml
from datasets import load_dataset
from sklearn.metrics import balanced_accuracy_score
from transformers import pipeline

from tests.photographs import (
    CLASSES,
    forget_accelerate,
    fresh_accelerate,
    message_of,
    quick_datasets,
    write_folder,
    write_tiny_convmae,
)
from training import compare, finetune, pretrain
from training.comparison import plan, runner
from training.comparison.runner import Runner
from training.comparison.starts import create_starts
from training.settings.command_line import parse_settings
from training.settings.comparison import CompareSettings
from training.settings.scripts import FinetuneSettings, PretrainSettings

__all__ = ["fresh_accelerate", "quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets", "fresh_accelerate")
SCRIPTS = {"pretrain": (pretrain, PretrainSettings), "finetune": (finetune, FinetuneSettings)}
TINY = {"per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3}
RECIPES = {
    "pretrain": {**TINY, "num_stages": 2, "image_size": 32, "decoder_hidden_size": 16, "max_train_steps": 3},
    "finetune": TINY,
}


@pytest.fixture
def launched(monkeypatch):
    """The runs that the scripts make in this process, one after the other."""
    found = []

    def launch(task, recipe, *flags, at_a_time, lock):
        forget_accelerate()
        module, kind = SCRIPTS[task]
        module.main(parse_settings(kind, ["--config", str(recipe), *flags]))
        forget_accelerate()
        found.append(next(flag for flag in flags if flag.startswith("--output_dir=")).rpartition("compare/")[2])

    monkeypatch.setattr(runner, "launch", launch)
    monkeypatch.setattr(Runner, "side_by_side", lambda self, tasks: [task() for task in tasks])
    return found


@pytest.fixture
def images(tmp_path):
    return write_folder(tmp_path / "images", {"train": 8, "test": 10})


@pytest.fixture
def settings(tmp_path, images):
    for task, recipe in RECIPES.items():
        (tmp_path / f"{task}.yaml").write_text(yaml.safe_dump(recipe))

    def create(**fields):
        own = {f"{task}_config": str(tmp_path / f"{task}.yaml") for task in RECIPES}
        own |= {"label_shares": [0.5, 1.0], "seeds": [0, 1], "finetune_steps": 2, "num_workers": 0}
        own |= {"dataset_name": str(images), "output_dir": str(tmp_path / "compare")}
        return CompareSettings(**{**own, **fields})

    return create


def test_a_comparison_is_taken_up_after_a_stop_and_its_figures_are_those_of_pipelines(
    settings, launched, monkeypatch, tmp_path
):
    output, launch = tmp_path / "compare", runner.launch

    def stopped(task, *flags, **options):
        if len(launched) == 4:
            raise KeyboardInterrupt
        launch(task, *flags, **options)

    monkeypatch.setattr(runner, "launch", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare.main(settings())
    assert launched == ["pretrain/fcmae-0", "pretrain/fcmae-1", "runs/0.5-0-random", "runs/0.5-0-fcmae"]
    assert not (output / "compare.json").exists()
    monkeypatch.setattr(runner, "launch", launch)
    text = compare.main(settings())
    cases = ("0.5-0", "0.5-1", "1-0", "1-1")
    assert len(launched) == len(set(launched)) == 10
    assert set(launched[2:]) == {f"runs/{case}-{start}" for case in cases for start in ("random", "fcmae")}

    found = json.loads((output / "compare.json").read_text())
    assert found["sentence"] in text and found["sentence"] in (output / "README.md").read_text()
    assert found["sentence"].startswith("Fine-tuned with 100 % of the labels (24 images), ")
    held_out = load_dataset("parquet", data_files=str(output / "data/labelled/test.parquet"), split="train")
    for case, start, title in (("0.5-1", "random", "random weights"), ("1-0", "fcmae", "FCMAE")):
        classifier = pipeline("image-classification", model=str(output / "runs" / f"{case}-{start}"), device="cpu")
        answers = [CLASSES.index(rows[0]["label"]) for rows in classifier(list(held_out["image"]), top_k=1)]
        expected = balanced_accuracy_score(held_out["label"][:], answers)
        assert found["figures"]["balanced accuracy"][f"fine-tuned from {title}"][case] == pytest.approx(expected)
    chance = found["figures"]["balanced accuracy"]["always the most frequent class"]
    assert chance == pytest.approx(dict.fromkeys(cases, 1 / 3))
    rows = (output / "README.md").read_text().count("\n| ")  # with headers: two metrics, differences, times
    assert rows == 2 * (1 + 3 * 2 + 2) + (1 + 2) + (1 + 2) and (output / "comparison.png").is_file()
    assert set(found["seconds"]) == {"random weights", "FCMAE"} and found["seconds"]["FCMAE"]["pretraining"] > 0

    compare.main(settings())  # all is there
    assert len(launched) == 10
    compare.main(settings(seeds=[0, 1, 2], label_shares=[1.0]))  # a seed more: its runs alone
    assert launched[10:] == ["pretrain/fcmae-2", "runs/1-2-random", "runs/1-2-fcmae"]
    message = message_of(lambda: compare.main(settings(finetune_steps=3)))
    assert "`output_dir`" in message and "finetune_steps: 2, now 3" in message and "folder of its own" in message


def test_all_starts_get_the_same_images_of_each_draw(settings, launched, tmp_path):
    compare.main(settings(methods=["fine_tuning"], seeds=[0], label_shares=[0.5]))
    read = [json.loads(file.read_text()) for file in (tmp_path / "compare/runs").glob("*/training_config.json")]
    names = {row["dataset_name"] for row in read}
    assert len(read) == 2 and names == {str(tmp_path / "compare/subsets/0.5-0")}
    assert {row["seed"] for row in read} == {0} and {row["max_train_steps"] for row in read} == {2}


def test_checkpoints_and_a_teacher_are_starts_and_may_be_added_to_a_comparison(settings, launched, tmp_path):
    recipe = {**RECIPES["pretrain"], "num_stages": None, "image_size": 64}
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(recipe))
    fields = {"pretrain_config": str(tmp_path / "whole.yaml"), "seeds": [0], "label_shares": [1.0]}
    compare.main(settings(**fields, methods=["linear_probe"]))
    teacher = shutil.copytree(tmp_path / "compare/pretrain/fcmae-0", tmp_path / "teacher")
    checkpoint = str(write_tiny_convmae(tmp_path / "convmae"))
    fields |= {"checkpoint": [checkpoint], "teacher_name_or_path": str(teacher)}
    assert "num_stages with the start continued" in message_of(lambda: create_starts(settings(checkpoint=[checkpoint])))
    compare.main(settings(**fields, methods=["linear_probe", "nearest_neighbours"]))
    kinds = [name.split("/")[1].split("-")[0] for name in launched]
    assert kinds == ["fcmae", "continued", "teacher"]
    found = json.loads((tmp_path / "compare/compare.json").read_text())
    titles = ["random weights", "FCMAE", "convmae", "convmae, then ConvMAE", "FCMAE with features of teacher"]
    assert found["starts"] == titles and "second best" in found["sentence"]
    assert found["sentence"].startswith("By linear probe fitted on 100 % of the labels")
    config = json.loads((tmp_path / f"compare/pretrain/{launched[2].split('/')[1]}/config.json").read_text())
    assert config["target_type"] == "pixel+feature"
    features = np.array([list(row.values()) for row in found["figures"]["accuracy"].values()])
    assert features.shape == (12, 1) and np.isfinite(features).all()


def test_shuffled_labels_have_no_winner(settings, launched, images, tmp_path):
    """A negative control with real features: every class holds photographs of all three."""
    mixed = tmp_path / "mixed"
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        files = sorted((images / split).rglob("*.jpg"))
        for number, index in enumerate(random.permutation(len(files)).tolist()):
            target = mixed / split / CLASSES[number % 3] / f"{index}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(files[index], target)
    for method in ("linear_probe", "nearest_neighbours"):
        compare.main(settings(dataset_name=str(mixed), methods=[method], label_shares=[1.0]))
        said = json.loads((tmp_path / "compare/compare.json").read_text())["sentence"]
        assert "neither FCMAE nor random weights" in said or "neither random weights nor FCMAE" in said


def test_the_report_of_a_few_held_out_images_names_them_and_claims_nothing(settings, launched, images, tmp_path):
    for number in range(7):
        (images / f"test/coffee/{number}.jpg").unlink()
    said = compare.main(settings(methods=["linear_probe"], label_shares=[1.0]))
    (pair,) = json.loads((tmp_path / "compare/compare.json").read_text())["differences"]
    assert pair["low"] is None and pair["high"] is None and -1 <= pair["gain"] <= 1
    report = (tmp_path / "compare/README.md").read_text()
    assert "nothing can be said: of some class, fewer than 5 images are held out." in said and "ahead" not in said
    assert "so that intervals are rough: astronaut (10), chelsea (10), coffee (3)." in report
    assert (
        "| not known: of some class, fewer than 5 images |" in report and " to " not in report.split("| 100% |")[1][:99]
    )


def test_the_dry_run_has_all_runs_and_their_time_and_writes_nothing(settings, monkeypatch, tmp_path):
    measured = []

    def measure(task, recipe, *flags, at_a_time):
        measured.append(parse_settings(SCRIPTS[task][1], ["--config", str(recipe), *flags]))
        return {"seconds_per_step": 2.0 if task == "pretrain" else 1.0, "plan": {"max_steps": 100}}

    monkeypatch.setattr(plan, "measure", measure)
    text = compare.main(settings(dry_run=True, finetune_steps=None, jobs=2))
    assert "50 % (12 images, 94 steps), 100 % (24 images, 108 steps)" in text
    assert "2 pre-trainings of 100 steps, 6 min 40 s" in text  # 2 x 100 steps of 2 s
    assert text.count("4 classifiers, 6 min 44 s") == 2  # 2 seeds x (94 + 108) steps of 1 s
    assert "10 min 4 s with `--jobs 2`" in text and "0 of 10 runs" in text  # (400 + 404 + 404) s / 2
    assert sorted(type(each).__name__ for each in measured) == ["FinetuneSettings", "PretrainSettings"]
    assert not (tmp_path / "compare").exists()


def test_wrong_input_is_refused_before_anything_is_written(settings, launched, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    fields = {"output_dir": str(tmp_path / "other")}
    assert "hold a comparison, but it holds something else" in message_of(lambda: compare.main(settings(**fields)))
    message = message_of(lambda: compare.main(settings(label_shares=[0.05, 1.0])))
    assert "`label_shares` (=0.05)" in message and "with a share of 0.125 or more, every class has some" in message
    message = message_of(lambda: compare.main(settings(label_column="kind")))
    assert "`label_column` (=kind)" in message
    (tmp_path / "empty").mkdir()
    fields = {"unlabelled_dataset_name": str(tmp_path / "empty")}
    assert "`unlabelled_dataset_name`" in message_of(lambda: compare.main(settings(**fields)))
    assert not (tmp_path / "compare").exists() and not launched


def test_a_folder_of_other_images_is_refused(settings, launched, images, tmp_path):
    few = {"methods": ["linear_probe"], "starts": ["random", "checkpoint"], "label_shares": [1.0], "seeds": [0]}
    few["checkpoint"] = [str(write_tiny_convmae(tmp_path / "convmae"))]
    compare.main(settings(**few))
    (images / "train/coffee/7.jpg").unlink()
    assert "it differs in images:" in message_of(lambda: compare.main(settings(**few)))


def test_other_images_to_pre_train_on_are_refused(settings, launched, tmp_path):
    more = write_folder(tmp_path / "more", {"train": 4})
    few = {"methods": ["linear_probe"], "label_shares": [1.0], "unlabelled_dataset_name": str(more)}
    compare.main(settings(**few, seeds=[0]))
    compare.main(settings(**few, seeds=[0, 1]))
    assert launched == ["pretrain/fcmae-0", "pretrain/fcmae-1"]
    file = more / "train/coffee/0.jpg"
    file.write_bytes(file.read_bytes())
    assert "it differs in unlabelled images:" in message_of(lambda: compare.main(settings(**few, seeds=[0, 1])))


def test_held_out_images_are_not_pre_trained_on(settings, launched, images, tmp_path):
    message = message_of(lambda: compare.main(settings(unlabelled_dataset_name=str(images / "test"))))
    assert "must leave the held-out images out, but holds 30 of them, such as" in message
    assert "test/astronaut/0.jpg" in message and not launched and not (tmp_path / "compare").exists()
    (tmp_path / "links").mkdir()
    for number, file in enumerate(sorted(images.rglob("*.jpg"))):
        (tmp_path / f"links/{number}.jpg").symlink_to(file)
    message = message_of(lambda: compare.main(settings(unlabelled_dataset_name=str(tmp_path / "links"))))
    assert "must leave the held-out images out, but holds 30 of them" in message and not launched


@pytest.mark.parametrize(
    ("task", "name", "value"),
    [("finetune", "max_train_samples", 4), ("pretrain", "streaming", True), ("finetune", "push_to_hub", True)],
)
def test_recipes_that_would_make_the_report_untrue_are_refused(task, name, value, settings, launched, tmp_path):
    given = settings()
    (tmp_path / f"{task}.yaml").write_text(yaml.safe_dump({**RECIPES[task], name: value}))
    assert f"`{task}_config`" in (message := message_of(lambda: compare.main(given)))
    assert f"must not set `{name}`" in message and not launched


def test_a_number_of_held_out_images_goes_with_a_split_of_them(settings, launched, images):
    shutil.rmtree(images / "test")
    assert "`max_eval_samples` (=3) must be left out" in message_of(lambda: compare.main(settings(max_eval_samples=3)))


def test_a_folder_in_use_is_refused(settings, launched, tmp_path):
    with compare.only_one(tmp_path / "compare"):
        assert "must not be in use" in message_of(lambda: compare.main(settings()))
