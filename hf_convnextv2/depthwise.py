"""The depthwise convolution of a block: of a dense map, or of packed visible cells (submanifold: paper, section 3).

Packed, it has two forms. *Halo* gathers each cell with the positions around it that a kernel sees; *canvas* puts the
cells back in place, convolves and takes them out.

N images (dense) or visible cells of all images (packed), C channels, H W height and width, K the kernel's width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from .fast_path import is_batch_of_gradients, is_plain_conv
from .gpu_depthwise import convolve_cells, parameter_gradients
from .packing import PackedCells, pack, take_rows, to_rows, unpack
from .precision import at_least_float32, cast_for_autocast
from .triton_kernels import runs_on_kernels

FASTER_ON = ("cpu", "cuda")
# Numbers of the output's gradient that a CPU handles at a time for the kernel's gradient: copies of them fit its cache.
CHUNK_SIZE = 2**18


def depthwise_conv(conv: nn.Conv2d, x: Tensor, cells: PackedCells | None = None) -> Tensor:
    """`conv` of a map `(N, C, H, W)`, or of the packed cells of one; a neighbour counts if its view sees it."""
    if cells is None:
        return _convolve(conv, x)
    if cells.halo is None or not _is_as_built(conv) or cells.halo.shape[-1] != cells.side + conv.kernel_size[0] - 1:
        return pack(_convolve(conv, unpack(x, cells)), cells)
    return _differentiable_conv(conv, x, cells.halo)


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv` of a dense map, with the faster gradients where they were measured."""
    if x.device.type not in FASTER_ON or not torch.is_grad_enabled() or not _is_as_built(conv):
        return conv(x)
    return _differentiable_conv(conv, x, None)


def _differentiable_conv(conv: nn.Conv2d, x: Tensor, halo: Tensor | None) -> Tensor:
    """`conv` of a dense map, or of packed cells with a `halo`, by `_DepthwiseConv`."""
    parameters: Any = (conv.weight, conv.bias)
    if halo is None or not runs_on_kernels(x):  # which read parameters as they are
        parameters = cast_for_autocast(*parameters)
    out: Any = _DepthwiseConv.apply(*cast_for_autocast(x), *parameters, halo)
    return out


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
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, halo: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, halo)
        ctx.padding = weight.shape[-1] // 2 if halo is None else 0
        ctx.has_bias = bias is not None
        if halo is not None and runs_on_kernels(x):
            return convolve_cells(x, weight, bias, halo)
        return F.conv2d(surround(x, halo), weight, bias, padding=ctx.padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, halo = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        is_alone = not torch.is_grad_enabled() and not is_batch_of_gradients(grad)
        if halo is not None and is_alone and runs_on_kernels(x):
            return _gradients_by_kernels(grad, x, weight, halo, ctx.needs_input_grad)
        parameters_dtype, weight = weight.dtype, weight.to(x.dtype)
        surrounded = surround(grad, halo) if any(ctx.needs_input_grad[:2]) else grad
        if ctx.needs_input_grad[0]:
            grad_x = F.conv2d(surrounded, weight.flip(2, 3), padding=ctx.padding, groups=len(weight))
        if ctx.needs_input_grad[1]:
            # By the same symmetry the cells need no halos here: each product is found at the other of its two cells.
            grad_weight = kernel_gradient(surrounded, x, ctx.padding).flip(2, 3).to(parameters_dtype)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3)).to(parameters_dtype)
        return grad_x, grad_weight, grad_bias, None


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
    return grad_x, grad_weight, grad_bias if wanted[2] else None, None


def surround(x: Tensor, halo: Tensor | None) -> Tensor:
    """Cells with their surroundings `(N, C, k + K - 1, k + K - 1)`, zeros where none is visible; or a dense map."""
    if halo is None:
        return x
    return take_rows(to_rows(x), halo.flatten()).view(*halo.shape, x.shape[1]).permute(0, 3, 1, 2)


def kernel_gradient(x: Tensor, grad: Tensor, padding: int) -> Tensor:
    """Gradient `(C, 1, K, K)` of a depthwise kernel from the input `(N, C, H, W)` and the output's gradient.

    On a CPU the output's gradient slides over the input as a kernel would, in a group for each image and channel.
    """
    channels, height, width = grad.shape[1:]
    is_batch = is_batch_of_gradients(x) or is_batch_of_gradients(grad)
    if x.device.type != "cpu" or torch.compiler.is_compiling() or is_batch or not len(x):
        side = x.shape[2] + 2 * padding - height + 1
        return conv2d_weight(x, (channels, 1, side, side), grad, padding=padding, groups=channels)
    step = _images_at_a_time(channels * height * width)
    parts = []
    for images, kernels in zip(x.split(step), grad.split(step), strict=True):
        groups = len(images) * channels
        products = F.conv2d(_merge(images)[None], _merge(kernels)[:, None], padding=padding, groups=groups)
        parts.append(products.view(-1, channels, *products.shape[2:]))
    total = torch.cat(parts).sum(dim=0, dtype=at_least_float32(x.dtype))
    return total.to(x.dtype)[:, None]


def _images_at_a_time(image_size: int) -> int:
    """The odd number of images, of `image_size` numbers each, whose convolution fits the cache.

    Rows of an even number of images would often lie a multiple of 4 KiB apart, and push each other out of the cache.
    """
    fitting = max(1, CHUNK_SIZE // image_size)
    return fitting if fitting % 2 == 1 else fitting - 1


def _merge(x: Tensor) -> Tensor:
    """`(N, C, H, W)` to `(N * C, H, W)`, channels-last."""
    return x.permute(2, 3, 0, 1).flatten(2).permute(2, 0, 1)
