"""The benchmark of half precision: its rows, and the errors that it states."""

import pytest
import torch

from benchmarks.half_precision import INFERENCE, TRAINING, compare_classifiers, compare_steps, error
from benchmarks.shared.measure import Ratio


@pytest.mark.parametrize(
    ("what", "contenders"), [("inference", (*INFERENCE, "ours, autocast")), ("training", TRAINING)]
)
def test_each_contender_has_its_speed_and_its_error(what, contenders):
    rows = {row["contender"]: row for row in compare_classifiers("atto", 2, what, 32, 1)}
    assert set(contenders) <= set(rows) <= {*contenders, "OpenVINO, bf16"}
    errors = {name: float(row["error"]) for name, row in rows.items()}
    assert errors["Transformers, float32"] == 0 < errors["ours, float32"] < 1e-5
    assert all(1e-4 < each < 0.1 for name, each in errors.items() if "float32" not in name)
    assert all(isinstance(row["times Transformers, float32"], Ratio) for row in rows.values())


def test_a_step_has_its_speed_relative_to_float32():
    (row,) = compare_steps("atto", 2, "step", 64, 1)
    assert row["contender"] == "ours, autocast" and isinstance(row["times ours, float32"], Ratio)


def test_an_error_is_that_of_all_numbers_together():
    found, expected = [torch.tensor([3.0]), torch.tensor([4.0, 1.0])], [torch.tensor([0.0]), torch.tensor([0.0, 1.0])]
    assert error(found, expected) == 5
