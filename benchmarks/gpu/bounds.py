"""The least time that a step can take on a device, from its products and from the memory that it must move."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.shared.measure import seconds_of

# Channels, in units of C, that the four operations of a block read and write: depthwise convolution and LayerNorm from
# C to C, linear layers from C to 4C and back.
FORWARD = (1 + 1) + (1 + 1) + (1 + 4) + (4 + 1)
# Backward, each reads its input and its output's gradient, and writes its input's gradient.
BACKWARD = (1 + 1 + 1) + (1 + 1 + 1) + (1 + 4 + 1) + (4 + 1 + 4)
PARAMETER_SIZE = 4  # bytes: under autocast they are float32


class Rates(NamedTuple):
    """What the device does in a second: operations of matrix products, and bytes read or written."""

    operations: float
    bytes: float


class Work(NamedTuple):
    """What a call must do: operations of products and convolutions, and bytes moved."""

    operations: float
    bytes: float

    def seconds(self, rates: Rates) -> tuple[float, float]:
        """Of the products alone, and of the memory alone. Both at once at best, so that the bound is the greater."""
        return self.operations / rates.operations, self.bytes / rates.bytes


def block_bytes(num_rows: int, num_channels: int, element_size: int, training: bool) -> int:
    """Bytes that a block moves if each of its four operations reads and writes everything once.

    A block has R rows (positions of all views) of C channels. Forward, depthwise convolution, LayerNorm, and the linear
    layers from C to 4C and back move 2 + 2 + 5 + 5 = 14 R C numbers. Backward, each reads its input and its output's
    gradient and writes its input's gradient: 3 + 3 + 6 + 9 = 21 R C. GELU, GRN, drop path and the residual count
    nothing, as if they were part of the operations beside them; GRN's statistics in truth need the whole of a view.
    """
    return num_rows * num_channels * element_size * (FORWARD + BACKWARD * training)


def bytes_moved(blocks: list[tuple[int, int]], num_parameters: int, element_size: int, training: bool) -> int:
    """Bytes of blocks `(rows, channels)` and parameters: each is read, in training twice, and its gradient written.

    What lies between blocks, the stem and the prediction count nothing.
    """
    of_blocks = sum(block_bytes(*block, element_size, training) for block in blocks)
    return of_blocks + PARAMETER_SIZE * num_parameters * (3 if training else 1)


def blocks_of_encoder(config: Any, num_cells: int) -> list[tuple[int, int]]:
    """Rows and channels of each block that computes so many cells, of all views together."""
    sides = [2**stage for stage in reversed(range(len(config.depths)))]
    stages = zip(config.depths, config.hidden_sizes, sides, strict=True)
    return [(num_cells * side**2, width) for depth, width, side in stages for _ in range(depth)]


def operations_of(forward: Callable[[], object], training: bool) -> int:
    """Floating-point operations of the matrix products and convolutions of a forward pass, and of its backward pass.

    The backward pass has two products for each, of the input's gradient and of the weight's. It is not counted itself:
    PyTorch's counter takes the gradient of a depthwise convolution for that of one between all channels.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops() * (3 if training else 1)


def measure_rates(device: str, dtype: str, matrix_size: int, copy_mib: int) -> Rates:
    """The best of a few products of square matrices, and of a few copies."""
    a, b = (torch.randn(matrix_size, matrix_size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    source = torch.zeros(copy_mib * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product, copy = best(lambda: torch.mm(a, b)), best(lambda: target.copy_(source))
    return Rates(2 * matrix_size**3 / product, 2 * source.numel() / copy)


def best(call: Callable[[], object], repeats: int = 10) -> float:
    return min(seconds_of(call) for _ in range(repeats))
