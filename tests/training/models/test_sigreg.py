"""SIGReg: the statistic by other routes, its gradient, two processes, and runs with it that are resumed to the bit."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy.integrate import quad
from torch.testing import assert_close

from tests.photographs import forget_accelerate, message_of
from training.models.sigreg import Regularizer, epps_pulley, invariance, random_directions
from training.settings.regularizer import RegularizerSettings
from training.settings.scripts import PretrainSettings

ROOT = Path(__file__).parents[3]
NORMAL = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))  # the mean over samples of a standard normal, on all of t
COLLAPSED = math.sqrt(2 * math.pi) * (1 - 2 / math.sqrt(2) + 1 / math.sqrt(3))  # for each sample, if all are 0


@pytest.fixture(autouse=True)
def apart():
    forget_accelerate()
    yield
    forget_accelerate()


def by_quadrature(samples):
    """The statistic of one projection, by SciPy's integral over t."""

    def integrand(t):
        normal = math.exp(-(t**2) / 2)
        return abs(np.exp(1j * t * samples).mean() - normal) ** 2 * normal

    return len(samples) * quad(integrand, -3, 3)[0]


def test_the_statistic_is_the_integral_on_each_direction():
    x, directions = 1.5 * torch.randn(40, 6, dtype=torch.float64) + 0.3, random_directions(6, 5, 0, 1).double()
    expected = []
    for direction in directions.T.numpy():
        assert np.linalg.norm(direction) == pytest.approx(1, rel=1e-6)
        projected = np.array([sum(a * b for a, b in zip(row, direction, strict=True)) for row in x.numpy()])
        expected.append(by_quadrature(projected))
    # The trapezoidal rule of 17 points on a half: its error is that of the integrand's slope at the ends.
    assert_close(epps_pulley(x @ directions), torch.tensor(expected, dtype=torch.float64), rtol=5e-3, atol=0)


@pytest.mark.parametrize("count", [32, 512])
def test_normal_features_have_a_small_statistic_and_collapsed_ones_a_large_one(count):
    directions = random_directions(24, 256, 0, 1)
    of_normal = torch.stack([epps_pulley(torch.randn(count, 24) @ directions).mean() for _ in range(20)]).mean()
    assert of_normal.item() == pytest.approx(NORMAL, rel=0.15)  # whatever the number of samples
    assert epps_pulley(torch.zeros(count, 3)).mean().item() == pytest.approx(COLLAPSED * count, rel=0.02)
    scaled = epps_pulley(3 * torch.randn(count, 24) @ directions).mean()
    line = epps_pulley(torch.randn(count, 1).expand(-1, 24) @ directions).mean()  # every channel the same
    assert min(scaled, line) > 2 * of_normal


def test_the_gradient_is_that_of_finite_differences():
    directions = random_directions(4, 3, 0, 1).double()
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: epps_pulley(x @ directions), x)


def test_descending_the_statistic_makes_collapsed_features_normal():
    x = torch.nn.Parameter(0.01 * torch.randn(64, 4) + 2)
    optimizer = torch.optim.Adam([x], lr=0.05)
    for step in range(150):
        optimizer.zero_grad()
        epps_pulley(x @ random_directions(4, 32, 0, step)).mean().backward()
        optimizer.step()
    found = x.detach()
    assert found.mean(dim=0).abs().max() < 0.2
    assert_close(torch.cov(found.T), torch.eye(4), rtol=0, atol=0.35)


def test_views_that_say_the_same_agree():
    views = torch.randn(3, 5, 7)
    expected = np.mean([(views[v, b] - views[:, b].mean(0)).pow(2).mean() for v in range(3) for b in range(5)])
    assert invariance(views).item() == pytest.approx(expected, rel=1e-5)
    assert invariance(views[:1].expand(3, -1, -1)).item() == pytest.approx(0, abs=1e-12)


def test_directions_follow_from_the_seed_and_the_step():
    assert torch.equal(random_directions(5, 8, 3, 10), random_directions(5, 8, 3, 10))
    others = [random_directions(5, 8, 3, 11), random_directions(5, 8, 4, 10)]
    assert not any(torch.equal(random_directions(5, 8, 3, 10), other) for other in others)


def outputs(pooled, loss=2.0):
    loss = torch.tensor(loss, requires_grad=True)
    return SimpleNamespace(loss=loss, pixel_loss=None, feature_loss=None, pooled_features=pooled)


def test_the_loss_is_the_models_and_the_weighted_parts():
    """View after view: rows 0 to 3 are the first views of four images."""
    pooled = torch.randn(8, 6)
    regularizer = Regularizer(RegularizerSettings(sigreg_weight=0.1, invariance_weight=3), Accelerator(), seed=5)
    assert regularizer.asked == {"pooled_cells": "visible"}
    loss, parts = regularizer(outputs(pooled), 4, step=7)
    agreement = ((pooled[:4] - pooled[4:]) / 2).square().mean()
    sigreg = epps_pulley(pooled @ random_directions(6, 256, 5, 7)).mean()
    assert loss.item() == pytest.approx((2 + 0.1 * sigreg + 3 * agreement).item(), rel=1e-5)
    assert {name: parts[name].item() for name in ("pixel_loss", "sigreg_loss", "invariance_loss")} == pytest.approx(
        {"pixel_loss": 2.0, "sigreg_loss": float(sigreg), "invariance_loss": float(agreement)}, rel=1e-5
    )


def test_without_a_weight_the_loss_is_the_models_own():
    regularizer, given = Regularizer(RegularizerSettings(), Accelerator(), seed=0), outputs(None)
    loss, parts = regularizer(given, 4, step=1)
    assert regularizer.asked == {} and loss is given.loss and parts is given


def test_the_statistic_is_in_float32_under_autocast():
    pooled = torch.randn(8, 6)
    regularizer = Regularizer(RegularizerSettings(sigreg_weight=1, invariance_weight=0), Accelerator(), seed=0)
    expected, _ = regularizer(outputs(pooled), 4, step=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert (pooled @ pooled.T).dtype == torch.bfloat16
        found, _ = regularizer(outputs(pooled), 4, step=1)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


TWO = """
import sys, torch, torch.distributed as dist, torch.multiprocessing as mp
from training.models.sigreg import epps_pulley, random_directions

def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    weight, x = torch.randn(4, 4, dtype=torch.float64), torch.randn(12, 4, dtype=torch.float64)
    layer = torch.nn.Linear(4, 4, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(weight)
    layer = torch.nn.parallel.DistributedDataParallel(layer)
    statistic = epps_pulley(layer(x[6 * rank : 6 * rank + 6]) @ random_directions(4, 8, 0, 1).double(), 2).mean()
    statistic.backward()
    torch.save((weight, x, statistic.detach(), layer.module.weight.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
"""


def test_two_processes_have_the_statistic_and_the_gradient_of_one_with_all_features(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    weight, x, *_ = found[0]
    layer = torch.nn.Linear(4, 4, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(weight)
    directions = random_directions(4, 8, 0, 1).double()
    expected = epps_pulley(layer(x) @ directions).mean()
    expected.backward()
    for _, _, statistic, gradient in found:
        assert_close(statistic, expected.detach())
        assert_close(gradient, layer.weight.grad)
    apart = torch.stack([epps_pulley(layer(part) @ directions).mean() for part in x.split(6)]).mean()
    assert not torch.isclose(apart, expected, rtol=1e-2)  # the control: the mean of two statistics is another one


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({}, False),
        ({"num_crops": 2}, True),
        ({"num_visible_sets": 4}, True),
        ({"num_visible_sets": 4, "sigreg_cells": "all"}, False),
        ({"invariance_weight": 0.0}, True),
    ],
)
def test_views_that_are_to_agree_must_be_several(fields, fits):
    settings = {"dataset_name": "images", "output_dir": "out", "sigreg_weight": 0.05, **fields}
    if fits:
        PretrainSettings(**settings)
    else:
        assert message_of(lambda: PretrainSettings(**settings)).startswith("`num_crops` (=1) must be 2 or more")
