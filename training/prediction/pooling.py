"""Pools a map to a vector: `(B, C, H, W)` to `(B, C)`."""

from torch import Tensor

GEM_LEAST = 1e-6  # values below are taken for it, since a power of a negative number is not defined


def mean_pool(maps: Tensor) -> Tensor:
    """The mean over the positions."""
    return maps.mean((-2, -1))


def max_pool(maps: Tensor) -> Tensor:
    """The maximum over the positions."""
    return maps.amax((-2, -1))


def gem_pool(maps: Tensor, exponent: float) -> Tensor:
    """The generalised mean over the positions (arXiv 1711.02512): mean(max(x, 1e-6) ** p) ** (1 / p)."""
    positive = maps.clamp(min=GEM_LEAST)
    largest = positive.amax((-2, -1), keepdim=True)
    powers = (positive / largest) ** exponent  # of numbers up to 1: a power of larger ones could overflow
    return largest[..., 0, 0] * powers.mean((-2, -1)) ** (1 / exponent)
