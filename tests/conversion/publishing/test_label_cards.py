"""The card of a classifier of several labels, and of a model that predicts values: figures, Hub metadata, code."""

import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from conversion.publishing.card import write_card
from hf_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification, create_image_processor
from tests.small_models import awake
from training.data.labels import label_maps
from training.evaluation.multi_label import MultiLabelEvaluator, class_table, multi_label_figures
from training.evaluation.regression import RegressionEvaluator, regression_figures, value_table
from training.settings.scripts import FinetuneSettings

MULTI, REGRESSION = "multi_label_classification", "regression"
CLASSES, VALUES = ["cat", "do|g", "bird"], ["price", "weight"]


def write_run(folder, problem_type, num_channels=3):
    """A folder as a run leaves it; the results of its evaluation."""
    random, names = np.random.default_rng(0), CLASSES if problem_type == MULTI else VALUES
    sizes = {"depths": [1, 1], "hidden_sizes": [8, 16], "image_size": 32, "num_channels": num_channels}
    config = ConvNextV2Config(**sizes, problem_type=problem_type, **label_maps(names))
    awake(ConvNextV2ForImageClassification(config)).save_pretrained(folder)
    create_image_processor(config).save_pretrained(folder)
    if problem_type == MULTI:
        references, scores = random.random((20, 3)) < 0.4, random.normal(size=(20, 3))
        evaluator = MultiLabelEvaluator(names)
        evaluator.rows = class_table(references, scores, names)
        results = {"eval_loss": 0.5, **multi_label_figures(references, scores, evaluator.rows)}
    else:
        true = random.normal(1000, 50, (20, 2))
        evaluator = RegressionEvaluator(names)
        evaluator.rows = value_table(true, true + random.normal(0, 10, true.shape), names)
        results = {"eval_loss": 0.5, **regression_figures(evaluator.rows)}
    evaluator.save(folder)
    settings = FinetuneSettings(
        dataset_name="me/tagged", output_dir="out", problem_type=problem_type, eval_split="test"
    )
    record = {**settings.values(), "recipe": settings.record().recipe, "run": "finetune"}
    (folder / "training_config.json").write_text(json.dumps(record))
    (folder / "all_results.json").write_text(json.dumps(results))
    return results, evaluator.rows


def front_matter(card):
    return yaml.safe_load(card.split("---")[1])


def section(card, title):
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


def table_of(text):
    rows = [line.replace(r"\|", "/") for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_hub_reads_the_figures_of_several_classes_by_its_names(tmp_path):
    results, rows = write_run(tmp_path, MULTI)
    card = write_card(tmp_path)
    head = front_matter(card)
    assert head["pipeline_tag"] == "image-classification" and "multi-label-image-classification" in head["tags"]
    assert head["metrics"] == ["mean_average_precision", "f1"]
    (result,) = head["model-index"][0]["results"]
    assert result["task"] == {"type": "image-classification", "name": "Multi-label image classifier"}
    found = {metric["name"]: (metric["type"], metric["value"], metric.get("args")) for metric in result["metrics"]}
    assert found["F1, macro average"] == ("f1", results["eval_f1_macro"], {"average": "macro"})
    assert found["F1, micro average"] == ("f1", results["eval_f1_micro"], {"average": "micro"})
    expected = ("mean_average_precision", results["eval_mean_average_precision"], None)
    assert found["Mean average precision of the classes"] == expected
    assert (
        "A [ConvNeXt V2]" in card and "multi-label image classifier" in card and "3 classes: cat, do|g, bird." in card
    )
    table = table_of(section(card, "Figures per class"))
    assert [row[:2] for row in table] == [[row["class"].replace("|", "/"), str(row["images"])] for row in rows]
    assert [row[2] for row in table] == [f"{100 * row['ap']:.1f} %" for row in rows]
    assert "choose a threshold" in section(card, "Limits") and "every image gets one of them" not in card
    assert "| mean average precision of random answers, evaluation images | " in section(card, "Figures")


def test_the_hub_reads_the_errors_of_values_by_its_names(tmp_path):
    results, rows = write_run(tmp_path, REGRESSION)
    card = write_card(tmp_path)
    head = front_matter(card)
    assert head["pipeline_tag"] == "image-classification" and "image-regression" in head["tags"]
    assert head["metrics"] == ["mae", "rmse", "r_squared"]
    (result,) = head["model-index"][0]["results"]
    assert result["task"]["name"] == "Image regression"
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "mae": results["eval_mae"],
        "rmse": results["eval_rmse"],
        "r_squared": results["eval_r2"],
    }
    assert [metric["name"] for metric in result["metrics"]] == [
        f"{name}, mean over the 2 values, each in its own unit"
        for name in ("Mean absolute error", "Root mean squared error", "R squared")
    ]
    assert "| mean absolute error, mean over the 2 values, each in its own unit, evaluation images | " in card
    assert "2 values: price, weight." in card and "eval_mae_price" not in card
    table = table_of(section(card, "Figures per value"))
    expected = [[row["value"], *(f"{row[key]:.4g}" for key in ("mean", "std", "mae", "rmse", "r2"))] for row in rows]
    assert table == expected
    limits = section(card, "Limits")
    assert "calibrated" not in limits and "in the range of theirs" in limits


@pytest.mark.parametrize("num_channels", [3, 1])
@pytest.mark.parametrize("problem_type", [MULTI, REGRESSION])
def test_the_code_of_the_card_answers_as_the_problem_asks(problem_type, num_channels, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "model"
    write_run(folder, problem_type, num_channels)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", write_card(folder), flags=re.DOTALL)[0], names)
    printed = capsys.readouterr().out
    if problem_type == REGRESSION:
        found = names["values"] if num_channels == 1 else [answer["score"] for answer in names["answers"]]
        assert all(f"{value}" in printed for value in found) and len(found) == 2
    else:
        found = names["scores"] if num_channels == 1 else [answer["score"] for answer in names["answers"]]
        assert len(found) == 3 and all(0 < score < 1 for score in found) and abs(sum(found) - 1) > 1e-3
        assert sum(name in printed for name in CLASSES) == sum(score >= 0.5 for score in found)
