"""Figures of values: those of scikit-learn, in the units of the data whatever a model is trained on."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from tests.training.evaluation.given import Given
from training.evaluation.regression import RegressionEvaluator, regression_figures, value_table

NAMES = ["price", "age of it"]


def values(count=30, seed=0):
    random = np.random.default_rng(seed)
    true = random.normal((350_000, 0.002), (90_000, 0.0005), (count, 2))
    return true, true + random.normal(0, (20_000, 0.0003), (count, 2))


def test_figures_of_values_are_those_of_scikit_learn():
    true, found = values()
    results = regression_figures(value_table(true, found, NAMES))
    for column, name in enumerate(NAMES):
        pair = true[:, column], found[:, column]
        assert results[f"eval_mae_{name}"] == pytest.approx(mean_absolute_error(*pair))
        assert results[f"eval_rmse_{name}"] == pytest.approx(np.sqrt(mean_squared_error(*pair)))
        assert results[f"eval_r2_{name}"] == pytest.approx(r2_score(*pair))
    assert results["eval_mae"] == pytest.approx(mean_absolute_error(true, found))  # the mean over both, as theirs
    assert results["eval_r2"] == pytest.approx(r2_score(true, found))
    assert results["eval_samples"] == 30


def test_of_one_value_the_figures_stand_once():
    true, found = (part[:, :1] for part in values())
    results = regression_figures(value_table(true, found, NAMES[:1]))
    assert set(results) == {"eval_samples", "eval_mae", "eval_rmse", "eval_r2"}


def test_the_mean_as_an_answer_has_no_r2_to_be_proud_of():
    true, _ = values()
    mean = np.broadcast_to(true.mean(axis=0), true.shape)
    results = regression_figures(value_table(true, mean, NAMES))
    assert results["eval_r2"] == pytest.approx(0, abs=1e-9)
    assert results["eval_rmse_price"] == pytest.approx(true[:, 0].std())


@pytest.mark.parametrize("count", [1, 5])
def test_a_value_that_does_not_differ_has_no_r2(count):
    true, found = values(count)
    true[:, 0] = true[0, 0]
    rows = value_table(true, found, NAMES)
    assert rows[0]["r2"] is None and rows[0]["mae"] > 0
    results = regression_figures(rows)
    assert "eval_r2_price" not in results
    if count > 1:
        assert results["eval_r2"] == results["eval_r2_age of it"] == pytest.approx(r2_score(true[:, 1], found[:, 1]))
    else:
        assert "eval_r2" not in results
        assert "R2" not in RegressionEvaluator(NAMES).in_words(results)


def test_a_model_under_training_is_measured_in_the_units_of_the_data(accelerator, tmp_path):
    true, found = values()
    mean, std = true.mean(axis=0), true.std(axis=0)
    results = {}
    for name, model, scale in (
        ("training", Given(label_mean=mean.tolist(), label_std=std.tolist()), lambda part: (part - mean) / std),
        ("stored", Given(), lambda part: part),
    ):
        answers, labels = (torch.tensor(scale(part)).float() for part in (found, true))
        batches = [{"pixel_values": answers[part], "labels": labels[part]} for part in (slice(20), slice(20, 30))]
        evaluator = RegressionEvaluator(NAMES)
        results[name] = evaluator(accelerator, model, batches)
    loss = results["training"].pop("eval_loss")
    assert loss == pytest.approx(np.square((found - true) / std).mean(), rel=1e-5)
    assert results["training"] == pytest.approx(results["stored"], rel=1e-5)
    assert results["stored"] == pytest.approx(regression_figures(value_table(true, found, NAMES)), rel=1e-5)
    assert evaluator.in_words(results["stored"]).endswith(", 30 images")
    lines = evaluator.report().splitlines()
    assert lines[0].split() == ["value", "mean", "deviation", "MAE", "RMSE", "R2"] and lines[2].startswith("age of it")
    evaluator.save(tmp_path)
    assert (tmp_path / "eval_per_value.csv").read_text().startswith("value,images,mean,std,mae,rmse,r2\nprice,30,")
