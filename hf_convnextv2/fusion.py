"""Multi-scale fusion: the decoder also sees the maps of earlier stages (ConvMAE, arXiv 2205.03892)."""

from collections.abc import Sequence

from torch import Tensor, nn

from .downsampling import patch_conv


class StageFusion(nn.ModuleDict):
    """For each of the `stages` a convolution that makes one position of what the last stage has one position of.

    `hidden_sizes` and `sides` are those of all stages: channels, and positions of a map where the last one has one, so
    that no kernel reaches from a cell into another.
    """

    def __init__(self, stages: Sequence[str], hidden_sizes: Sequence[int], sides: Sequence[int], out_channels: int):
        super().__init__()
        for name in stages:
            index = stage_number(name) - 1
            side = sides[index]
            self[name] = nn.Conv2d(hidden_sizes[index], out_channels, kernel_size=side, stride=side)

    def forward(self, x: Tensor, maps: tuple[Tensor, ...]) -> Tensor:
        """Add the convolved maps to `x (N, D, k, k)`; `maps` are packed, the stem's first."""
        for name, conv in self.items():
            x = x + patch_conv(conv, maps[stage_number(name)])  # type: ignore[arg-type]
        return x


def stage_number(name: str) -> int:
    """1 of "stage1" and so on; also the place of its map, after the stem's."""
    return int(name.removeprefix("stage"))
