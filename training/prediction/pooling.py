"""Pools maps to vectors: each of `(B, C, H, W)` to `(B, C)`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from training.settings.checks import check
from training.settings.pooling import PoolingSettings

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


def pools_of(settings: PoolingSettings) -> list[Callable[[Tensor], Tensor]]:
    """The ways to pool a map that are set, in their order; none where maps are wanted as they are."""
    known = {"mean": mean_pool, "max": max_pool, "gem": partial(gem_pool, exponent=settings.gem_exponent)}
    return [known[name] for name in settings.pooling if name in known]


class PooledMaps:
    """Computes the maps of some stages of an encoder, and pools them."""

    def __init__(self, settings: PoolingSettings, num_stages: int) -> None:
        self.stages = settings.stages or [num_stages]
        rule = f"be between 1 and {num_stages}, the stages of the encoder"
        check("stages", self.stages, all(1 <= stage <= num_stages for stage in self.stages), rule)
        self.pools = pools_of(settings)

    def __call__(self, model: Any, pixel_values: Tensor) -> Tensor:
        """The features `(B, D)` of images: in the order of the stages, those of each in the order of `pooling`."""
        return self.pool(self.maps(model, pixel_values))

    def maps(self, model: Any, pixel_values: Tensor) -> list[Tensor]:
        """The maps `(B, C, H, W)`, float32, after the stages, of images `(B, num_channels, h, w)`."""
        found = model(pixel_values, output_hidden_states=True).hidden_states
        return [found[stage].float() for stage in self.stages]

    def pool(self, maps: list[Tensor]) -> Tensor:
        return torch.cat([pool(each) for each in maps for pool in self.pools], dim=1)
