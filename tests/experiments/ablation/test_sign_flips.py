"""The tests of the contrasts: against an enumeration of all signs, and Holm by hand."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from experiments.ablation.sign_flips import holm, sign_flip_p


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
