"""SIGReg, the regulariser of LeJEPA (arXiv 2511.08544): pooled features are kept near an isotropic Gaussian.

A distribution is an isotropic Gaussian if its projections on all directions are standard normal. So the features are
projected on random directions, and on each the Epps-Pulley statistic compares their empirical characteristic function
with that of the standard normal. Beside it stands LeJEPA's prediction term: the views of an image say the same.

N features of all views of all images, C channels, M directions, T points of the integral.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from training.data.sampling import sample_seed
from training.models.collectives import SumOverProcesses
from training.settings.regularizer import RegularizerSettings

LARGEST, NUM_POINTS = 3.0, 17  # the integral's reach, and its points, as in LeJEPA's code
PARTS = ("sigreg_loss", "invariance_loss")


class Regularizer:
    """The losses on the pooled features of the views of a batch: SIGReg, and the prediction term.

    With several processes, the statistic is that of the features of all of them, as if one process had them: the means
    of the characteristic function are summed over the processes, and so are their gradients. With gradient
    accumulation, each forward pass has a statistic of its own. The directions follow from the seed and the step.
    """

    def __init__(self, settings: RegularizerSettings, accelerator: Accelerator, seed: int) -> None:
        self.settings, self.accelerator, self.seed = settings, accelerator, seed

    @property
    def asked(self) -> dict[str, str]:
        """What the model is asked for."""
        return {"pooled_cells": self.settings.sigreg_cells} if self.settings.is_on else {}

    def __call__(self, outputs: Any, num_images: int, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss with what the regulariser adds to it, and the loss's parts, without their weights.

        Args:
            outputs: of the model; `pooled_features (V * B, C)` are in them view after view, of all `num_images` images.
        """
        if not self.settings.is_on:
            return outputs.loss, outputs
        pooled = outputs.pooled_features
        with torch.autocast(pooled.device.type, enabled=False):
            directions = random_directions(pooled.shape[1], self.settings.sigreg_directions, self.seed, step)
            statistics = epps_pulley(pooled @ directions.to(pooled), self.accelerator.num_processes)
            sigreg, agreement = statistics.mean(), invariance(pooled.unflatten(0, (-1, num_images)))
            loss = outputs.loss + self.settings.sigreg_weight * sigreg + self.settings.invariance_weight * agreement
        own = outputs.loss if outputs.pixel_loss is None else outputs.pixel_loss
        parts = {"pixel_loss": own, "feature_loss": outputs.feature_loss}
        return loss, {**parts, **dict(zip(PARTS, (sigreg, agreement), strict=True))}


def random_directions(num_channels: int, count: int, *key: int) -> Tensor:
    """Unit vectors `(C, M)`, uniform on the sphere, that depend only on the key: the same ones in every process."""
    generator = torch.Generator().manual_seed(sample_seed(*key))
    return torch.nn.functional.normalize(torch.randn(num_channels, count, generator=generator), dim=0)


def epps_pulley(x: Tensor, num_processes: int = 1) -> Tensor:
    """The statistic `(M,)` of the samples `(N, M)` of each column: how far they are from a standard normal variable.

    It is N times the integral over t in [-3, 3] of |mean(exp(i t x)) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), by the
    trapezoidal rule. Its mean is about 1 for samples of a standard normal, whatever N, and 0.4 N if all are 0. With
    several processes, N counts the samples of all, of which each process has as many.
    """
    t = torch.linspace(0, LARGEST, NUM_POINTS, dtype=x.dtype, device=x.device)
    normal = (-(t**2) / 2).exp()  # its characteristic function, and the weight of the integral
    spacing = torch.full_like(t, 2 * LARGEST / (NUM_POINTS - 1))  # the integrand is even
    spacing[[0, -1]] /= 2
    angles = x[..., None] * t  # (N, M, T)
    means: Any = torch.stack([angles.cos().mean(dim=0), angles.sin().mean(dim=0)])
    if num_processes > 1:
        means = SumOverProcesses.apply(means) / num_processes
    return len(x) * num_processes * ((means[0] - normal) ** 2 + means[1] ** 2) @ (spacing * normal)


def invariance(views: Tensor) -> Tensor:
    """The mean squared distance of the features `(V, B, C)` of an image's views to their mean, by channel."""
    return (views - views.mean(dim=0)).square().mean()
