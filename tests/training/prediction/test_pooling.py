"""Pooling by the formulas, written out, and GeM between its limits: the mean and the maximum."""

from itertools import pairwise

import pytest
import torch

from tests.small_models import assert_close
from training.prediction.pooling import gem_pool, max_pool, mean_pool


def test_mean_and_maximum_are_those_of_the_positions():
    maps = torch.randn(2, 3, 4, 5)
    assert_close(mean_pool(maps), maps.flatten(2).sum(2) / 20)
    assert torch.equal(max_pool(maps), maps.flatten(2).sort(2).values[..., -1])


@pytest.mark.parametrize("exponent", [1.0, 2.5, 3.0, 10.0])
def test_gem_is_the_generalised_mean_of_positive_values(exponent):
    maps = torch.randn(2, 3, 4, 5)
    expected = (maps.double().clamp(min=1e-6) ** exponent).mean((2, 3)) ** (1 / exponent)
    assert_close(gem_pool(maps, exponent), expected.float())


def test_gem_lies_between_the_mean_and_the_maximum_and_reaches_both():
    maps = torch.rand(2, 3, 4, 5)
    means = [gem_pool(maps, exponent) for exponent in (1.0, 2.0, 8.0, 1000.0)]
    assert all((low < high).all() for low, high in pairwise(means))
    assert_close(means[0], mean_pool(maps))
    assert_close(means[-1], max_pool(maps), 0.01)


def test_gem_of_large_values_does_not_overflow_and_without_positive_values_is_tiny():
    assert_close(gem_pool(torch.full((1, 1, 2, 2), 1e20), 8.0), torch.full((1, 1), 1e20))
    assert_close(gem_pool(torch.full((1, 1, 2, 2), -3.0), 3.0), torch.full((1, 1), 1e-6))
