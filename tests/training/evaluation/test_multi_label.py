"""Figures of several classes: scikit-learn's where it has them, written out where it has none."""

import csv
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from tests.training.evaluation.given import Given
from training.evaluation.multi_label import MultiLabelEvaluator, class_table, multi_label_figures

NAMES = ["cat", "dog", "bird", "fish"]


def figures_of(references, scores):
    names = NAMES[: references.shape[1]]
    return multi_label_figures(references, scores, class_table(references, scores, names))


def random_answers(seed, count=40, ties=False):
    random = np.random.default_rng(seed)
    references = random.random((count, 4)) < (0.5, 0.2, 0.05, 0.9)
    scores = random.normal(size=(count, 4)) + references
    return references, scores.round() if ties else scores


CASES = {
    "random": random_answers(0),
    "ties": random_answers(1, ties=True),
    "constant scores": (random_answers(2)[0], np.zeros((40, 4))),
    "one image": (np.array([[True, False, True, False]]), np.array([[1.0, 2.0, -1.0, -2.0]])),
    "all positives": (np.ones((9, 4), bool), random_answers(3, 9)[1]),
    "perfect": (random_answers(4)[0], np.where(random_answers(4)[0], 3.0, -3.0)),
    "saturated": (random_answers(5)[0], 1e4 * random_answers(5)[1]),
}


@pytest.mark.parametrize("case", CASES)
def test_figures_of_several_classes_are_those_of_scikit_learn(case):
    references, scores = CASES[case]
    known, given = references.any(axis=0), scores >= 0
    results = figures_of(references, scores)
    assert results["eval_samples"] == len(references)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes without an image or an answer
        macro = f1_score(references, given, average="macro", zero_division=np.nan)
        precisions = precision_score(references, given, average=None, zero_division=np.nan)
        recalls = recall_score(references, given, average=None, zero_division=np.nan)
    expected = average_precision_score(references[:, known], scores[:, known], average="macro")
    assert results["eval_mean_average_precision"] == pytest.approx(expected)
    assert results["eval_f1_micro"] == pytest.approx(f1_score(references, given, average="micro"))
    assert results["eval_f1_macro"] == pytest.approx(macro)
    for row in class_table(references, scores, NAMES):
        label = row["label"]
        assert row["images"] == references[:, label].sum()
        assert (row["ap"] is None) == (not known[label])
        for figure, column in (("precision", precisions), ("recall", recalls)):
            assert row[figure] == (None if np.isnan(column[label]) else pytest.approx(column[label]))


def test_a_class_that_no_image_has_counts_neither_for_nor_against():
    references, scores = random_answers(0)
    references[:, 1] = False
    rows = class_table(references, scores, NAMES)
    others = [row["ap"] for row in rows if row["label"] != 1]
    results = figures_of(references, scores)
    assert rows[1]["ap"] is None and rows[1]["recall"] is None and rows[1]["f1"] == 0  # it is given, and wrongly
    assert results["eval_mean_average_precision"] == pytest.approx(np.mean(others))
    assert results["eval_chance_average_precision"] == pytest.approx(references[:, [0, 2, 3]].mean())
    never = scores.copy()
    never[:, 1] = -1
    assert class_table(references, never, NAMES)[1]["f1"] is None
    assert figures_of(references, never)["eval_f1_macro"] > results["eval_f1_macro"]


def test_without_any_class_no_figure_is_made_up():
    nothing = np.zeros((5, 4), bool)
    assert figures_of(nothing, np.full((5, 4), -1.0)) == {"eval_samples": 5}
    wrong = figures_of(nothing, np.full((5, 4), 1.0))
    assert wrong == {"eval_samples": 5, "eval_f1_micro": 0.0, "eval_f1_macro": 0.0}


def test_one_class_is_measured_as_one_class_and_not_as_two():
    references, scores = (part[:, :1] for part in random_answers(0))
    true, given = references[:, 0], scores[:, 0] >= 0
    results = figures_of(references, scores)
    f1 = 2 * (true & given).sum() / (true.sum() + given.sum())
    assert results["eval_f1_micro"] == results["eval_f1_macro"] == pytest.approx(f1)
    assert results["eval_mean_average_precision"] == pytest.approx(average_precision_score(true, scores[:, 0]))


def test_average_precision_ranks_images_whose_sigmoids_are_all_one():
    references = np.array([[True], [False], [True], [False]])
    scores = np.array([[40.0], [30.0], [39.0], [29.0]])
    assert (1 / (1 + np.exp(-scores)).astype(np.float32) == 1).all()
    assert figures_of(references, scores)["eval_mean_average_precision"] == 1


def test_the_evaluator_measures_all_batches_and_writes_words_and_a_table(accelerator, tmp_path):
    references, scores = random_answers(0)
    logits, labels = torch.tensor(scores).float(), torch.tensor(references).float()
    batches = [{"pixel_values": logits[part], "labels": labels[part]} for part in (slice(25), slice(25, 40))]
    evaluator = MultiLabelEvaluator(NAMES)
    results = evaluator(accelerator, Given(), batches)
    likelihood = np.where(references, 1 / (1 + np.exp(-scores)), 1 / (1 + np.exp(scores)))
    assert results["eval_loss"] == pytest.approx(-np.log(likelihood).mean(), rel=1e-5)
    assert results == pytest.approx({"eval_loss": results["eval_loss"], **figures_of(references, scores)})
    words = evaluator.in_words(results)
    assert words.startswith("mean average precision ") and "(by chance: " in words and words.endswith(", 40 images")
    assert [line.split()[0] for line in evaluator.report().splitlines()] == ["class", *NAMES]
    (tmp_path / "eval_confusions.csv").write_text("of an earlier run")
    evaluator.save(tmp_path)
    with (tmp_path / "eval_per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["class"], int(row["images"])) for row in rows] == list(zip(NAMES, references.sum(axis=0), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["eval_per_class.csv"]
    assert evaluator(accelerator, Given(), batches, lambda: True) == {}
