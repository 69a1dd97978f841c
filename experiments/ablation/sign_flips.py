"""The tests of the primary contrasts: sign flips over the S seeds, and Holm's correction.

The seeds are paired: the same seed means the same labels, order and masks in every arm.
"""

from collections.abc import Sequence

import numpy as np

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
