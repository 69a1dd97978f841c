"""The head of a model that predicts values: on the scale of training while it trains, in units when it is stored."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import ConvNextV2ForImageClassification as Stock

from hf_convnextv2 import ConvNextV2ForImageClassification
from tests.small_models import awake, small_config
from training.data.labels import label_maps
from training.data.regression import rounded
from training.data.value_scale import Scale
from training.models.value_head import answer_in_units, set_scale, settle_head

NAMES = ["price", "age"]
SCALE, OTHER = Scale([350_000.0, 0.002], [90_000.0, 0.0005]), Scale([-3.0, 40.0], [2.0, 7.0])


def value_model(names=NAMES, problem_type="regression"):
    model = awake(
        ConvNextV2ForImageClassification(
            small_config(problem_type=problem_type, num_labels=len(names), **label_maps(names))
        )
    )
    torch.nn.init.normal_(model.classifier.weight)
    return model


@torch.no_grad()
def answers(model, images=None):
    torch.manual_seed(1)
    return model(torch.randn(3, 3, 64, 64) if images is None else images).logits.double()


def in_units(standardised, scale):
    return standardised * torch.tensor(scale.std).double() + torch.tensor(scale.mean).double()


def test_what_is_answered_on_the_scale_of_training_is_answered_in_units_afterwards(tmp_path):
    model = value_model()
    set_scale(model, SCALE)  # of a new head: whatever it answers is standardised
    expected = in_units(answers(model), SCALE)
    answer_in_units(model)
    assert_close(answers(model), expected, rtol=1e-5, atol=1e-6)
    model.save_pretrained(tmp_path)
    assert "label_mean" not in (tmp_path / "config.json").read_text()
    stock = Stock.from_pretrained(tmp_path)
    assert_close(answers(stock), expected, rtol=1e-4, atol=1e-4)
    assert stock.config.problem_type == "regression" and stock.config.id2label == dict(enumerate(NAMES))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answer_in_units(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_notes_its_scale_and_can_be_answered_in_units(tmp_path):
    model = value_model()
    set_scale(model, SCALE)
    model.save_pretrained(tmp_path)
    loaded = ConvNextV2ForImageClassification.from_pretrained(tmp_path)
    assert Scale.of(loaded.config) == SCALE
    assert_close(answers(loaded), answers(model), rtol=1e-5, atol=1e-5)
    answer_in_units(loaded)
    assert_close(answers(loaded), in_units(answers(model), SCALE), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["finished", "checkpoint"])
def test_a_head_that_goes_on_answers_the_same_on_the_new_scale(kind):
    model = value_model()
    if kind == "checkpoint":
        set_scale(model, OTHER)
    expected = answers(model) if kind == "finished" else in_units(answers(model), OTHER)
    settle_head(model, {"problem_type": "regression", "id2label": {"0": "price", "1": "age"}})
    new = Scale([2.0, -1.0], [3.0, 0.5])
    set_scale(model, new)
    assert_close(in_units(answers(model), new), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stored", "problem_type"),
    [
        ({"problem_type": "regression", "id2label": {"0": "age", "1": "price"}}, "regression"),
        ({"problem_type": "single_label_classification", "id2label": {"0": "price", "1": "age"}}, "regression"),
        ({"id2label": {"0": "cat", "1": "dog"}}, "regression"),
        ({"problem_type": "regression", "id2label": {"0": "price", "1": "age"}}, "multi_label_classification"),
    ],
)
def test_a_head_of_something_else_is_drawn_anew(stored, problem_type, capsys):
    model = value_model(problem_type=problem_type)
    model.config.label_mean, model.config.label_std = OTHER
    before = model.classifier.weight.clone()
    settle_head(model, stored)
    assert not torch.equal(model.classifier.weight, before) and not model.classifier.bias.any()
    assert model.classifier.weight.std() < 0.05 and Scale.of(model.config) is None
    assert "The stored head answers something else" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["price", "age"], ""),
        (["age", "price"], "a head of other classes, or of another order of them: age, price."),
        (["cat", "dog"], "a head of other classes, or of another order of them: cat, dog."),
    ],
)
def test_a_classifier_keeps_its_head_and_says_which_classes_it_was_of(names, told, capsys):
    model = value_model(problem_type="multi_label_classification")
    before = model.classifier.weight.clone()
    stored = {str(number): name for number, name in enumerate(names)}
    settle_head(model, {"problem_type": "single_label_classification", "id2label": stored})
    out = capsys.readouterr().out
    assert torch.equal(model.classifier.weight, before) and told in out and bool(out) == bool(told)
    assert Scale.of(model.config) is None


def test_the_scale_is_rounded_so_that_another_machine_finds_the_same():
    found = rounded(
        np.array([9.87654321, 1234567.891, 1700000002.51]), np.array([0.000123456789, 1234567.891, 4567.891])
    )
    assert found.std == [0.000123457, 1234570.0, 4567.89]
    assert found.mean == [9.876543210, 1234570.0, 1700000002.51]  # to the places of the deviation
