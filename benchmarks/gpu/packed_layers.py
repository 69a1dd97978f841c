"""The two layers with Triton kernels, alone, as `correct` compares them: small, so that each is soon compared."""

import argparse

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from benchmarks.gpu.subjects import Subject, awake
from hf_convnextv2.depthwise import depthwise_conv
from hf_convnextv2.fused_mlp import fused_mlp
from hf_convnextv2.grn import ConvNextV2GRN
from hf_convnextv2.masking import visible_ids
from hf_convnextv2.packing import locate_cells, one_view
from hf_convnextv2.precision import at_least_float32

DIM = 48
GRID = (7, 7)
NUM_VISIBLE = 19
GROUPS = ((2, 76), (1, 20))  # views and positions of each


class PackedConvolution(nn.Module):
    """The depthwise convolution of packed cells, whose gradient is a parameter's too."""

    def __init__(self, batch: int, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(DIM, DIM, 7, padding=3, groups=DIM)
        self.x, self.side = nn.Parameter(torch.randn(batch * NUM_VISIBLE, DIM, side, side)), side

    def forward(self, masked: Tensor) -> ModelOutput:
        cells = locate_cells(one_view(visible_ids(masked, NUM_VISIBLE)), GRID, self.side)
        return mean_square(depthwise_conv(self.conv, self.x, cells))


class PackedMLP(nn.Module):
    """The fused MLP on views of two sizes, with a LayerNorm, drop path and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.grn = nn.LayerNorm(DIM), ConvNextV2GRN(4 * DIM)
        self.up, self.down = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)
        num_rows = sum(views * positions for views, positions in GROUPS)
        self.x, self.residual = (nn.Parameter(torch.randn(num_rows, DIM)) for _ in range(2))

    def forward(self, factor: Tensor) -> ModelOutput:
        return mean_square(fused_mlp(self.x, GROUPS, self.up, self.grn, self.down, self.norm, self.residual, factor))


def mean_square(out: Tensor) -> ModelOutput:
    return ModelOutput(loss=out.to(at_least_float32(out.dtype)).square().mean())


def packed_convolution(settings: argparse.Namespace, side: int) -> Subject:
    torch.manual_seed(0)
    batch = settings.correct_batch
    masked = torch.rand(batch, GRID[0] * GRID[1]).argsort(dim=1) >= NUM_VISIBLE
    name = f"depthwise convolution, {side} positions a side"
    return Subject(name, PackedConvolution(batch, side), {"masked": masked})


def packed_mlp(settings: argparse.Namespace) -> Subject:
    torch.manual_seed(0)
    return Subject("fused MLP", awake(PackedMLP()), {"factor": torch.tensor([1.0, 0.0, 2.0])})
