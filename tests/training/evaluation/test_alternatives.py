"""Why top-1 and top-5 accuracy are a metric of our own.

Each test fails on the day when the library keeps the promise: then call it, and delete ours with the test.
"""

import evaluate
import numpy as np
import pytest
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import top_k_accuracy_score

from training.evaluation.metrics import TopAccuracy


def scores_of(num_classes):
    generator = np.random.default_rng(0)
    return generator.normal(size=(40, num_classes)), generator.integers(num_classes, size=40)


def ours(scores, labels):
    ranked = np.argsort(-scores, axis=1)[:, :5]
    return TopAccuracy(keep_in_memory=True).compute(predictions=ranked, references=labels)


def by_sklearn(scores, labels, k):
    return top_k_accuracy_score(labels, scores, k=k, labels=range(scores.shape[1]))


def test_of_many_classes_it_is_what_sklearn_computes_of_all_scores():
    scores, labels = scores_of(20)
    expected = {"accuracy": by_sklearn(scores, labels, 1), "accuracy_top5": by_sklearn(scores, labels, 5)}
    assert ours(scores, labels) == pytest.approx(expected)


def test_sklearn_refuses_two_classes_and_warns_of_five_or_fewer():
    """The warning ends a run whose warnings are errors, and is one more line in any other."""
    with pytest.raises(ValueError, match="`y_true` is binary while y_score is 2d"):
        by_sklearn(*scores_of(2), 1)
    for num_classes in (3, 5):
        with pytest.warns(UndefinedMetricWarning):
            by_sklearn(*scores_of(num_classes), 5)
    assert all(ours(*scores_of(num_classes))["accuracy_top5"] == 1 for num_classes in (2, 3, 5))


def test_the_metrics_of_evaluate_need_the_network(monkeypatch, tmp_path):
    """Its `accuracy`, which has no top-5, is a script that is downloaded."""
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.loading, "init_dynamic_modules", lambda *arguments: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="'accuracy' doesn't exist on the Hugging Face Hub"):
        evaluate.load("accuracy")
    assert ours(*scores_of(20))
