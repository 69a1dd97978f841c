"""Whole runs on images with several classes or with values: learnt, stopped, resumed, validated, predicted, stored."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import ConvNextV2ForImageClassification as Stock
from transformers import pipeline

from tests.labelled_photographs import VALUES, pictures_with_labels, write_label_folder, write_label_parquet
from tests.photographs import (
    CLASSES,
    fcmae,
    forget_accelerate,
    fresh_accelerate,
    message_of,
    quick_datasets,
)
from tests.training.test_distributed import as_flags
from tests.training.test_distributed import run as launch
from training import finetune, predict, validate
from training.evaluation.pictures import read_metrics
from training.settings.command_line import parse_settings
from training.settings.prediction import PredictSettings
from training.settings.scripts import FinetuneSettings, ValidateSettings

__all__ = ["fcmae", "fresh_accelerate", "quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets", "fresh_accelerate")
MULTI, REGRESSION = "multi_label_classification", "regression"
RUN = {"num_workers": 0, "per_device_train_batch_size": 4, "logging_steps": 1, "with_tracking": False}
RUN |= {"learning_rate": 1e-2, "warmup_steps": 1, "max_train_steps": 4, "eval_split": "test", "image_size": 32}
LABELS = {
    "lists": {"label_column": "label"},
    "columns": {"label_column": list(CLASSES)},
    "values": {"label_column": list(VALUES)},
    "value": {"label_column": VALUES[0]},
}
NAMES = {"lists": CLASSES, "columns": CLASSES, "values": VALUES, "value": VALUES[:1]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root, splits = tmp_path_factory.mktemp("labels"), {"train": 16, "test": 7}
    return {
        "folder": write_label_folder(root / "folder", splits, "jsonl"),
        "parquet": write_label_parquet(root / "parquet", splits),
    }


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Enough to learn from, with the right labels and with each other's."""
    root, splits = tmp_path_factory.mktemp("large"), {"train": 96, "test": 48}
    return [write_label_parquet(root / str(shuffled), splits, shuffled=shuffled) for shuffled in (False, True)]


def run(output, dataset, labels, **fields):
    forget_accelerate()
    settings = {**RUN, **LABELS[labels], "dataset_name": str(dataset), "output_dir": str(output)}
    finetune.main(FinetuneSettings(**{**settings, **fields}))
    return Path(output)


def results_of(folder):
    return json.loads((folder / "all_results.json").read_text())


def losses_of(folder):
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def validated(folder, dataset, **fields):
    forget_accelerate()
    settings = {"model_name_or_path": str(folder), "dataset_name": str(dataset), "eval_split": "test", "num_workers": 0}
    return validate.main(ValidateSettings(**{**settings, **fields}))


def answers(folder, dataset, output, **fields):
    forget_accelerate()
    settings = {"model_name_or_path": str(folder), "dataset_name": str(dataset), "num_workers": 0}
    return predict.main(PredictSettings(**{**settings, "output_file": str(output), **fields}))


@pytest.mark.parametrize("labels", ["lists", "columns", "values", "value"])
def test_images_to_a_model_that_stock_transformers_answers_with_alike(labels, data, fcmae, tmp_path, capsys):
    cutmix = {} if "value" in labels else {"cutmix": 1.0}
    fields = {"model_name_or_path": fcmae, "mixup": 0.8, **cutmix, "ema_decay": 0.5, "label_smoothing": 0.1}
    folder = run(tmp_path / "run", data["folder"], labels, eval_steps=2, head_init_scale=1.0, **fields)
    results, told = results_of(folder), capsys.readouterr().out
    figures = (
        {"eval_mae", "eval_rmse", "eval_r2"} if "value" in labels else {"eval_mean_average_precision", "eval_f1_micro"}
    )
    assert figures | {"eval_loss", "train_loss"} <= set(results) and results["eval_samples"] == 7
    assert told.count("evaluation after step") == 2 and "Labels of split test:" in told
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == (REGRESSION if "value" in labels else MULTI)
    assert list(config["id2label"].values()) == list(NAMES[labels])
    written = json.loads((folder / "training_config.json").read_text())
    assert written["problem_type"] == config["problem_type"]
    assert written["label_smoothing"] == (0 if "value" in labels else 0.1)
    assert ("eval_per_value.csv" if "value" in labels else "eval_per_class.csv") in {
        file.name for file in folder.iterdir()
    }

    # Stock Transformers, on the same pictures.
    classify = pipeline("image-classification", model=Stock.from_pretrained(folder), image_processor=str(folder))
    files = sorted((data["folder"] / "test").glob("*.png"))
    found = [{each["label"]: each["score"] for each in classify(Image.open(file), top_k=9)} for file in files]
    rows = read_rows(answers(folder, data["folder"], tmp_path / "answers.csv", split="test"))
    assert [Path(row["image"]).name for row in rows] == [file.name for file in files]
    for row, scores in zip(rows, found, strict=True):
        prefix = "" if "value" in labels else "score_"
        assert {name: float(row[f"{prefix}{name}"]) for name in scores} == pytest.approx(scores, rel=1e-4, abs=1e-5)
        if "value" not in labels:
            above = [name for name, score in sorted(scores.items(), key=lambda pair: -pair[1]) if score >= 0.5]
            assert row["labels"] == "|".join(above)
    if "value" in labels:  # the errors, by another route
        true = {name: picture_labels for name, _, picture_labels in pictures_with_labels(7, 1)}
        errors = [
            abs(scores["lightness"] - true[file.name]["lightness"]) for file, scores in zip(files, found, strict=True)
        ]
        key = "eval_mae" if labels == "value" else "eval_mae_lightness"
        assert results[key] == pytest.approx(np.mean(errors), rel=1e-3)

    again = validated(folder, data["folder"], **LABELS[labels])
    assert {name: again[name] for name in figures} == pytest.approx({name: results[name] for name in figures}, rel=1e-3)
    assert ("eval_loss" in again) == ("value" not in labels)


def read_rows(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


PLAIN = {"crop_scale": [1.0, 1.0], "horizontal_flip": 0.0, "num_stages": 2, "image_size": 48, "learning_rate": 3e-3}
PLAIN |= {"per_device_train_batch_size": 16, "max_train_steps": 90, "warmup_steps": 5, "eval_steps": 90}


def test_several_classes_are_learnt_but_not_from_the_labels_of_other_images(large, tmp_path):
    results = [
        results_of(run(tmp_path / str(number), dataset, "lists", **PLAIN)) for number, dataset in enumerate(large)
    ]
    learnt, control = (each["eval_mean_average_precision"] for each in results)
    chance = results[0]["eval_chance_average_precision"]
    assert learnt > max(0.72, chance + 0.15) and control < learnt - 0.1, (learnt, control, chance)


def test_values_are_learnt_in_their_units_but_not_from_those_of_other_images(large, tmp_path):
    results = [
        results_of(run(tmp_path / str(number), dataset, "values", **PLAIN)) for number, dataset in enumerate(large)
    ]
    assert results[0]["eval_r2_lightness"] > 0.7 and results[0]["eval_r2_redness"] > 0.7, results[0]
    assert results[1]["eval_r2"] < 0.2, results[1]
    classify = pipeline("image-classification", model=str(tmp_path / "0"), device="cpu")
    for _, picture, labels in pictures_with_labels(3, 1):
        found = {each["label"]: each["score"] for each in classify(picture)}
        assert found["lightness"] == pytest.approx(labels["lightness"], rel=0.2)  # thousands


@pytest.mark.parametrize("labels", ["lists", "values"])
def test_a_stream_is_evaluated_as_the_whole_and_starts_from_the_same_scale(labels, data, fcmae, tmp_path):
    asked = {"problem_type": REGRESSION} if labels == "values" else {}
    fields = {"model_name_or_path": fcmae, "checkpointing_steps": 4}
    folder = run(tmp_path / "stream", data["parquet"], labels, streaming=True, **asked, **fields)
    results = results_of(folder)
    streamed, whole = (validated(folder, data["parquet"], streaming=value, **LABELS[labels]) for value in (True, False))
    assert streamed == pytest.approx(whole, rel=1e-6)
    assert {name: results[name] for name in whole} == pytest.approx(whole, rel=1e-3)
    run(tmp_path / "whole", data["parquet"], labels, **fields)
    configs = [json.loads((tmp_path / name / "checkpoint-4/config.json").read_text()) for name in ("stream", "whole")]
    assert [config.get("label_mean") for config in configs] == [configs[0].get("label_mean")] * 2
    assert ("label_mean" in configs[0]) == (labels == "values")


@pytest.mark.parametrize("labels", ["columns", "values"])
def test_a_run_that_is_resumed_ends_as_one_that_was_not_stopped(labels, data, fcmae, tmp_path):
    fields = {"model_name_or_path": fcmae, "ema_decay": 0.5, "mixup": 0.8, "checkpointing_steps": 2, "eval_steps": 2}
    whole = run(tmp_path / "whole", data["folder"], labels, **fields)
    part = tmp_path / "part"
    part.mkdir()
    for name in ("checkpoint-2", "metrics.jsonl", "training_config.json"):
        copy = shutil.copytree if (whole / name).is_dir() else shutil.copy
        copy(whole / name, part / name)
    resumed = run(part, data["folder"], labels, resume_from_checkpoint="latest", **fields)
    assert losses_of(resumed) == losses_of(whole)
    assert_close(load_file(resumed / "model.safetensors"), load_file(whole / "model.safetensors"), rtol=0, atol=0)
    message = message_of(
        lambda: (
            run(part, data["folder"], "lists", resume_from_checkpoint=str(whole / "checkpoint-2"), **fields)
            if labels == "values"
            else run(
                part,
                data["folder"],
                "columns",
                resume_from_checkpoint=str(whole / "checkpoint-2"),
                problem_type=REGRESSION,
                **fields,
            )
        )
    )
    assert f"its `problem_type` is {REGRESSION if labels == 'values' else MULTI}" in message or "num_labels" in message


def test_a_checkpoint_of_values_is_evaluated_in_their_units(data, fcmae, tmp_path):
    fields = {"model_name_or_path": fcmae, "ema_decay": 0.5, "checkpointing_steps": 4}
    folder = run(tmp_path / "run", data["folder"], "values", **fields)
    finished = validated(folder, data["folder"], **LABELS["values"])
    averaged = validated(folder / "checkpoint-4", data["folder"], use_ema=True, **LABELS["values"])
    assert averaged == pytest.approx(finished, rel=1e-4)
    assert finished["eval_mae_lightness"] < 2000  # the values are about 7000
    files = [
        answers(each, data["folder"], tmp_path / f"{each.name}.jsonl", split="test")
        for each in (folder, folder / "checkpoint-4")
    ]
    for file in files:
        assert all(3000 < json.loads(line)["lightness"] < 12000 for line in file.read_text().splitlines())


def test_training_goes_on_from_a_model_of_the_same_values(data, fcmae, tmp_path, capsys):
    first = run(tmp_path / "first", data["folder"], "values", model_name_or_path=fcmae, max_train_steps=8)
    before = results_of(first)
    still = {"learning_rate": 1e-12, "max_train_steps": 1, "warmup_steps": 0}
    second = run(tmp_path / "second", data["folder"], "values", model_name_or_path=str(first), **still)
    assert results_of(second)["eval_rmse"] == pytest.approx(before["eval_rmse"], rel=1e-3)
    capsys.readouterr()
    third = run(tmp_path / "third", data["folder"], "lists", model_name_or_path=str(first), **still)
    assert json.loads((third / "config.json").read_text())["problem_type"] == MULTI
    assert "label_mean" not in (third / "config.json").read_text()


@pytest.mark.parametrize("labels", ["lists", "values"])
def test_a_dry_run_shows_an_image_with_its_labels(labels, data, tmp_path, capsys):
    run(tmp_path / "out", data["folder"], labels, dry_run=True, num_stages=2)
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if line.startswith("  Labels")]
    first = pictures_with_labels(16)[0][2]
    shown = ", ".join(first["label"]) if labels == "lists" else f"lightness {first['lightness']:.6g}"
    assert "0.png: " in line and shown in line
    assert ("  Values" in told) == (labels == "values")
    run(tmp_path / "out", data["folder"], labels, dry_run=True, json=True, num_stages=2)
    found = json.loads(capsys.readouterr().out)
    assert found["labels"].startswith(line.split()[1][:10]) and found["problem_type"] in (MULTI, REGRESSION)


@pytest.mark.parametrize("labels", ["columns", "values"])
def test_the_recipe_for_small_images_takes_these_labels(labels, data, fcmae, tmp_path, capsys):
    words = [word for name in LABELS[labels]["label_column"] for word in (name,)]
    flags = {"model_name_or_path": fcmae, "dataset_name": data["folder"], "output_dir": tmp_path / "out"}
    flags |= {"max_train_steps": 2, "warmup_steps": 1, "num_workers": 0, "with_tracking": "false", "image_size": 32}
    recipe = "training/recipes/finetune_small_images.yaml"
    settings = parse_settings(FinetuneSettings, ["--config", recipe, "--label_column", *words, *as_flags(flags)])
    forget_accelerate()
    finetune.main(settings)
    told = capsys.readouterr().out
    assert ("`label_smoothing` is 0, not 0.1: values have none." in told) == (labels == "values")
    assert results_of(tmp_path / "out")["total_steps"] == 2


def test_what_has_no_meaning_for_a_problem_is_refused(data, fcmae, tmp_path):
    for labels, field, message in (
        ("values", {"cutmix": 1.0}, "`cutmix` (=1.0) must be 0 for regression"),
        ("values", {"metrics": ["mae"]}, "`metrics` (=['mae']) must not be given for regression"),
        ("lists", {"metrics": ["f1"]}, "`metrics` (=['f1']) must not be given for multi_label_classification"),
        (
            "columns",
            {"num_labels": 4},
            "`num_labels` (=4) must be 3, the label columns, for multi_label_classification",
        ),
    ):
        assert message in message_of(lambda: run(tmp_path / "out", data["folder"], labels, **field))  # noqa: B023
    folder = run(tmp_path / "run", data["folder"], "values", model_name_or_path=fcmae)
    message = message_of(lambda: validated(folder, data["folder"], mixed_precision="bf16", **LABELS["values"]))
    assert "`mixed_precision` (=bf16) must be no for regression" in message
    message = message_of(lambda: answers(folder, data["folder"], tmp_path / "a.csv", split="test", top_k=2))
    assert "`top_k` (=2) must be 1 for regression" in message
    for protocol in ("knn", "linear_probe"):
        message = message_of(lambda: validated(folder, data["folder"], protocols=[protocol]))  # noqa: B023
        assert "`problem_type` (=single_label_classification) must fit the labels: `label` holds lists" in message
    message = message_of(lambda: validated(folder, data["folder"], protocols=["knn"], **LABELS["columns"]))
    assert "must be one column, which holds the class of each image" in message


def test_the_threshold_decides_which_classes_an_image_is_given(data, fcmae, tmp_path):
    folder = run(tmp_path / "run", data["folder"], "lists", model_name_or_path=fcmae)
    for threshold, count in ((0.0, 3), (1.0, 0)):
        file = answers(folder, data["folder"], tmp_path / f"{count}.jsonl", split="test", threshold=threshold)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert all(len(row["labels"]) == count for row in rows) and len(rows) == 7
        scores = [[row[f"score_{name}"] for name in row["labels"]] for row in rows]
        assert all(each == sorted(each, reverse=True) for each in scores)


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["lists", "values"])
def test_two_processes_train_and_evaluate_as_one_does(labels, data, fcmae, tmp_path):
    losses, results = [], []
    for processes in (1, 2):
        settings = {**RUN, **LABELS[labels], "model_name_or_path": fcmae, "dataset_name": data["parquet"]}
        settings |= {"output_dir": tmp_path / str(processes), "per_device_train_batch_size": 4 // processes}
        settings |= {"head_init_scale": 1.0, "warmup_steps": 0, "learning_rate": 1e-3}
        settings["label_column"] = " ".join(np.atleast_1d(settings["label_column"]))
        launch(["training/finetune.py", *as_flags(settings)], processes, tmp_path)
        losses.append(losses_of(tmp_path / str(processes)))
        results.append(results_of(tmp_path / str(processes)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name in (name for name in results[0] if name.startswith("eval_")):
        assert results[1][name] == pytest.approx(results[0][name], rel=1e-3)
    assert results[1]["eval_samples"] == 7  # no multiple of the processes
    assert losses[0][0] != pytest.approx(losses[0][1], rel=1e-4)


def test_no_label_is_dropped_in_silence_by_a_run(data, fcmae, tmp_path):
    folder = shutil.copytree(data["folder"], tmp_path / "images")
    file = folder / "train/metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for field, value, labels, message in (
        ("lightness", None, "values", "`lightness` (=missing) must be a finite number; wrong for 1 of 16 images: "),
        ("coffee", 2, "columns", "`problem_type` (=None) must be given"),
        (
            "label",
            ["coffee", "coffee"],
            "lists",
            "`label` (=['coffee', 'coffee']) must name each class of an image once",
        ),
    ):
        broken = [{**row, field: value} if number == 5 else row for number, row in enumerate(rows)]
        file.write_text("".join(f"{json.dumps(row)}\n" for row in broken))
        told = message_of(lambda: run(tmp_path / "out", folder, labels, model_name_or_path=fcmae))  # noqa: B023
        assert message in told
    assert "5.png" in told and not (tmp_path / "out").exists()


def test_one_column_of_bits_becomes_a_classifier_of_one_class(data, fcmae, tmp_path):
    fields = {"label_column": "coffee", "problem_type": MULTI, "head_init_scale": 1.0}
    folder = run(tmp_path / "run", data["folder"], "lists", model_name_or_path=fcmae, **fields)
    picture = Image.open(data["folder"] / "test/0.png")
    (answer,) = pipeline("image-classification", model=str(folder), device="cpu")(picture)
    rows = read_rows(answers(folder, data["folder"], tmp_path / "a.csv", split="test"))
    assert answer["label"] == "coffee" and 0 < answer["score"] < 1
    assert float(rows[0]["score_coffee"]) == pytest.approx(answer["score"], abs=1e-5)
    assert torch.isfinite(torch.tensor(results_of(folder)["eval_mean_average_precision"]))
