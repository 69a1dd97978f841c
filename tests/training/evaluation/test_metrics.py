"""The figures of an evaluation, from logits that are known."""

from types import SimpleNamespace

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

from tests.training.evaluation.given import Given
from training.evaluation.metrics import Evaluator


@pytest.fixture
def batches():
    """Logits of nine images and seven classes that are not equally frequent, in batches of unequal sizes."""
    logits, labels = torch.randn(9, 7), torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 6])
    logits[:5] += 3 * nn.functional.one_hot(labels[:5], 7)  # mostly right
    return logits, labels, [{"pixel_values": logits[part], "labels": labels[part]} for part in (slice(5), slice(5, 9))]


def test_loss_and_accuracies_are_means_over_all_images(accelerator, batches):
    logits, labels, loader = batches
    results = Evaluator(None)(accelerator, Given().train(), loader)
    probabilities = (logits.exp() / logits.exp().sum(dim=1, keepdim=True))[torch.arange(9), labels]
    ranks = (logits > logits[torch.arange(9), labels][:, None]).sum(dim=1)
    assert results["eval_samples"] == 9
    assert results["eval_loss"] == pytest.approx(-probabilities.log().mean().item())
    assert results["eval_accuracy"] == pytest.approx((ranks == 0).float().mean().item())
    assert results["eval_accuracy_top5"] == pytest.approx((ranks < 5).float().mean().item())


def test_f1_by_name_is_the_mean_of_the_classes_own(accelerator, batches, monkeypatch):
    """The average that is the accuracy over again would be of no use."""
    logits, labels, loader = batches

    def compute(predictions, references, **options):
        return {"f1": float(f1_score(references, predictions, **options))}

    monkeypatch.setattr(evaluate, "load", lambda name: {"f1": SimpleNamespace(compute=compute)}[name])
    results = Evaluator(["f1"])(accelerator, Given(), loader)
    own, guesses = [], logits.argmax(dim=1)
    for label in set(labels.tolist()) | set(guesses.tolist()):
        hits = ((guesses == label) & (labels == label)).sum().item()
        own.append(2 * hits / ((guesses == label).sum().item() + (labels == label).sum().item()))
    assert results["eval_f1"] == pytest.approx(np.mean(own)) != results["eval_accuracy"]
    with pytest.raises(ValueError, match="`metrics`"):
        Evaluator(["accuracies"])
