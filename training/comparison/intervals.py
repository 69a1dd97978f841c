"""How far one classifier is ahead of another on the same held-out images, and what may be said of it."""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000
FEWEST = 5  # images of a class: fewer, drawn with replacement, do not show how much others would differ
MOST_DRAWN = 10_000_000  # indices in memory at a time


class Difference(NamedTuple):
    """A difference of balanced accuracies, and the interval of it."""

    gain: float
    low: float
    high: float

    @property
    def points(self) -> tuple[float, float, float]:
        """In percentage points, as they are printed: at most 100, by which accuracies can differ."""
        gain, low, high = (round(100 * min(max(value, -1), 1), 1) + 0.0 for value in self)  # + 0.0: no negative zero
        return gain, low, high

    @property
    def holds_zero(self) -> bool:
        """Whether the interval, as it is printed, includes 0."""
        _, low, high = self.points
        return low <= 0 <= high


def balanced_mean(labels: np.ndarray, values: np.ndarray) -> float:
    """The mean over the classes of the mean value of a class's images; of correct answers, the balanced accuracy."""
    return float(np.mean([values[labels == label].mean() for label in np.unique(labels)]))


def resampled_means(
    labels: np.ndarray, values: np.ndarray, num_resamples: int, random: np.random.Generator
) -> np.ndarray:
    """`balanced_mean` of the images drawn with replacement within each class `(num_resamples,)`: a bootstrap.

    Within each class, as the mean over the classes depends on each class's images alone.
    """
    means = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rows, parts = max(1, MOST_DRAWN // len(members)), []
        for start in range(0, num_resamples, rows):
            drawn = random.choice(members, (min(rows, num_resamples - start), len(members)))
            parts.append(values[drawn].mean(axis=1))
        means.append(np.concatenate(parts))
    return np.mean(means, axis=0)


def difference(
    labels: np.ndarray,
    first: np.ndarray,
    other: np.ndarray,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
) -> Difference:
    """The balanced accuracy of `first` minus that of `other`, with its interval.

    The interval is made of two chances: which images were held out, and the seeds. The images are drawn anew with
    replacement, the same ones for both classifiers and all seeds. To each such draw an error of the mean over the seeds
    is added: the standard error times a draw from Student's t distribution, whose degrees of freedom are the seeds less
    one. With one seed, the interval is over the images alone.

    Args:
        labels: classes of the images `(N,)`.
        first: predicted classes `(S, N)`, a row for each seed; of the same seeds as those of `other`.
    """
    gains = (first == labels).astype(float) - (other == labels)  # 1 where only the first is right, -1 where the other
    random = np.random.default_rng(0)
    resampled = resampled_means(labels, gains.mean(axis=0), num_resamples, random)
    if len(gains) > 1:
        of_seeds = [balanced_mean(labels, row) for row in gains]
        error = np.std(of_seeds, ddof=1) / len(gains) ** 0.5
        resampled = resampled + error * random.standard_t(len(gains) - 1, num_resamples)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Difference(balanced_mean(labels, gains.mean(axis=0)), float(low), float(high))


def claim(found: Difference, name: str, other: str, interval: str = "95 % interval") -> str:
    """What may be said of the difference of two classifiers: one is ahead only if the interval does not hold 0."""
    gain, low, high = found.points
    if found.holds_zero:
        between = f"{name} minus {other}: {gain:+.1f} points of balanced accuracy, {interval} {low:.1f} to {high:.1f}"
        return f"neither {name} nor {other} is ahead ({between})"
    if gain < 0:
        name, other, gain, low, high = other, name, -gain, -high, -low
    return f"{name} is ahead of {other} by {gain:.1f} points of balanced accuracy ({interval} {low:.1f} to {high:.1f})"


def is_claimable(labels: np.ndarray, num_classes: int) -> bool:
    """Whether there are enough images of each class for an interval to mean something."""
    return bool(np.bincount(labels, minlength=num_classes).min() >= FEWEST)


def sentence(
    labels: np.ndarray, answers: Mapping[str, np.ndarray], reference: str, condition: str, num_classes: int
) -> str:
    """One sentence: whether the best start is ahead of the reference, and of the second best.

    Which starts these are is chosen by the same images. Therefore each interval is as wide as it takes for those of all
    pairs of starts to hold together with a confidence of 95 % (Bonferroni). With fewer than `FEWEST` images of a class,
    it says that there is nothing to say.

    Args:
        labels: classes of the held-out images `(N,)`.
        answers: of each start, the predicted classes `(S, N)`.
        condition: how the classifiers were trained; the sentence begins with it.
        num_classes: of the classifiers; one of which no image is held out counts, too.
    """
    if not is_claimable(labels, num_classes):
        return f"{condition}, nothing can be said: of some class, fewer than {FEWEST} images are held out."
    means = {name: balanced_mean(labels, (found == labels).mean(axis=0)) for name, found in answers.items()}
    best, second = sorted(means, key=lambda name: -means[name])[:2]
    pairs = list(combinations(answers, 2))
    confidence = 1 - (1 - CONFIDENCE) / len(pairs)
    num_seeds = len(answers[best])
    kind = "95 % interval" if num_seeds > 1 else "95 % interval over the images, of one seed,"
    others = [second] if reference in (best, second) else [reference, second]
    claims = []
    for other in others:
        found = difference(labels, answers[best], answers[other], confidence)
        title = f"{other}, the second best," if other == second and len(answers) > 2 else other
        claims.append(claim(found, best, title, kind))
    return f"{condition}, {'; '.join(claims)}."
