"""The interval of a difference, by a bootstrap written out here, and that the sentence claims no more than it."""

import re

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from training.comparison import intervals
from training.comparison.intervals import Difference, balanced_mean, claim, difference, resampled_means, sentence

LABELS = np.array([0] * 120 + [1] * 40 + [2] * 40)
NUM_CLASSES = 3
MEMBERS = [np.arange(120), np.arange(120, 160), np.arange(160, 200)]


def answers(share, seeds=3, state=0):
    """Predictions `(seeds, N)` that are right with this probability, else another class."""
    random = np.random.default_rng(state)
    right = random.random((seeds, len(LABELS))) < share
    return np.where(right, LABELS, (LABELS + random.integers(1, 3, right.shape)) % 3)


def test_the_gain_is_the_difference_of_the_mean_balanced_accuracies():
    first, other = answers(0.8), answers(0.7, state=1)
    means = [np.mean([balanced_accuracy_score(LABELS, row) for row in rows]) for rows in (first, other)]
    assert difference(LABELS, first, other).gain == pytest.approx(means[0] - means[1])


def test_the_interval_of_one_seed_is_that_of_a_bootstrap_over_the_images():
    first, other = answers(0.8, 1), answers(0.7, 1, state=1)
    found = difference(LABELS, first, other)
    random, resampled = np.random.default_rng(7), []
    for _ in range(4000):
        drawn = np.concatenate([random.choice(members, len(members)) for members in MEMBERS])
        of_pair = [balanced_accuracy_score(LABELS[drawn], rows[0, drawn]) for rows in (first, other)]
        resampled.append(of_pair[0] - of_pair[1])
    assert [found.low, found.high] == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.006)


def test_equal_gains_of_all_seeds_add_nothing_and_one_seed_adds_nothing():
    first, other = answers(0.8, 1), answers(0.7, 1, state=1)
    once, thrice = (difference(LABELS, first.repeat(n, 0), other.repeat(n, 0)) for n in (1, 3))
    assert once == pytest.approx(thrice)


def test_the_chance_of_the_seeds_is_students_t():
    """Where every image has the same gain, the images have no chance: the interval is that of a t-test of the seeds."""
    wrong = (LABELS + 1) % 3
    first = np.stack([LABELS, LABELS, LABELS, LABELS, wrong])
    other = np.stack([LABELS, wrong, wrong, LABELS, LABELS])
    gains = np.array([0, 1, 1, 0, -1])
    expected = stats.t.interval(0.95, 4, gains.mean(), stats.sem(gains))
    found = difference(LABELS, first, other, num_resamples=200_000)
    assert found.gain == pytest.approx(gains.mean()) and [found.low, found.high] == pytest.approx(expected, rel=0.02)


def test_resamples_in_parts_are_those_in_one(monkeypatch):
    values = np.random.default_rng(0).random(len(LABELS))
    whole = resampled_means(LABELS, values, 50, np.random.default_rng(1))
    monkeypatch.setattr(intervals, "MOST_DRAWN", 400)
    assert np.array_equal(whole, resampled_means(LABELS, values, 50, np.random.default_rng(1)))
    assert whole.mean() == pytest.approx(balanced_mean(LABELS, values), abs=0.02)


def test_a_start_is_ahead_only_if_the_interval_that_is_printed_leaves_out_0():
    ahead = claim(Difference(0.031, 0.004, 0.058), "A", "B")
    assert ahead == "A is ahead of B by 3.1 points of balanced accuracy (95 % interval 0.4 to 5.8)"
    assert claim(Difference(-0.031, -0.058, -0.004), "B", "A") == ahead
    even = claim(Difference(0.031, -0.001, 0.063), "A", "B")
    assert even.startswith("neither A nor B is ahead (A minus B: +3.1 points") and even.endswith("-0.1 to 6.3)")
    assert claim(Difference(0.031, 0.0004, 0.06), "A", "B").startswith("neither")  # 0.0 as it is printed


def test_two_identical_starts_are_never_declared_different():
    for state in range(20):
        same = answers(0.4 + state / 40, state=state)
        said = sentence(LABELS, {"A": same, "B": same.copy(), "C": same.copy()}, "A", "Tried", NUM_CLASSES)
        assert said.count("neither") == said.count("nor") >= 1 and "is ahead of" not in said


def test_starts_that_differ_by_chance_alone_are_declared_different_in_few_cases(monkeypatch):
    """Answers without knowledge, as of shuffled labels: one in twenty may have a winner, so 200 trials at most 19."""
    monkeypatch.setattr(difference, "__defaults__", (0.95, 1000))
    for names in ("AB", "ABCD"):
        wins = 0
        for state in range(200):
            found = {name: answers(1 / 3, 3, state=10 * state + ord(name)) for name in names}
            wins += "is ahead of" in sentence(LABELS, found, "A", "Tried", NUM_CLASSES)
        assert wins <= 19


def test_a_start_that_knows_more_is_declared_ahead():
    found = {"random weights": answers(0.5, state=1), "FCMAE": answers(0.9, state=2)}
    said = sentence(LABELS, found, "random weights", "Fine-tuned with 100 % of the labels (200 images)", NUM_CLASSES)
    pattern = (
        r"Fine-tuned with 100 % of the labels \(200 images\), FCMAE is ahead of random weights by ([\d.]+) points of "
        r"balanced accuracy \(95 % interval ([\d.]+) to ([\d.]+)\)\."
    )
    matched = re.fullmatch(pattern, said)
    assert matched is not None
    exact = difference(LABELS, found["FCMAE"], found["random weights"])
    assert [float(value) for value in matched.groups()] == [round(100 * value, 1) for value in exact]


def test_the_sentence_compares_with_the_reference_and_with_the_second_best():
    found = {"A": answers(0.3, state=1), "B": answers(0.9, state=2), "C": answers(0.6, state=3)}
    said = sentence(LABELS, found, "A", "Tried", NUM_CLASSES)
    assert "B is ahead of A by" in said and "B is ahead of C, the second best, by" in said
    said = sentence(LABELS, found, "B", "Tried", NUM_CLASSES)  # the reference itself is the best
    assert said.count("ahead") == 1 and "B is ahead of C, the second best, by" in said


def test_the_intervals_of_more_starts_are_wider():
    """Those of all pairs hold together: with three pairs, each leaves out a third of 5 %."""
    found = {"A": answers(0.5, 1, 1), "B": answers(0.8, 1, 2), "C": answers(0.6, 1, 3)}
    said = sentence(LABELS, found, "C", "Tried", NUM_CLASSES)
    expected = difference(LABELS, found["B"], found["C"], 1 - 0.05 / 3).points
    assert f"{expected[0]} points" in said and f"{expected[1]} to {expected[2]}" in said and "of one seed" in said
    plain = difference(LABELS, found["B"], found["C"])
    assert expected[2] - expected[1] > 100 * (plain.high - plain.low) * 1.1


@pytest.mark.parametrize("seeds", [1, 3])
def test_nothing_is_claimed_from_a_few_images_of_a_class(seeds):
    """Their bootstrap is certain: all that it can draw is what happens to be there."""
    for count, is_enough in ((0, False), (1, False), (4, False), (5, True)):
        labels = np.array([0] * 30 + [1] * 30 + [2] * count)
        found = {"random weights": np.minimum(labels, 1)[None].repeat(seeds, 0), "A": labels[None].repeat(seeds, 0)}
        said = sentence(labels, found, "random weights", "Tried", 3)
        gain = 1 / 3 if count else 0
        assert difference(labels, found["A"], found["random weights"]) == pytest.approx((gain, gain, gain))
        assert ("A is ahead of random weights by 33.3 points" in said) == is_enough
        nothing = "Tried, nothing can be said: of some class, fewer than 5 images are held out."
        assert (said == nothing) == (not is_enough)


def test_no_interval_is_printed_that_accuracies_cannot_have():
    assert Difference(0.8, 0.5, 1.05).points == (80.0, 50.0, 100.0)
    assert Difference(-0.8, -1.2, -0.5).points == (-80.0, -100.0, -50.0)
