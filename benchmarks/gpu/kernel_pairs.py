"""What the Triton kernels compute in one block of an FCMAE step, and the plain forms of the same.

The parameters are numbers of bfloat16, so that both have the same inputs: the kernels read them in float32, the plain
forms in bfloat16.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_convnextv2 import gpu_depthwise, gpu_mlp, packing, triton_kernels
from hf_convnextv2.chunks import split_into_chunks
from hf_convnextv2.depthwise import kernel_gradient, surround
from hf_convnextv2.fused_mlp import _forward, _weights
from hf_convnextv2.fused_mlp_backward import mlp_gradients
from hf_convnextv2.grn import ConvNextV2GRN
from hf_convnextv2.masking import count_visible, visible_ids
from hf_convnextv2.packing import KERNEL_SIZE, MIN_HALO_SIDE, locate_cells, one_view, pack, unpack

DTYPE = torch.bfloat16
CELL_SIZE = 32
MASK_RATIO = 0.6
Results = tuple[Tensor, ...]


class Pair(NamedTuple):
    """The same by plain operations, by the kernels (None where they do not run), and in float32."""

    what: str
    plain: Callable[[], Results]
    kernels: Callable[[], Results] | None
    exact: Callable[[], Results]
    products: Callable[[], object] | None = None  # the matrix products alone


@contextmanager
def without_kernels() -> Iterator[None]:
    """The plain forms compute, on every device."""
    with ExitStack() as patches:
        for module in (triton_kernels, packing):
            patches.enter_context(mock.patch.object(module, "has_kernels", lambda device: False))
        yield


def have_kernels(device: str) -> bool:
    return triton_kernels.has_kernels(torch.device(device))


def convolutions(settings: argparse.Namespace, width: int, side: int, batch: int) -> list[Pair]:
    """The depthwise convolution of packed cells `side` positions wide, and its gradients."""
    device = settings.device
    grid = (settings.image_size // CELL_SIZE,) * 2
    num_visible = count_visible(grid[0] * grid[1], MASK_RATIO)
    masked = torch.rand(batch, grid[0] * grid[1], device=device).argsort(dim=1).argsort(dim=1) >= num_visible
    cells = locate_cells(one_view(visible_ids(masked, num_visible)), grid, side)
    halo: Any = cells.halo
    conv = as_bfloat16(nn.Conv2d(width, width, KERNEL_SIZE, padding=KERNEL_SIZE // 2, groups=width)).to(device)
    weight, bias = conv.weight.detach(), conv.bias.detach()
    x, grad = (
        torch.randn(batch * num_visible, width, side, side, device=device, dtype=DTYPE).contiguous(
            memory_format=torch.channels_last
        )
        for _ in range(2)
    )
    plain, exact = PlainConvolution(cells, DTYPE), PlainConvolution(cells, torch.float32)

    def by_kernels(call: Callable[[], Results]) -> Callable[[], Results] | None:
        return call if halo is not None and have_kernels(device) else None

    return [
        Pair(
            "convolution, forward",
            lambda: plain.forward(x, weight, bias),
            by_kernels(lambda: (gpu_depthwise.convolve_cells(x, weight, bias, halo),)),
            lambda: exact.forward(x, weight, bias),
        ),
        Pair(
            "convolution, gradient of the input",
            lambda: plain.forward(grad, weight.flip(2, 3), None),
            by_kernels(lambda: (gpu_depthwise.convolve_cells(grad, weight, None, halo, turned=True),)),
            lambda: exact.forward(grad, weight.flip(2, 3), None),
        ),
        Pair(
            "convolution, gradients of the parameters",
            lambda: plain.parameter_gradients(x, grad),
            by_kernels(lambda: gpu_depthwise.parameter_gradients(x, grad, halo, KERNEL_SIZE)),
            lambda: exact.parameter_gradients(x, grad),
        ),
    ]


class PlainConvolution:
    """The form that depthwise.py takes without kernels, in one dtype."""

    def __init__(self, cells: Any, dtype: torch.dtype) -> None:
        self.cells, self.dtype, self.uses_halo = cells, dtype, cells.side >= MIN_HALO_SIDE

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Results:
        weight, bias = weight.to(self.dtype), None if bias is None else bias.to(self.dtype)
        padding = 0 if self.uses_halo else KERNEL_SIZE // 2
        out = F.conv2d(self.spread(x.to(self.dtype)), weight, bias, padding=padding, groups=len(weight))
        return (out if self.uses_halo else pack(out, self.cells),)

    def parameter_gradients(self, x: Tensor, grad: Tensor) -> Results:
        x, grad = x.to(self.dtype), grad.to(self.dtype)
        if self.uses_halo:
            of_weight = kernel_gradient(self.spread(grad), x, 0)
        else:
            of_weight = kernel_gradient(self.spread(grad), self.spread(x), KERNEL_SIZE // 2)
        return of_weight.flip(2, 3), grad.sum((0, 2, 3))

    def spread(self, x: Tensor) -> Tensor:
        return surround(x, self.cells.halo) if self.uses_halo else unpack(x, self.cells)


def mlps(settings: argparse.Namespace, width: int, side: int, batch: int) -> list[Pair]:
    """The fused MLP on the rows of the visible cells, and its gradients."""
    device = settings.device
    positions = count_visible((settings.image_size // CELL_SIZE) ** 2, MASK_RATIO) * side**2
    groups = ((batch, positions),)
    norm, up = nn.LayerNorm(width), nn.Linear(width, 4 * width)
    grn, down = ConvNextV2GRN(4 * width), nn.Linear(4 * width, width)
    for parameter in grn.parameters():
        nn.init.normal_(parameter, std=0.5)
    layers = [as_bfloat16(layer).to(device) for layer in (up, grn, down, norm)]
    x, residual, grad = (torch.randn(batch * positions, width, device=device, dtype=DTYPE) for _ in range(3))
    with torch.autocast(torch.device(device).type, DTYPE):
        weights = _weights(*layers, layer_scale=None)
    with without_kernels():
        exact_weights = _weights(*layers, layer_scale=None)
        with torch.autocast(torch.device(device).type, DTYPE):
            plain_weights = _weights(*layers, layer_scale=None)
    plain = MLP(_forward, mlp_gradients, x, residual, grad, groups, plain_weights)
    exact = MLP(_forward, mlp_gradients, x.float(), residual.float(), grad.float(), groups, exact_weights)
    kernels = None
    if have_kernels(device):
        kernels = MLP(gpu_mlp.forward_by_kernels, gpu_mlp.backward_by_kernels, x, residual, grad, groups, weights)
    wide = torch.randn(len(x), 4 * width, device=device, dtype=DTYPE)
    a, b = plain_weights.up, plain_weights.down.to(DTYPE)
    return [
        Pair(
            "MLP, forward",
            plain.forward,
            kernels and kernels.forward,
            exact.forward,
            lambda: (torch.mm(x, a.T), torch.mm(wide, b.T)),
        ),
        Pair(
            "MLP, gradients",
            plain.backward,
            kernels and kernels.backward,
            exact.backward,
            lambda: (torch.mm(grad, b), torch.mm(grad.T, wide), torch.mm(wide.T, x), torch.mm(wide, a)),
        ),
    ]


class MLP:
    """A form of the fused MLP on one input."""

    def __init__(
        self, forward: Any, backward: Any, x: Tensor, residual: Tensor, grad: Tensor, groups: Any, weights: Any
    ) -> None:
        self._forward, self._backward, self.x, self.residual, self.grad = forward, backward, x, residual, grad
        self.chunks, self.weights = split_into_chunks(groups, weights.up), weights
        _, self.hidden, self.energy = self._forward(x, self.chunks, residual, None, weights)

    def forward(self) -> Results:
        return (self._forward(self.x, self.chunks, self.residual, None, self.weights)[0],)

    def backward(self) -> Results:
        arguments = (self.grad, self.x, self.chunks, None, self.hidden, self.energy, self.weights)
        of_x, of_weights = self._backward(*arguments)
        return of_x, *(each for each in of_weights if each is not None)


def as_bfloat16(layer: Any) -> Any:
    """The layer in float32, its parameters rounded to bfloat16."""
    return layer.to(DTYPE).float().requires_grad_(False)
