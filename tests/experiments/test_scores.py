"""Figures of two-class classifiers, against counts written out here."""

import numpy as np
import pytest

from experiments.scores import balanced_accuracy_gain, two_class_metrics, verdict

LABELS = np.array([0] * 80 + [1] * 20)


def answers(right_of_0: int, right_of_1: int) -> np.ndarray:
    """Scores that are right on so many of the first and of the second class."""
    return np.where(np.r_[np.arange(80) < right_of_0, np.arange(20) < right_of_1], LABELS, 1 - LABELS) * 0.8 + 0.1


def test_metrics_weigh_both_classes():
    metrics = two_class_metrics(LABELS, answers(80, 5))
    assert metrics["confusion_matrix"] == [[80, 0], [15, 5]]
    assert metrics["accuracy"] == pytest.approx(0.85) and metrics["balanced_accuracy"] == pytest.approx(0.625)


def test_gain_is_the_difference_of_balanced_accuracies():
    better, worse = answers(76, 18), answers(72, 10)
    gain = balanced_accuracy_gain(LABELS, better, worse)
    assert gain["gain"] == pytest.approx((76 / 80 + 18 / 20) / 2 - (72 / 80 + 10 / 20) / 2)
    # Every resample draws its right answers from 4 of 80 and 8 of 20: the deviation of the mean of both shares.
    deviation = np.sqrt(0.05 * 0.95 / 80 + 0.4 * 0.6 / 20) / 2
    assert gain["high"] - gain["low"] == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    assert "first is ahead of second" in verdict(gain, "first", "second")
    other = balanced_accuracy_gain(LABELS, worse, better)
    assert "second is ahead of first" in verdict(other, "first", "second")


def test_a_difference_within_the_noise_is_no_win():
    gain = balanced_accuracy_gain(LABELS, answers(72, 16), answers(73, 15))
    assert gain["low"] < 0 < gain["high"] and "neither first nor second is ahead" in verdict(gain, "first", "second")
    same = balanced_accuracy_gain(LABELS, answers(72, 16), answers(72, 16))
    assert same == {"gain": 0, "low": 0, "high": 0} and "neither" in verdict(same, "first", "second")


def test_the_demos_interval_is_of_2000_resamples_of_the_images_of_each_class():
    """As the published one of `make demo` was computed."""
    better, worse = answers(76, 18), answers(72, 10)
    gains = ((better >= 0.5) == LABELS).astype(float) - ((worse >= 0.5) == LABELS)
    random, resampled = np.random.default_rng(0), []
    for label in (0, 1):
        members = np.flatnonzero(label == LABELS)
        resampled.append(gains[random.choice(members, (2000, len(members)))].mean(axis=1))
    low, high = np.percentile(np.mean(resampled, axis=0), [2.5, 97.5])
    found = balanced_accuracy_gain(LABELS, better, worse)
    assert (found["low"], found["high"]) == (low, high)
