"""Frozen features of images, and their evaluation without fine-tuning: k nearest neighbours and a linear probe."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot
from torch.utils.data import DataLoader

from training.evaluation.metrics import TopAccuracy

Embed = Callable[[nn.Module, Tensor], Tensor]  # a model and images (B, C, H, W) to features (B, D) in float32
QUERIES = 1024  # images whose similarities to all training images are in memory at a time


@torch.no_grad()
def extract_features(
    accelerator: Accelerator, model: nn.Module, loader: DataLoader[Any], embed: Embed
) -> tuple[Tensor, Tensor]:
    """The features `(N, D)` that `embed` makes, and the label `(N,)`, of every image, in every process, on the CPU."""
    model.eval()
    features, labels = [], []
    for batch in loader:
        with accelerator.autocast():
            pooled = embed(model, batch["pixel_values"].to(accelerator.device))
        gathered: Any = accelerator.gather_for_metrics((pooled, batch["labels"].to(accelerator.device)))
        features.append(gathered[0].cpu())
        labels.append(gathered[1].cpu())
    return torch.cat(features), torch.cat(labels)


def knn_scores(
    train: Tensor, train_labels: Tensor, queries: Tensor, num_labels: int, k: int, temperature: float
) -> Tensor:
    """Votes `(Q, num_labels)` of the k nearest images by cosine similarity, weighted by exp(cosine / temperature).

    This is the k-nearest-neighbour evaluation of self-supervised features (arXiv 1805.01978, section 3.4).
    """
    train, votes = normalize(train), one_hot(train_labels, num_labels).float()
    scores = []
    for part in normalize(queries).split(QUERIES):
        similarity, index = (part @ train.T).topk(min(k, len(train)), dim=1)  # (q, k)
        weights = ((similarity - 1) / temperature).exp()  # equal up to a constant factor, and finite
        scores.append((votes[index] * weights[..., None]).sum(dim=1))
    return torch.cat(scores)


def linear_probe_scores(
    train: Tensor, train_labels: Tensor, queries: Tensor, num_labels: int, strength: float, seed: int
) -> Tensor:
    """Log-probabilities `(Q, num_labels)` of a logistic regression on standardised features.

    `strength` is the inverse of its L2 penalty (`C` of scikit-learn). A class without training images gets -inf.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000, random_state=seed))
    probe.fit(train.numpy(), train_labels.numpy())
    scores = torch.full((len(queries), num_labels), -torch.inf)
    scores[:, probe.classes_.tolist()] = torch.from_numpy(probe.predict_log_proba(queries.numpy()).astype(np.float32))
    return scores


def top_accuracies(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 and top-5 accuracy: the share of images whose class has the highest score, or one of the five highest."""
    ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices
    return TopAccuracy(keep_in_memory=True).compute(predictions=ranked, references=labels) or {}
