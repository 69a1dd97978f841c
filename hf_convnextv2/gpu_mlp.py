"""The fused MLP on a GPU: its matrix products by the library, and between them the kernels of mlp_kernels.py.

It computes what fused_mlp.py and fused_mlp_backward.py do, with a quarter of the launches and in half of the passes
over the 4C channels of the middle. Biases are added inside the kernels, in the dtype of the parameters.

B views, T positions of a view, R rows of all views, C channels of the block, 4C of its middle.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .chunks import Chunk
from .fused_mlp_reference import MLPWeights
from .grn import GRN_EPS
from .triton_kernels import launch

TILE = (16, 128)  # rows and channels that a thread block works on at a time
# Thread blocks that keep the largest GPUs busy; more would only add parts to sum up.
NUM_BLOCKS = 2048


def forward_by_kernels(
    x: Tensor,
    chunks: list[Chunk],
    residual: Tensor | None,
    factor: Tensor | None,
    weights: MLPWeights,
    keep_hidden: bool = True,
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """The output `(R, C)`, and what its gradients need.

    That is the output `(R, 4C)` of `up` without its bias, alone in a list, kept if `keep_hidden`, and the energies
    `(views, 4C)`, if there is GRN.
    """
    dtype, width, num_views = weights.up.dtype, len(weights.up), chunks[-1].views.stop
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    with torch.cuda.device_of(x):
        hidden = torch.mm(_normalise(x, weights), weights.up.T)
        activation = torch.empty_like(hidden) if keep_hidden else hidden
        scale, shift = _affine(weights, num_views)
        energy = None if weights.grn is None else torch.empty_like(scale)
        for chunk in chunks:
            h, tiles = hidden[chunk.rows], _Tiles(chunk, width)
            if energy is not None:
                sums = tiles.sums(energy)
                launch("squares", tiles.grid, h, weights.up_bias, sums, *tiles.sizes, *TILE)
                per_view = (energy[chunk.views], scale[chunk.views])
                block = _next_power_of_2(width)
                arguments = (sums, weights.grn, *per_view, tiles.splits, width, GRN_EPS, block)
                launch("scale", (chunk.shape[0],), *arguments, num_warps=_warps(block))
            arguments = (h, weights.up_bias, scale[chunk.views], shift, activation[chunk.rows])
            launch("activation", tiles.grid, *arguments, *tiles.sizes, *TILE)
        branch = torch.mm(activation, weights.down.T)
        out_dtype = dtype if residual is None else torch.promote_types(residual.dtype, dtype)
        out = torch.empty_like(branch, dtype=out_dtype)
        for chunk in chunks:
            _add_residual(chunk, branch, residual, factor, weights.down_bias, out)
    return out, [hidden], energy


def backward_by_kernels(
    grad: Tensor,
    x: Tensor,
    chunks: list[Chunk],
    factor: Tensor | None,
    saved: list[Tensor],
    energy: Tensor | None,
    weights: MLPWeights,
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of the input `(R, C)` and of each of `weights`, from that of the output `(R, C)`."""
    x, width = x.contiguous(), len(weights.up)
    (hidden,) = saved
    with torch.cuda.device_of(x):
        z, grad_down_bias = _through_residual(grad, chunks, factor, weights)
        grad_hidden = torch.mm(z, weights.down)
        activation = torch.empty_like(hidden)
        scale, shift = _affine(weights, chunks[-1].views.stop)
        slope = torch.zeros_like(scale) if energy is None else torch.empty_like(scale)
        grad_grn, bias_sums = torch.empty_like(scale), []
        for chunk in chunks:
            tiles, views, rows = _Tiles(chunk, width), chunk.views, chunk.rows
            h, g, sums = hidden[rows], grad_hidden[rows], tiles.sums(scale)
            if energy is not None:
                launch("grad_scale", tiles.grid, h, weights.up_bias, g, sums, *tiles.sizes, *TILE)
                per_view = (energy[views], scale[views], slope[views], grad_grn[views])
                block = _next_power_of_2(width)
                arguments = (sums, weights.grn, *per_view, tiles.splits, width, GRN_EPS, block)
                launch("grn_backward", (chunk.shape[0],), *arguments, num_warps=_warps(block))
            arguments = (h, weights.up_bias, scale[views], slope[views], shift, g, activation[rows], sums)
            launch("activation_backward", tiles.grid, *arguments, *tiles.sizes, *TILE)
            bias_sums.append(sums)
        grad_down = torch.mm(z.T, activation)
        del activation
        grad_up = torch.mm(grad_hidden.T, _normalise(x, weights))
        grad_x, grad_norm, grad_norm_bias = _through_norm(torch.mm(grad_hidden, weights.up), x, weights)
    grad_grn_bias = grad_down_bias.to(weights.down.dtype) @ weights.down
    sums = (grad_up, _total(bias_sums), grad_grn.sum(dim=0), grad_grn_bias, grad_down, grad_down_bias)
    tensors: Any = (*zip((*sums, grad_norm, grad_norm_bias), weights[:8], strict=True),)
    return grad_x, [*(None if t is None else g.to(t.dtype) for g, t in tensors), None]  # the norm's epsilon has none


def _affine(weights: MLPWeights, num_views: int) -> tuple[Tensor, Tensor]:
    """Memory for GRN's scale `(views, 4C)`, and its bias; without GRN, what changes nothing: ones and zeros."""
    width = len(weights.up)
    scale = weights.up.new_empty(num_views, width, dtype=torch.float32)
    if weights.grn_bias is None:
        return scale.fill_(1), scale.new_zeros(width)
    return scale, weights.grn_bias


class _Tiles:
    """How the rows `(B * T, W)` of a chunk are shared out among thread blocks."""

    def __init__(self, chunk: Chunk, width: int):
        views, positions = chunk.shape
        self.columns = math.ceil(width / TILE[1])
        splits = max(1, min(NUM_BLOCKS // (views * self.columns), math.ceil(positions / (2 * TILE[0]))))
        rows = math.ceil(positions / splits / TILE[0]) * TILE[0]
        self.splits = math.ceil(positions / rows)
        self.grid = (views * self.splits, self.columns)
        self.sizes = (positions, width, self.splits, rows)

    def sums(self, energy: Tensor) -> Tensor:
        """Memory for a sum over the rows of each thread block."""
        return energy.new_empty(self.grid[0], energy.shape[1])


def _normalise(x: Tensor, weights: MLPWeights) -> Tensor:
    """LayerNorm of rows `(R, C)`, in the dtype of the products."""
    if weights.norm is None:
        return x
    rows, dim = x.shape
    out = torch.empty_like(x, dtype=weights.up.dtype)
    block_rows, block = _row_block(dim)
    arguments = (x, weights.norm, weights.norm_bias, out, rows, dim, weights.eps, block_rows, block)
    launch("layer_norm", (math.ceil(rows / block_rows),), *arguments, num_warps=_warps(block))
    return out


def _through_norm(grad: Tensor, x: Tensor, weights: MLPWeights) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of the input of the LayerNorm and of its parameters."""
    if weights.norm is None:
        return grad, None, None
    rows, dim = x.shape
    block_rows, block = _row_block(dim)
    rows_per_block = math.ceil(rows / NUM_BLOCKS / block_rows) * block_rows
    num_blocks = math.ceil(rows / rows_per_block)
    grad_x, sums = torch.empty_like(x), grad.new_empty(num_blocks, 2, dim, dtype=torch.float32)
    arguments = (grad, x, weights.norm, grad_x, sums, rows, dim, weights.eps, rows_per_block, block_rows, block)
    launch("layer_norm_backward", (num_blocks,), *arguments, num_warps=_warps(block))
    grad_norm, grad_norm_bias = sums.sum(dim=0)
    return grad_x, grad_norm, grad_norm_bias


def _add_residual(
    chunk: Chunk,
    branch: Tensor,
    residual: Tensor | None,
    factor: Tensor | None,
    down_bias: Tensor,
    out: Tensor,
) -> None:
    """Fill the chunk's rows of `out` with `residual + factor * (branch + down_bias)`."""
    z, out = branch[chunk.rows], out[chunk.rows]
    rows, dim = z.shape
    # Of what is not there, another tensor takes the place: it is not read.
    scales = z if factor is None else factor[chunk.views]
    added = z if residual is None else residual[chunk.rows]
    grid = (math.ceil(rows / TILE[0]), math.ceil(dim / TILE[1]))
    arguments = (z, down_bias, scales, added, out, rows, chunk.shape[1], dim)
    launch("residual", grid, *arguments, factor is not None, residual is not None, *TILE)


def _through_residual(
    grad: Tensor, chunks: list[Chunk], factor: Tensor | None, weights: MLPWeights
) -> tuple[Tensor, Tensor]:
    """The gradient `(R, C)` of the branch, in the dtype of the products, and its sum over the rows."""
    z, dim = torch.empty_like(grad, dtype=weights.up.dtype), grad.shape[1]
    columns, parts = math.ceil(dim / TILE[1]), []
    for chunk in chunks:
        rows = chunk.num_rows
        rows_per_block = math.ceil(rows * columns / NUM_BLOCKS / TILE[0]) * TILE[0]
        grid = (math.ceil(rows / rows_per_block), columns)
        sums = grad.new_empty(grid[0], dim, dtype=torch.float32)
        scales = grad if factor is None else factor[chunk.views]
        arguments = (grad[chunk.rows], scales, z[chunk.rows], sums, rows, chunk.shape[1], dim, rows_per_block)
        launch("residual_backward", grid, *arguments, factor is not None, *TILE)
        parts.append(sums)
    return z, _total(parts)


def _total(parts: list[Tensor]) -> Tensor:
    """The sum of what the thread blocks of all chunks have summed up, `(blocks, C)` each."""
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).sum(dim=0)


def _row_block(dim: int) -> tuple[int, int]:
    """Rows and channels of a thread block that needs all channels of a row."""
    block = _next_power_of_2(dim)
    return max(1, 4096 // block), block


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _warps(block: int) -> int:
    """Warps of a thread block with a row of so many channels."""
    return 4 if block <= 2048 else 8 if block <= 8192 else 16
