"""The depthwise convolution of a block: of a dense map, or of packed visible cells (submanifold: paper, section 3).

Packed, it has two forms. *Halo* gathers each cell with the positions around it that a kernel sees; *canvas* puts the
cells back in place, convolves and takes them out.

N images (dense) or visible cells of all images (packed), C channels, H W height and width, K the kernel's width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .depthwise_parts import Cells, convolve_in_parts, gradients_in_parts, kernel_gradient, surround, workers_for
from .fast_path import is_batch_of_gradients, is_plain_conv
from .gpu_depthwise import convolve_cells, parameter_gradients
from .groups import Groups
from .packing import PackedCells, pack, unpack
from .precision import cast_for_autocast
from .triton_kernels import runs_on_kernels

FASTER_ON = ("cpu", "cuda")


def depthwise_conv(conv: nn.Conv2d, x: Tensor, cells: PackedCells | None = None) -> Tensor:
    """`conv` of a map `(N, C, H, W)`, or of the packed cells of one; a neighbour counts if its view sees it."""
    return depthwise_conv_and_residual(conv, x, cells)[0]


def depthwise_conv_and_residual(conv: nn.Conv2d, x: Tensor, cells: PackedCells | None = None) -> tuple[Tensor, Tensor]:
    """`depthwise_conv` and `x` itself, for the residual: the gradients of the two are added in the pass of one."""
    if cells is None:
        return _convolve(conv, x)
    if cells.halo is None or not _is_as_built(conv) or cells.halo.shape[-1] != cells.side + conv.kernel_size[0] - 1:
        return pack(_convolve(conv, unpack(x, cells))[0], cells), x
    return _differentiable_conv(conv, x, cells)


def _convolve(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """`conv` of a dense map, by `_DepthwiseConv` where that was measured to be faster."""
    if x.device.type not in FASTER_ON or not _is_as_built(conv):
        return conv(x), x
    if not torch.is_grad_enabled() and workers_for(x, None) == 1:
        return conv(x), x
    return _differentiable_conv(conv, x, None)


def _differentiable_conv(conv: nn.Conv2d, x: Tensor, cells: PackedCells | None) -> tuple[Tensor, Tensor]:
    """`conv` of a dense map, or of packed cells with a halo, by `_DepthwiseConv`."""
    parameters: Any = (conv.weight, conv.bias)
    if cells is None or not runs_on_kernels(x):  # which read parameters as they are
        parameters = cast_for_autocast(*parameters)
    (cast,) = cast_for_autocast(x)
    arguments = (cast, *parameters, *((None, None) if cells is None else (cells.halo, cells.groups)))
    if cast is x and not runs_on_kernels(x) and not torch.compiler.is_compiling():
        both: Any = _DepthwiseConv.apply(*arguments, True)
        return both
    out: Any = _DepthwiseConv.apply(*arguments, False)
    return out, x


def _is_as_built(conv: nn.Conv2d) -> bool:
    """Whether `conv` is still the plain depthwise convolution that a block is built with."""
    if type(conv) is not nn.Conv2d:
        return False
    height, width = conv.kernel_size
    if height != width or height % 2 == 0 or conv.in_channels != conv.out_channels:
        return False
    return is_plain_conv(conv, (1, 1), (height // 2, width // 2), conv.in_channels)


class _DepthwiseConv(torch.autograd.Function):
    """`F.conv2d` that keeps the size, with an input's gradient that is a forward convolution.

    At these, oneDNN is up to five times as fast as at the gradients of a depthwise convolution, and cuDNN twice. On a
    GPU, packed cells have kernels of their own.

    "Is a visible neighbour of" is symmetric, so the input's gradient is the same convolution of the output's gradient
    with the kernel turned by 180 degrees. Only the cells are saved, not their halos. The gradients are plain operations
    and so have derivatives of their own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        halo: Tensor | None,
        groups: Groups | None,
        with_input: bool,
    ) -> Any:
        ctx.save_for_backward(x, weight, halo)
        ctx.set_materialize_grads(False)
        ctx.padding = weight.shape[-1] // 2 if halo is None else 0
        ctx.has_bias, ctx.groups = bias is not None, groups
        if halo is not None and runs_on_kernels(x):
            out = convolve_cells(x, weight, bias, halo)
        elif (workers := workers_for(x, groups)) > 1:
            out = convolve_in_parts(x, weight, bias, Cells(halo, groups), ctx.padding, workers)
        else:
            out = F.conv2d(surround(x, halo), weight, bias, padding=ctx.padding, groups=len(weight))
        return (out, x) if with_input else out

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_residual: Tensor | None = None) -> tuple[Tensor | None, ...]:
        x, weight, halo = ctx.saved_tensors
        nothing = (None, None, None)
        if grad is None:
            return grad_residual, None, None, *nothing
        wanted = (*ctx.needs_input_grad[:2], ctx.has_bias and ctx.needs_input_grad[2])
        if not torch.is_grad_enabled() and not is_batch_of_gradients(grad):
            if halo is not None and runs_on_kernels(x):
                return *_gradients_by_kernels(grad, x, weight, halo, wanted), *nothing
            if (workers := workers_for(x, ctx.groups)) > 1:
                grads, cells = (grad, grad_residual), Cells(halo, ctx.groups)
                return *gradients_in_parts(grads, x, weight, cells, ctx.padding, workers, wanted), *nothing
        grad_x = grad_weight = grad_bias = None
        parameters_dtype, weight = weight.dtype, weight.to(x.dtype)
        surrounded = surround(grad, halo) if any(wanted[:2]) else grad
        if wanted[0]:
            grad_x = F.conv2d(surrounded, weight.flip(2, 3), padding=ctx.padding, groups=len(weight))
            grad_x = grad_x if grad_residual is None else grad_x + grad_residual
        if wanted[1]:
            # By the same symmetry the cells need no halos here: each product is found at the other of its two cells.
            grad_weight = kernel_gradient(surrounded, x, ctx.padding).flip(2, 3).to(parameters_dtype)
        if wanted[2]:
            grad_bias = grad.sum((0, 2, 3)).to(parameters_dtype)
        return grad_x, grad_weight, grad_bias, *nothing


def _gradients_by_kernels(
    grad: Tensor, x: Tensor, weight: Tensor, halo: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of the input, the kernel and the bias on a GPU, those that are `wanted`."""
    grad_x = grad_weight = grad_bias = None
    if wanted[0]:
        grad_x = convolve_cells(grad, weight, None, halo, turned=True)
    if wanted[1] or wanted[2]:
        sums = parameter_gradients(x, grad, halo, weight.shape[-1])
        grad_weight, grad_bias = (sum_.to(weight.dtype) for sum_ in sums)
    return grad_x, grad_weight, grad_bias if wanted[2] else None
