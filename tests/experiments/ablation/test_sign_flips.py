"""The tests of the contrasts: against an enumeration of all signs, Holm by hand, and a bootstrap drawn row by row."""

from itertools import product

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from experiments.ablation import sign_flips
from experiments.ablation.sign_flips import holm, joint_interval, sign_flip_p

LABELS = np.array([0] * 120 + [1] * 40)
MEMBERS = [np.arange(120), np.arange(120, 160)]


def enumerated(differences):
    """All assignments of signs, one by one."""
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True))) for signs in product((1, -1), repeat=8)
    ]
    return sum(value >= abs(sum(differences)) - 1e-9 for value in sums) / len(sums)


@pytest.mark.parametrize("mean", [0, 0.005, 0.02])
def test_the_p_value_is_the_share_of_all_256_assignments_of_signs(mean):
    differences = np.random.default_rng(0).normal(mean, 0.02, 8).tolist()
    assert sign_flip_p(differences) == pytest.approx(enumerated(differences))
    found = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(differences) == pytest.approx(found.pvalue)


def test_eight_seeds_that_agree_pass_five_contrasts_and_six_cannot():
    assert sign_flip_p([0.01] * 8) == sign_flip_p([-0.01] * 8) == 2 / 256
    assert sign_flip_p([0.1 + 0.2, 0.3] * 4) == 2 / 256  # sums that differ by rounding alone
    assert holm([2 / 256] * 5)[0] <= 0.05 < holm([2 / 64] * 5)[0]
    assert sign_flip_p([0.01] * 7 + [-0.001]) > 2 / 256 and sign_flip_p([0.0] * 8) == 1


def test_holms_correction_is_that_computed_by_hand():
    # In order: 0.01 x 5 = 0.05, 0.012 x 4 = 0.048 but not less than 0.05, 0.02 x 3 = 0.06, 0.04 x 2, 0.6 x 1
    assert holm([0.04, 0.01, 0.6, 0.012, 0.02]) == pytest.approx([0.08, 0.05, 0.6, 0.05, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def answers(share, state, seeds=8):
    random = np.random.default_rng(state)
    right = random.random((seeds, len(LABELS))) < share + random.normal(0, 0.05, (seeds, 1))
    return np.where(right, LABELS, 1 - LABELS)


def test_the_interval_is_that_of_a_bootstrap_over_seeds_and_images_together():
    first, other = answers(0.8, 0), answers(0.7, 1)
    found = joint_interval(LABELS, first, other)
    random, resampled = np.random.default_rng(7), []
    for _ in range(4000):
        drawn = [random.choice(members, len(members)) for members in MEMBERS]
        seeds = random.integers(0, 8, 8)
        right = [(rows == LABELS)[seeds] for rows in (first, other)]
        scores = [np.mean([rows[:, chosen].mean() for chosen in drawn]) for rows in right]
        resampled.append(scores[0] - scores[1])
    assert [found.low, found.high] == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.008)
    means = [np.mean([balanced_accuracy_score(LABELS, row) for row in rows]) for rows in (first, other)]
    assert found.gain == pytest.approx(means[0] - means[1])


def test_where_all_images_agree_the_interval_is_that_of_the_seeds_alone():
    gains, wrong = np.array([0, 1, 1, 0, -1, 1, 0, 1]), 1 - LABELS
    first = np.stack([LABELS if gain > 0 else wrong for gain in gains])
    other = np.stack([LABELS if gain < 0 else wrong for gain in gains])
    found = joint_interval(LABELS, first, other)
    means = np.random.default_rng(1).choice(gains, (100_000, 8)).mean(axis=1)
    assert found.gain == gains.mean()
    assert found[1:] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.13)  # a mean is a multiple of 1 / 8
    assert joint_interval(LABELS, first, first) == (0, 0, 0)


def test_resamples_in_parts_are_as_many_as_asked_for(monkeypatch):
    found = []
    draw = sign_flips.resampled
    monkeypatch.setattr(sign_flips, "resampled", lambda *given: found.append(draw(*given)) or found[-1])
    joint_interval(LABELS, answers(0.8, 0), answers(0.7, 1), num_resamples=1200)
    assert [len(part) for part in found] == [500, 500, 200] and not np.array_equal(found[0], found[1])
