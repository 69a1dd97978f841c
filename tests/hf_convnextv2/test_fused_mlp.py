"""The fused MLP against plain autograd, the paper's formula and the reference that compilers get."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_convnextv2.chunks import CHUNK_SIZE, split_into_chunks
from hf_convnextv2.fused_mlp import _weights, fused_mlp
from hf_convnextv2.fused_mlp_reference import MLPWeights, reference_mlp, scales_weights
from hf_convnextv2.grn import ConvNextV2GRN
from tests.hf_convnextv2.grn_formula import grn_formula
from tests.small_models import assert_close, awake, difference


def fused_and_plain(mlp, x):
    """Outputs `(B, T, C)` and gradients of input and parameters, of the fused function and of plain autograd."""
    results = []
    for compute in (fused, plain):
        rows = x.detach().clone().requires_grad_()
        out = compute(mlp, rows)
        upstream = torch.linspace(-1, 2, out.numel()).view(out.shape).to(out.dtype)
        results.append((out.detach(), *torch.autograd.grad(out, [rows, *mlp.parameters()], upstream)))
    return results


def fused(mlp, x):
    """The fused function of views `(B, T, C)`."""
    return fused_mlp(x.flatten(0, 1), (x.shape[:2],), mlp["up"], mlp["grn"], mlp["down"]).view(x.shape)


def plain(mlp, rows):
    response = grn_formula(F.gelu(mlp["up"](rows))[:, None], mlp["grn"].weight, mlp["grn"].bias)
    return mlp["down"](response[:, 0].to(rows.dtype))


@pytest.fixture
def mlp():
    """The middle of a block, 4 to 16 channels and back."""
    layers = {"up": nn.Linear(4, 16), "grn": ConvNextV2GRN(16), "down": nn.Linear(16, 4)}
    return awake(nn.ModuleDict(layers), std=0.5)


@pytest.mark.parametrize("shape", [(2, 9, 4), (1, 1, 4), (2, 3, 4), (300, 256, 4), (40_000, 2, 4)])
def test_fused_mlp_has_the_gradients_of_the_formula(mlp, shape):
    for actual, expected in zip(*fused_and_plain(mlp, torch.randn(shape)), strict=True):
        assert_close(actual, expected)


def test_the_largest_cases_above_are_worked_on_in_chunks():
    for images, positions in ((300, 256), (40_000, 2)):
        view_size = positions * 16 * torch.get_default_dtype().itemsize
        assert images * view_size > CHUNK_SIZE > view_size


def test_fused_mlp_computes_the_same_without_gradients(mlp):
    x = torch.randn(300, 256, 4)
    with torch.no_grad():
        assert_close(fused(mlp, x), plain(mlp, x))


def test_fused_mlp_has_float32_statistics_in_half_precision(mlp):
    x = torch.randn(2, 3136, 4) * 8
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter *= 4
        energy = torch.linalg.vector_norm(F.gelu(mlp["up"](x)), dim=1)
        assert energy.square().max() > torch.finfo(torch.float16).max
        halves = copy.deepcopy(mlp).half()
        alone = fused(halves, x.half())
        assert_close(alone.float(), plain(mlp, x), tolerance=5e-3)
    trained = fused(halves, x.half())
    assert torch.equal(alone, trained)


def test_fused_mlp_has_a_gradient_where_a_channel_is_silent(mlp):
    with torch.no_grad():
        mlp["up"].weight[3], mlp["up"].bias[3] = 0, 0  # GELU(0) = 0: no energy
    for actual, expected in zip(*fused_and_plain(mlp, torch.randn(2, 9, 4)), strict=True):
        assert_close(actual, expected)


def test_fused_mlp_is_exact_in_float64(mlp):
    x = torch.randn(2, 9, 4, dtype=torch.double)
    for actual, expected in zip(*fused_and_plain(mlp.double(), x), strict=True):
        assert_close(actual, expected, tolerance=1e-12)


def test_fused_mlp_runs_in_bfloat16(mlp):
    x = torch.randn(2, 64, 4)
    expected = fused_and_plain(mlp, x)[0]
    actual = fused_and_plain(mlp.bfloat16(), x.bfloat16())[0]
    for low, high in zip(actual, expected, strict=True):
        assert low.dtype == torch.bfloat16
        assert_close(low.float(), high, tolerance=0.05)  # bfloat16 keeps 8 bits, and products pass several of them


def test_fused_mlp_runs_under_autocast(mlp):
    x = torch.randn(2, 64, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = fused(mlp, x)
    out.float().square().mean().backward()
    assert (out.dtype, x.grad.dtype, mlp["down"].weight.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert_close(out.float(), plain(mlp, x), tolerance=0.05)


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("positions", [64, 3])  # GRN's scale multiplies the weights, the activations
@pytest.mark.parametrize("wide", ["grn.weight", "grn.bias", "grn", "down.weight", "down.bias", "down"])
def test_autocast_takes_parameters_of_several_dtypes(mlp, wide, positions, compiling, monkeypatch):
    """Frozen weights in bfloat16, and those that are trained in float32."""
    x = torch.randn(2, positions, 4)
    mixed = copy.deepcopy(mlp).bfloat16().requires_grad_(False)
    trained = {name: p for name, p in mixed.named_parameters() if name.startswith(wide)}
    for parameter in trained.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    with torch.autocast("cpu", torch.bfloat16):
        out = fused(mixed, x)
        with torch.no_grad():
            alone = fused(mixed, x)
    out.float().square().mean().backward()
    expected = plain(mlp, x)
    expected.square().mean().backward()
    assert_close(out.float(), expected, tolerance=0.05)
    assert_close(alone.float(), expected, tolerance=0.05)
    for name, parameter in trained.items():
        assert parameter.grad.dtype == torch.float32
        assert_close(parameter.grad, mlp.get_parameter(name).grad, tolerance=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_biases_of_the_dtype_of_their_layer_are_not_copied(mlp, dtype):
    weights = _weights(mlp.to(dtype)["up"], mlp["grn"], mlp["down"], None, None)
    assert weights.down_bias is mlp["down"].bias
    assert weights.grn_bias.data_ptr() == mlp["grn"].bias.data_ptr()


@pytest.mark.parametrize("positions", [400, 25])  # GRN's scale multiplies the weights, the activations
def test_autocast_rounds_little_more_than_in_plain_layers(positions):
    """What rounds weights or a scale is alike at all positions, so it stays in their mean, as a classifier takes it."""

    def run(compute, layers, x, autocast):
        layers.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            pooled = compute(layers, x).float().mean(dim=1)
        pooled.square().sum().backward()
        return pooled.detach(), layers["down"].weight.grad.clone()

    errors = []
    for seed in range(8):
        torch.manual_seed(seed)
        grn = awake(ConvNextV2GRN(256), std=0.5)
        layers = nn.ModuleDict({"up": nn.Linear(64, 256), "grn": grn, "down": nn.Linear(256, 64)})
        x = torch.randn(8, positions, 64)
        found = [run(fused, layers, x, True), run(plain, layers, x, True)]
        expected = run(plain, layers, x, False)
        errors.append([[(a - b).norm() / b.norm() for a, b in zip(pair, expected, strict=True)] for pair in found])
    ours, of_plain_layers = torch.tensor(errors).mean(dim=0)
    assert (ours < torch.tensor([1.3, 1.1]) * of_plain_layers).all()


def test_a_bias_gradient_that_nearly_cancels_between_chunks_is_rounded_once(monkeypatch):
    monkeypatch.setattr("hf_convnextv2.chunks.CHUNK_SIZE", 2**15)
    layers = {"up": nn.Linear(16, 64), "grn": awake(ConvNextV2GRN(64), std=0.5), "down": nn.Linear(64, 16)}
    mlp, half = nn.ModuleDict(layers), torch.randn(32, 100, 16)
    x = torch.cat([half, half])
    upstream = 0.3 * torch.randn(32, 100, 16) + torch.randn(16)
    upstream = torch.cat([upstream, -0.99 * upstream])

    def gradient(compute, enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = compute(mlp, x).float()
        return torch.autograd.grad(out, mlp["up"].bias, upstream)[0]

    assert len(split_into_chunks((x.shape[:2],), mlp["up"].weight.bfloat16())) > 8
    expected = gradient(plain, False)
    ours, of_plain_layers = ((gradient(compute, True) - expected).norm() for compute in (fused, plain))
    assert ours < 2 * of_plain_layers


@pytest.fixture
def branch(mlp):
    """The same middle, with the norm before it."""
    norm = awake(nn.LayerNorm(4, eps=1e-6), std=0.5)
    return nn.ModuleDict({**mlp, "norm": norm})


def fused_branch(branch, x, residual, factor, **kwargs):
    layers = (branch["up"], branch["grn"], branch["down"], branch["norm"])
    rows = residual.flatten(0, 1) if residual is not None else None
    return fused_mlp(x.flatten(0, 1), (x.shape[:2],), *layers, rows, factor, **kwargs).view(x.shape)


def plain_branch(branch, x, residual, factor):
    out = plain(branch, F.layer_norm(x, (4,), branch["norm"].weight, branch["norm"].bias, 1e-6))
    out = out if factor is None else out * factor[:, None, None]
    return out if residual is None else residual + out


@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("with_factor", [True, False])
@pytest.mark.parametrize("shape", [(2, 9, 4), (2, 3, 4), (300, 256, 4), (40_000, 2, 4)])
def test_fused_branch_has_the_gradients_of_the_formula(branch, shape, with_residual, with_factor):
    factor = torch.arange(shape[0]) % 2 * 1.5 if with_factor else None  # every second image is dropped
    results = []
    for compute in (fused_branch, plain_branch):
        torch.manual_seed(0)
        x, residual = torch.randn(2, *shape).unbind()
        leaves = [x.requires_grad_(), *([residual.requires_grad_()] if with_residual else [])]
        out = compute(branch, x, residual if with_residual else None, factor)
        upstream = torch.linspace(-1, 2, out.numel()).view(out.shape)
        results.append((out.detach(), *torch.autograd.grad(out, [*leaves, *branch.parameters()], upstream)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, tolerance=2e-5)


GROUPS = [((3, 9), (2, 8)), ((2, 3), (5, 2)), ((300, 256), (100, 255))]  # the last are worked on in several chunks


def per_group(compute, branch, x, groups, residual, factor):
    """Views of each size as one tensor, one size after the other."""
    outs, row, view = [], 0, 0
    for views, positions in groups:
        rows, stop = slice(row, row + views * positions), view + views
        parts = (t[rows].view(views, positions, -1) for t in (x, residual))
        outs.append(compute(branch, *parts, factor[view:stop]).flatten(0, 1))
        row, view = rows.stop, stop
    return torch.cat(outs)


@pytest.mark.parametrize("groups", GROUPS)
def test_fused_branch_of_views_of_unequal_sizes_is_that_of_each_size(branch, groups):
    rows, views = sum(b * t for b, t in groups), sum(b for b, _ in groups)
    x, residual, upstream = torch.randn(3, rows, 4).unbind()
    factor, layers = torch.arange(views) % 2 * 1.5, (branch["up"], branch["grn"], branch["down"], branch["norm"])
    leaves, results = [x.requires_grad_(), residual.requires_grad_(), *branch.parameters()], []
    for out in (
        fused_mlp(x, groups, *layers, residual, factor),
        per_group(plain_branch, branch, x, groups, residual, factor),
    ):
        results.append((out.detach(), *torch.autograd.grad(out, leaves, upstream)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, tolerance=2e-5)
    with torch.no_grad():
        assert_close(fused_mlp(x, groups, *layers, residual, factor), results[1][0])
        together = fused_mlp(x, ((1, rows),), *layers, residual, factor[:1] + 1)
    assert difference(together, results[1][0]) > 1e-2


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("shape", [(2, 9, 4), (300, 256, 4), (40_000, 2, 4)])
def test_fused_branch_computes_the_same_without_gradients(branch, shape, overwrite):
    x, residual = torch.randn(2, *shape).unbind()
    factor = torch.arange(shape[0]) % 2 * 1.5
    kept, kept_residual, expected = x.clone(), residual.clone(), plain_branch(branch, x, residual, factor)
    with torch.no_grad():
        assert_close(fused_branch(branch, x, residual, factor, overwrite=overwrite), expected)
    assert torch.equal(residual, kept_residual)
    assert overwrite or torch.equal(x, kept)


def test_frozen_branch_keeps_nothing_for_a_backward_pass(branch):
    x, saved = torch.randn(2, 9, 4), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor), lambda tensor: tensor):
        out = fused_branch(branch.requires_grad_(False), x, x, None)
        assert not out.requires_grad and not saved
        fused_branch(branch.requires_grad_(True), x, x, None)
        assert saved


def test_compiled_formula_is_the_fused_one(branch, monkeypatch):
    x, residual, factor = torch.randn(3, 9, 4), torch.randn(3, 9, 4), torch.tensor([0.0, 1.5, 1.5])
    expected = fused_branch(branch, x, residual, factor)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_close(fused_branch(branch, x, residual, factor), expected)
    short = torch.randn(3, 2, 4)  # fewer positions than channels
    assert_close(fused_branch(branch, short, short, factor), plain_branch(branch, short, short, factor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("images", "positions", "width"), [(7, 3136, 384), (8, 49, 3072), (5, 1, 8), (1, 10**6, 16)])
def test_chunks_are_of_nearly_one_size_and_cover_every_image_once(images, positions, width, dtype):
    up = torch.empty(width, width // 4, dtype=dtype)
    chunks = split_into_chunks(((images, positions), (2, positions - 1)), up)
    assert [i for chunk in chunks for i in range(chunk.views.start, chunk.views.stop)] == list(range(images + 2))
    stops = [0, *(chunk.rows.stop for chunk in chunks)]
    assert [chunk.rows.start for chunk in chunks] == stops[:-1]
    assert stops[-1] == images * positions + 2 * (positions - 1)
    sizes = [chunk.shape[0] for chunk in chunks if chunk.views.stop <= images]
    assert len(sizes) == 1 or max(sizes) * positions * width * dtype.itemsize <= 2 * max(CHUNK_SIZE, up.nbytes)
    assert max(sizes) - min(sizes) < max(2, len(sizes))


def test_half_precision_is_worked_on_in_fewer_chunks():
    up = torch.empty(384, 96)
    counts = [len(split_into_chunks(((8, 1216),), weight)) for weight in (up, up.bfloat16())]
    assert counts == [4, 2]


def weights_of(branch):
    up, grn, down, norm = (branch[name] for name in ("up", "grn", "down", "norm"))
    middle = (grn.weight.view(-1), grn.bias.view(-1))
    return MLPWeights(up.weight, up.bias, *middle, down.weight, down.bias, norm.weight, norm.bias, norm.eps)


@pytest.mark.parametrize("groups", GROUPS)
def test_fused_mlp_has_the_output_and_the_gradients_of_the_reference(branch, groups):
    rows, views = sum(b * t for b, t in groups), sum(b for b, _ in groups)
    x, residual, upstream = torch.randn(3, rows, 4).unbind()
    factor, layers = torch.arange(views) % 2 * 1.5, (branch["up"], branch["grn"], branch["down"], branch["norm"])
    leaves, results = [x.requires_grad_(), residual.requires_grad_(), *branch.parameters()], []
    for out in (
        fused_mlp(x, groups, *layers, residual, factor),
        reference_mlp(x, groups, residual, factor[:, None, None], weights_of(branch)),
    ):
        results.append((out.detach(), *torch.autograd.grad(out, leaves, upstream)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, tolerance=2e-5)
    other = reference_mlp(x, groups, residual, None, weights_of(branch))
    assert difference(other, results[0][0]) > 1e-2  # the control: without the factor it is another function


def test_the_groups_above_scale_weights_and_activations(branch):
    assert {scales_weights(positions, weights_of(branch)) for group in GROUPS for _, positions in group} == {
        True,
        False,
    }
