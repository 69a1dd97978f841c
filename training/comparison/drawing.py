"""Drawing a share of the labels: stratified, and for each seed anew."""

import math
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import train_test_split

from training.settings.checks import check


def draw(labels: Sequence[int] | np.ndarray, share: float, seed: int) -> np.ndarray:
    """Draw the indices of a share of the images, with the same share of each class."""
    everything = np.arange(len(labels))
    if share == 1:
        return everything
    return np.asarray(train_test_split(everything, train_size=share, random_state=seed, stratify=labels)[0])


def check_shares(labels: np.ndarray, names: Sequence[str], shares: Sequence[float], seeds: Sequence[int]) -> None:
    """Raise if a share of the labels cannot be drawn, or leaves a class without an image.

    Args:
        labels: class numbers `(N,)`; each of the classes `names` has at least one image.
    """
    counts = np.bincount(labels, minlength=len(names))
    rarest = int(counts.argmin())
    for share in (share for share in shares if share != 1):
        rule = f"be 1, as the class `{names[rarest]}` has one image: a part of the labels needs two of each class"
        check("label_shares", share, counts[rarest] > 1, rule)
        least = math.ceil(1e4 * math.ceil(len(labels) / counts[rarest]) / len(labels)) / 1e4
        missing = missing_class(labels, len(names), share, seeds)
        rule = (
            f"leave an image of each class, but with {math.floor(share * len(labels))} of {len(labels):,} images the "
        )
        rule += f"class `{names[missing or 0]}` has none; with a share of {least:g} or more, every class has some"
        check("label_shares", share, missing is None, rule)
        left_out = len(labels) - math.floor(share * len(labels))
        rule = f"be 1, or leave out at least {len(names)} of the {len(labels):,} images, one for each class"
        check("label_shares", share, left_out >= len(names), rule)


def missing_class(labels: np.ndarray, num_classes: int, share: float, seeds: Sequence[int]) -> int | None:
    """A class of which a draw has no image; None if every seed draws some of each."""
    size = math.floor(share * len(labels))
    if size < num_classes:  # which scikit-learn refuses
        return int(np.bincount(labels, minlength=num_classes).argmin())
    if len(labels) - size < num_classes:
        return None
    for seed in seeds:
        drawn = np.bincount(labels[draw(labels, share, seed)], minlength=num_classes)
        if not drawn.all():
            return int(drawn.argmin())
    return None


def finetuning_steps(num_images: int) -> int:
    """The optimizer steps of a classifier: a number that grows with the images, up to 492."""
    return int(min(492, 60 + 10 * num_images**0.5))  # 1,968 images: 8 epochs of 32 in a step; 39 images: 122 steps
