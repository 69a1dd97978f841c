"""Whitening of features: a projection on their principal components, each of them scaled to variance 1."""

import torch
from torch import Tensor

from training.settings.checks import check

Features = dict[str, tuple[Tensor, Tensor]]  # by split: features (N, D) and labels (N,)

LEAST = 1e-6  # of the largest deviation: what is below is rounding, which whitening would blow up


class Whitening:
    """The projection of features `(N, D)` on their first principal components, fitted on the features of some images.

    Raises:
        ValueError: for more components than there are directions in which these features vary.
    """

    def __init__(self, features: Tensor, num_components: int) -> None:
        self.mean = features.double().mean(dim=0)
        _, deviations, directions = torch.linalg.svd(features.double() - self.mean, full_matrices=False)
        varying = int((deviations > LEAST * deviations[0]).sum())
        rule = f"be at most {varying}, the directions in which the features of the {len(features):,} images vary"
        check("whitened_components", num_components, num_components <= varying, rule)
        scales = deviations[:num_components, None] / (len(features) - 1) ** 0.5
        self.projection = (directions[:num_components] / scales).T  # (D, components)

    def __call__(self, features: Tensor) -> Tensor:
        """`(N, D)` to `(N, components)`, float32: of the images that were fitted, uncorrelated and of variance 1."""
        return ((features.double() - self.mean) @ self.projection).float()


def whitened(splits: Features, num_components: int | None) -> Features:
    """The features of each split, whitened as those of the split `train` are; as they are without a number."""
    if num_components is None:
        return splits
    whiten = Whitening(splits["train"][0], num_components)
    return {split: (whiten(features), labels) for split, (features, labels) in splits.items()}
