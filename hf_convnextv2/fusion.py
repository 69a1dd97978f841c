"""Multi-scale fusion: the decoder also sees the maps of earlier stages (ConvMAE, arXiv 2205.03892)."""

from torch import Tensor, nn

from .configuration_convnextv2 import ConvNextV2FCMAEConfig
from .downsampling import patch_conv


class ConvNextV2Fusion(nn.ModuleDict):
    """For each of `config.fusion_stages` a convolution that makes one position of a cell, of the decoder's width."""

    def __init__(self, config: ConvNextV2FCMAEConfig):
        super().__init__()
        for name in config.fusion_stages:
            number = stage_number(name)
            side = 2 ** (len(config.depths) - number)  # positions of a cell: no kernel reaches into another one
            in_channels = config.hidden_sizes[number - 1]
            self[name] = nn.Conv2d(in_channels, config.decoder_hidden_size, kernel_size=side, stride=side)

    def forward(self, x: Tensor, maps: tuple[Tensor, ...]) -> Tensor:
        """Add the convolved maps to `x (N, D, 1, 1)`; `maps` are packed, the stem's first."""
        for name, conv in self.items():
            x = x + patch_conv(conv, maps[stage_number(name)])  # type: ignore[arg-type]
        return x


def stage_number(name: str) -> int:
    """1 of "stage1" and so on; also the place of its map, after the stem's."""
    return int(name.removeprefix("stage"))
