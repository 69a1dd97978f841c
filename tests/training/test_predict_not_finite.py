"""predict.py with answers that are no numbers: the image has an error, and nothing that looks like an answer.

They come of finite weights whose sums overflow. Here they come of weights that are none, which
predict.py itself refuses.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.photographs import CLASSES, quick_datasets
from tests.training.test_predict import classifier, images, mask_rcnn, predicted, segmenter, write_detector
from training.models import loading
from training.prediction import answers, label_answers

__all__ = ["classifier", "images", "mask_rcnn", "quick_datasets", "segmenter"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
PROBLEMS = {"several labels": "multi_label_classification", "numbers": "regression"}


@pytest.fixture(scope="module")
def rt_detr(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("rt_detr"), "rt_detr_v2")


def broken(model, folder, weight):
    """The model with NaN in the first weight of this name."""
    shutil.copytree(model, folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in sorted(weights) if weight in name)
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, file, {"format": "pt"})
    return folder


def with_problem(model, folder, problem):
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": problem}))
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("classifier", "classifier.weight"),
        ("several labels", "classifier.weight"),
        ("numbers", "classifier.weight"),
        ("segmenter", "decode_head.classifier.weight"),
        ("mask_rcnn", "backbone"),
        ("mask_rcnn", "rpn.head.cls_logits.weight"),
        ("mask_rcnn", "box_predictor.cls_score.weight"),
        ("rt_detr", "backbone"),
    ],
)
def test_an_image_whose_answer_is_no_number_has_an_error(
    kind, weight, suffix, images, tmp_path, request, monkeypatch, capsys
):
    monkeypatch.setattr(loading, "check_finite_weights", lambda *_: None)
    model = request.getfixturevalue("classifier" if kind in PROBLEMS else kind)
    if kind in PROBLEMS:
        model = with_problem(model, tmp_path / "whole", PROBLEMS[kind])
    few = images / "test"
    for number, (folder, is_bad) in enumerate([(model, False), (broken(model, tmp_path / "broken", weight), True)]):
        output = tmp_path / f"{number}{suffix}"
        rows = predicted(folder, few, output, threshold=0.05 if "rcnn" in kind else 0.01)
        errors = [row.get("error") or "" for row in rows]
        assert all(("that are infinite or not a number" in error) == is_bad for error in errors)
        assert len(rows) == 3 if is_bad else len(rows) >= 3
        assert "nan" not in output.read_text().lower().replace("not a number", "")
    assert not list((tmp_path / "1_masks").rglob("*.png"))
    assert "3 of 3 images have no answer" in capsys.readouterr().out


@pytest.mark.parametrize(("problem", "module"), [(None, answers), ("regression", label_answers)])
def test_the_other_images_of_a_batch_keep_their_answers(problem, module, classifier, images, tmp_path, monkeypatch):
    model = with_problem(classifier, tmp_path / "model", problem)
    whole = predicted(model, images, tmp_path / "whole.jsonl")
    logits_of = module.logits_of

    def overflown(accelerator, model, batch):
        logits = logits_of(accelerator, model, batch)
        logits[1, 2] = torch.inf
        return logits

    monkeypatch.setattr(module, "logits_of", overflown)
    rows = predicted(model, images, tmp_path / "answers.jsonl")
    assert [number for number, row in enumerate(rows) if "error" in row] == [1, 6, 11]
    assert all(row == whole[number] for number, row in enumerate(rows) if "error" not in row)
    assert not set(rows[1]) & {"label", *CLASSES}
