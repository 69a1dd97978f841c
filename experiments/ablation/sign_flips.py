"""The tests of the primary contrasts: sign flips over the seeds, Holm's correction, and a bootstrap for the interval.

S seeds, N held-out images. The seeds are paired: the same seed means the same labels, order and masks in every arm.
"""

from collections.abc import Sequence

import numpy as np

from training.comparison.intervals import CONFIDENCE, NUM_RESAMPLES, Difference, balanced_mean

ROWS_AT_A_TIME = 500  # resamples in memory
EQUAL = 1e-12  # sums that differ by no more are the same: their terms were added in another order


def sign_flip_p(differences: Sequence[float] | np.ndarray) -> float:
    """The two-sided p-value of paired differences `(S,)`, whose signs are chance if the arms do not differ.

    Exact: the share of all 2 to the power of S assignments of signs whose sum is at least as far from 0.
    """
    values = np.asarray(differences, dtype=float)
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= abs(values.sum()) - EQUAL))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's correction for their number (Scandinavian Journal of Statistics 6, 1979).

    The least is multiplied by their number, the next by one less, ...; none becomes less than one before it, or more
    than 1.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def joint_interval(
    labels: np.ndarray, first: np.ndarray, other: np.ndarray, num_resamples: int = NUM_RESAMPLES
) -> Difference:
    """The balanced accuracy of `first` minus that of `other`, with a 95 % bootstrap interval over seeds and images.

    Each resample draws seeds and, within each class, images, with replacement, the same ones for both arms. For few
    seeds this is too narrow; `training.comparison.intervals.difference` is for these.

    Args:
        labels: classes of the images `(N,)`.
        first: predicted classes `(S, N)`, a row for each seed; of the same seeds as those of `other`.
    """
    gains = (first == labels).astype(float) - (other == labels)
    random, means = np.random.default_rng(0), []
    for start in range(0, num_resamples, ROWS_AT_A_TIME):
        number = min(ROWS_AT_A_TIME, num_resamples - start)
        means.append(resampled(labels, gains, number, random))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return Difference(balanced_mean(labels, gains.mean(axis=0)), float(low), float(high))


def resampled(labels: np.ndarray, gains: np.ndarray, number: int, random: np.random.Generator) -> np.ndarray:
    """Balanced means `(number,)` of gains `(S, N)` of seeds and images that are drawn anew."""
    of_images = shares(len(gains), number, random) @ gains  # (number, N)
    of_classes = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        drawn = shares(len(members), number, random)
        of_classes.append((drawn * of_images[:, members]).sum(axis=1))
    return np.mean(of_classes, axis=0)


def shares(count: int, number: int, random: np.random.Generator) -> np.ndarray:
    """How often each of `count` is in a draw of as many with replacement, as shares `(number, count)`."""
    return random.multinomial(count, np.full(count, 1 / count), size=number) / count
