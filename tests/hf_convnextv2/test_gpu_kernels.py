"""The Triton kernels for GPUs, run by Triton's interpreter on the CPU: they compute what the plain forms do."""

from types import SimpleNamespace

import pytest
import torch
import triton
from torch import nn

from hf_convnextv2 import (
    ConvNextV2FCMAEConfig,
    ConvNextV2ForPreTraining,
    packing,
    triton_kernels,
)
from hf_convnextv2.depthwise import depthwise_conv
from hf_convnextv2.fused_mlp import fused_mlp
from hf_convnextv2.grn import ConvNextV2GRN
from hf_convnextv2.packing import locate_cells
from tests.packed_cells import GRID, VISIBLE
from tests.small_models import assert_close, awake, difference

TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def set_kernels(monkeypatch, has_kernels):
    for module in (triton_kernels, packing):
        monkeypatch.setattr(module, "has_kernels", has_kernels)


@pytest.fixture
def switch(monkeypatch):
    """A function that says whether the kernels compute, and counts how often they were asked for."""
    assert triton.knobs.runtime.interpret
    calls = []

    def set_to(on):
        set_kernels(monkeypatch, lambda device: calls.append(on) or on)
        return calls

    return set_to


def both(switch, function):
    """What `function` returns with the plain forms and with the kernels."""
    results = []
    for on in (False, True):
        calls = switch(on)
        results.append(function())
    assert True in calls
    return zip(*results, strict=True)


def mlp_layers(dim, norm=True, grn=True):
    layers = {"up": nn.Linear(dim, 4 * dim), "down": nn.Linear(4 * dim, dim)}
    if grn:
        layers["grn"] = ConvNextV2GRN(4 * dim)
    if norm:
        layers["norm"] = awake(nn.LayerNorm(dim), std=0.5)
    return awake(nn.ModuleDict(layers), std=0.5)


def run_mlp(layers, x, groups, residual, factor, grad, autocast):
    """The output with and without gradients, and the gradients."""
    layers.zero_grad()
    x.grad = None
    norm, grn = (getattr(layers, name, None) for name in ("norm", "grn"))
    arguments = (groups, layers["up"], grn, layers["down"], norm, residual, factor, getattr(layers, "scale", None))
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        out = fused_mlp(x, *arguments)
        with torch.no_grad():
            alone = fused_mlp(x, *arguments)
    out.backward(grad.to(out.dtype))
    return [out.detach(), alone, x.grad, *(parameter.grad for parameter in layers.parameters())]


@pytest.mark.parametrize("groups", [((3, 40), (2, 33)), ((3, 1),), ((1, 150),)], ids=["two groups", "a row", "a view"])
@pytest.mark.parametrize("parts", ["all", "no factor", "no residual", "no norm"])
def test_mlp_by_kernels_is_the_plain_one(switch, groups, parts):
    layers, count = mlp_layers(20, norm=parts != "no norm"), sum(a * b for a, b in groups)
    x, residual, grad = (torch.randn(count, 20) for _ in range(3))
    factor = None if parts == "no factor" else torch.tensor([1.25, 0.0, 1.25, 0.0, 1.25])[: sum(a for a, _ in groups)]
    arguments = (groups, None if parts == "no residual" else residual, factor, grad, None)
    for plain, actual in both(switch, lambda: run_mlp(layers, x.requires_grad_(), *arguments)):
        assert actual.dtype == plain.dtype
        assert_close(actual, plain, tolerance=5e-6)


@pytest.mark.parametrize("groups", [((3, 40), (2, 33)), ((3, 1),)], ids=["scales weights", "scales the branch"])
@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize("grn", [True, False])
def test_mlp_of_v1_by_kernels_is_the_plain_one(switch, groups, with_scale, grn):
    layers, count = mlp_layers(20, grn=grn), sum(a * b for a, b in groups)
    layers.scale = nn.Parameter(torch.rand(20)) if with_scale else None
    x, residual, grad = (torch.randn(count, 20) for _ in range(3))
    factor = torch.tensor([1.25, 0.0, 1.25, 0.0, 1.25])[: sum(a for a, _ in groups)]
    for plain, actual in both(
        switch, lambda: run_mlp(layers, x.requires_grad_(), groups, residual, factor, grad, None)
    ):
        assert_close(actual, plain, tolerance=5e-6)


@pytest.mark.parametrize("how", ["autocast", "weights"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grn", [True, False])
def test_mlp_by_kernels_is_as_near_to_float32_in_half_precision(switch, dtype, how, grn):
    layers, x, grad = mlp_layers(24, grn=grn), torch.randn(40, 24), torch.randn(40, 24)
    switch(False)
    exact = run_mlp(layers, x.requires_grad_(), ((2, 20),), x.detach(), None, grad, None)
    inputs = x.detach()
    if how == "weights":
        layers, inputs = layers.to(dtype), inputs.to(dtype)
    arguments = (((2, 20),), inputs, None, grad, dtype if how == "autocast" else None)
    # The interpreter cuts numbers off to bfloat16 where a GPU rounds, at up to twice the error.
    allowed = 4 if dtype == torch.bfloat16 else 1.3
    pairs = both(switch, lambda: run_mlp(layers, inputs.clone().requires_grad_(), *arguments))
    for (plain, actual), expected in zip(pairs, exact, strict=True):
        assert actual.dtype == plain.dtype
        error, usual = difference(actual.float(), expected), difference(plain.float(), expected)
        assert error < max(allowed * usual, 2 * torch.finfo(dtype).eps)  # two roundings


def test_sums_of_squares_beyond_float16_are_float32(switch):
    layers, x = mlp_layers(8).half(), 60 * torch.randn(400, 8).half()
    with torch.no_grad():
        layers["up"].weight *= 8
        switch(True)
        out = fused_mlp(x, ((1, 400),), layers["up"], layers["grn"], layers["down"])
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("side", "kernel_size", "bias"),
    [(8, 7, True), (4, 5, False), (2, 7, False), (1, 7, True), (3, 5, True), (6, 3, False)],
)
def test_convolution_by_kernels_is_the_plain_one(switch, side, kernel_size, bias):
    conv = nn.Conv2d(70, 70, kernel_size, padding=kernel_size // 2, groups=70, bias=bias)
    x, grad = (torch.randn(6, 70, side, side) for _ in range(2))

    def run():
        conv.zero_grad()
        x.grad = None
        cells = locate_cells(VISIBLE, GRID, side, kernel_size=kernel_size)
        out = depthwise_conv(conv, x.requires_grad_(), cells)
        out.backward(grad)
        return [out.detach(), x.grad, *(parameter.grad for parameter in conv.parameters())]

    for plain, actual in both(switch, run):
        assert_close(actual, plain, tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_convolution_by_kernels_runs_under_autocast(switch, dtype):
    conv, x = nn.Conv2d(12, 12, 7, padding=3, groups=12), torch.randn(6, 12, 4, 4, requires_grad=True)

    def run():
        conv.zero_grad()
        x.grad = None
        with torch.autocast("cpu", dtype):
            out = depthwise_conv(conv, x, locate_cells(VISIBLE, GRID, 4))
        out.float().square().sum().backward()
        return [out.detach(), x.grad, conv.weight.grad, conv.bias.grad]

    for plain, actual in both(switch, run):
        assert actual.dtype == plain.dtype
        assert_close(actual.float(), plain.float(), tolerance=TOLERANCES[dtype])


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_ratio": 0.5},
        {"num_visible_sets": 4},
        {"mask_ratio": 0.5, "fusion_stages": ["stage1"]},
        {"mask_ratio": 0.5, "use_grn": False, "layer_scale_init_value": 0.1},
    ],
    ids=str,
)
def test_pre_training_by_kernels_has_the_plain_loss_and_gradients(switch, settings):
    sizes = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1], "decoder_hidden_size": 16}
    config = ConvNextV2FCMAEConfig(**sizes, image_size=64, **settings)
    model = awake(ConvNextV2ForPreTraining(config)).train()
    x, noise = torch.randn(2, 3, 64, 64), torch.rand(2, 4)

    def run():
        model.zero_grad()
        loss = model(x, noise=noise).loss
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    for plain, actual in both(switch, run):
        assert_close(actual, plain, tolerance=1e-5)


def test_gradients_of_gradients_come_from_the_plain_forms(switch):
    layers, x = mlp_layers(4).double().float(), torch.randn(6, 4, requires_grad=True)

    def run():
        out = fused_mlp(x, ((2, 3),), layers["up"], layers["grn"], layers["down"], layers["norm"])
        (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)

    for plain, actual in both(switch, run):
        assert_close(actual, plain, tolerance=1e-5)


def test_a_compiled_convolution_by_kernels_is_one_operation(monkeypatch):
    conv, x = nn.Conv2d(4, 4, 7, padding=3, groups=4), torch.randn(6, 4, 2, 2, requires_grad=True)
    set_kernels(monkeypatch, lambda device: True)
    cells = locate_cells(VISIBLE, GRID, 2)
    expected = depthwise_conv(conv, x, cells)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), x)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: depthwise_conv(conv, x, cells), fullgraph=True, backend="aot_eager")
    actual = compiled(x)
    (grad,) = torch.autograd.grad(actual.square().sum(), x)
    assert_close(actual, expected)
    assert_close(grad, expected_grad)


def test_kernels_run_on_new_nvidia_gpus_with_triton_alone(monkeypatch):
    properties = SimpleNamespace(major=8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    gpu = torch.device("cuda", 0)

    def has_kernels():
        triton_kernels._is_new_enough.cache_clear()
        return triton_kernels.has_kernels(gpu)

    assert has_kernels() and not triton_kernels.has_kernels(torch.device("cpu"))
    assert not triton_kernels.runs_on_kernels(torch.zeros(1, dtype=torch.float64))
    properties.major = 7
    assert not has_kernels()
    properties.major = 9
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not has_kernels()
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(triton_kernels, "KERNELS", None)
    assert not has_kernels()
    triton_kernels._is_new_enough.cache_clear()


class Recorded:
    """A kernel whose variants say with what they were launched."""

    def __init__(self):
        self.found, self.launched = 0, []

    def __getitem__(self, grid):
        def launch(*arguments, num_warps=None):
            self.found += num_warps is not None
            self.launched.append((grid, arguments))
            return self

        return launch


def test_a_variant_is_looked_for_once_for_what_decides_about_it(monkeypatch):
    kernel = Recorded()
    monkeypatch.setattr(triton_kernels, "KERNELS", SimpleNamespace(scale=kernel))
    monkeypatch.setattr(triton_kernels, "_variants", {})
    numbers = torch.zeros(64)
    for found, arguments in ((1, (numbers, 5)), (1, (numbers[16:], 5)), (2, (numbers[1:], 5)), (3, (numbers, 6))):
        triton_kernels.launch("scale", (2, 3), *arguments)
        assert kernel.found == found and kernel.launched[-1] == ((2, 3, 1), arguments)
    triton_kernels.launch("scale", (2, 3), numbers.half(), 5)
    triton_kernels.launch("scale", (2, 3), numbers, 5, num_warps=8)
    assert kernel.found == 5
    monkeypatch.setattr(triton_kernels, "MAX_VARIANTS", 5)
    triton_kernels.launch("scale", (2, 3), numbers, 7)
    assert len(triton_kernels._variants) == 1
