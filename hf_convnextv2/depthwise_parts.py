"""The depthwise convolution and its gradients on a CPU, some images at a time, dealt to threads.

N images (dense) or visible cells (packed), C channels, H W height and width, K the kernel's width. A part is a slice of
the N.
"""

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from .dealing import deal, num_workers
from .fast_path import is_batch_of_gradients
from .groups import Groups, count_views
from .packing import take_rows, to_rows
from .precision import at_least_float32

# Numbers of the output's gradient that are handled at a time: copies of them fit the cache.
CHUNK_SIZE = 2**18


class Cells(NamedTuple):
    """What is packed: each cell's `halo` (see `PackedCells`), views and the cells of each. None of a dense map."""

    halo: Tensor | None
    groups: Groups | None


def workers_for(x: Tensor, groups: Groups | None) -> int:
    """Among how many threads to deal the convolution of `x (N, C, H, W)`; 1 is not at all."""
    return num_workers(x.shape[0] if groups is None else count_views(groups), x, x.numel())


def surround(x: Tensor, halo: Tensor | None) -> Tensor:
    """Cells with their surroundings `(N, C, k + K - 1, k + K - 1)`, zeros where none is visible; or a dense map."""
    if halo is None:
        return x
    return _as_maps(take_rows(to_rows(x), halo.flatten()), halo)


def convolve_in_parts(
    x: Tensor, weight: Tensor, bias: Tensor | None, cells: Cells, padding: int, workers: int
) -> Tensor:
    """The convolution of `x (N, C, H, W)`, which keeps its size, by `workers` threads."""
    out, surrounded = torch.empty_like(x, memory_format=torch.channels_last), _surroundings(x, cells.halo)

    def convolve(share: slice) -> None:
        surrounded_part = surrounded(share)
        for part in _in_parts(share, x):
            out[part] = F.conv2d(surrounded_part(part), weight, bias, padding=padding, groups=len(weight))

    deal(convolve, _shares(x, cells.groups, workers))
    return out


def gradients_in_parts(
    grads: tuple[Tensor, Tensor | None],
    x: Tensor,
    weight: Tensor,
    cells: Cells,
    padding: int,
    workers: int,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the input, the kernel and the bias that are `wanted`, by `workers` threads.

    `grads`: of the output, and of the residual if it is to be added to the input's.
    """
    grad, grad_residual = grads
    grad_x = torch.empty_like(x, memory_format=torch.channels_last) if wanted[0] else None
    turned, surrounded = weight.to(x.dtype).flip(2, 3), _surroundings(grad, cells.halo)

    def differentiate(share: slice) -> list[Tensor]:
        kernels, biases, surrounded_part = [], [], surrounded(share)
        for part in _in_parts(share, x):
            gradients = surrounded_part(part)
            if grad_x is not None:
                of_input = F.conv2d(gradients, turned, padding=padding, groups=len(weight))
                grad_x[part] = of_input if grad_residual is None else of_input.add_(grad_residual[part])
            if wanted[1]:
                kernels.append(_kernel_gradients(gradients, x[part], padding))
            if wanted[2]:
                biases.append(grad[part].sum((2, 3), dtype=at_least_float32(grad.dtype)))
        return [_sum(found) for found in (kernels, biases) if found]

    shares = deal(differentiate, _shares(x, cells.groups, workers))
    sums = [torch.stack(parts).sum(dim=0).to(weight.dtype) for parts in zip(*shares, strict=True)]
    grad_weight = sums[0][:, None].flip(2, 3) if wanted[1] else None
    return grad_x, grad_weight, sums[-1] if wanted[2] else None


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
    pairs = zip(x.split(step), grad.split(step), strict=True)
    return _sum([_kernel_gradients(*pair, padding) for pair in pairs]).to(x.dtype)[:, None]


def _kernel_gradients(x: Tensor, grad: Tensor, padding: int) -> Tensor:
    """Those of each image or cell, `(N, C, K, K)`."""
    groups = len(x) * x.shape[1]
    products = F.conv2d(_merge(x)[None], _merge(grad)[:, None], padding=padding, groups=groups)
    return products.view(*x.shape[:2], *products.shape[2:])


def _sum(parts: list[Tensor]) -> Tensor:
    """Over all images, in float32 at least."""
    whole = torch.cat(parts)
    return whole.sum(dim=0, dtype=at_least_float32(whole.dtype))


def _shares(x: Tensor, groups: Groups | None, workers: int) -> list[slice]:
    """The images or cells of each worker: cells of whole views, which see no others."""
    sizes = [size for views, size in groups or ((x.shape[0], 1),) for _ in range(views)]
    starts = [0, *accumulate(sizes)]
    places = [len(sizes) * worker // workers for worker in range(workers + 1)]
    return [slice(starts[first], starts[last]) for first, last in pairwise(places)]


def _in_parts(share: slice, x: Tensor) -> list[slice]:
    """As many images or cells at a time as fit the cache."""
    step = _images_at_a_time(x[0].numel())
    return [slice(first, min(first + step, share.stop)) for first in range(share.start, share.stop, step)]


def _images_at_a_time(image_size: int) -> int:
    """The odd number of images, of `image_size` numbers each, whose convolution fits the cache.

    Rows of an even number of images would often lie a multiple of 4 KiB apart, and push each other out of the cache.
    """
    fitting = max(1, CHUNK_SIZE // image_size)
    return fitting if fitting % 2 == 1 else fitting - 1


def _surroundings(x: Tensor, halo: Tensor | None) -> Callable[[slice], Callable[[slice], Tensor]]:
    """What a worker calls with its share for a function that gives `surround` of a part of it."""
    if halo is None:
        return lambda share: lambda part: x[part]
    rows = to_rows(x)
    padded = rows.new_empty(len(rows) + 1, rows.shape[1])
    padded[-1] = 0
    of_cell = len(rows) // len(x)

    def prepare(share: slice) -> Callable[[slice], Tensor]:
        own = slice(share.start * of_cell, share.stop * of_cell)
        padded[own] = rows[own]
        return lambda part: _as_maps(padded.index_select(0, halo[part].flatten()), halo[part])

    return prepare


def _as_maps(rows: Tensor, halo: Tensor) -> Tensor:
    return rows.view(*halo.shape, rows.shape[1]).permute(0, 3, 1, 2)


def _merge(x: Tensor) -> Tensor:
    """`(N, C, H, W)` to `(N * C, H, W)`, channels-last."""
    return x.permute(2, 3, 0, 1).flatten(2).permute(2, 0, 1)
