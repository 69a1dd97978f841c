"""The decoder of FCMAE: from visible cells to predictions of every cell (arXiv 2301.00808, section 3).

B batch, L cells of an image (h * w of them), K views of it, N visible cells of all views, P side of a cell in pixels,
C channels, D decoder width.
"""

import torch
from torch import Tensor, nn

from .channels import adapt_output_channels
from .configuration_convnextv2 import ConvNextV2FCMAEConfig
from .downsampling import patch_conv
from .layers import ConvNextV2Layer
from .packing import PackedCells, unpack


def stage_number(name: str) -> int:
    """Of "stage1" and so on: also its index among the maps, the stem's coming first."""
    return int(name.removeprefix("stage"))


class ConvNextV2FCMAEDecoder(nn.Module):
    """Project the visible cells, fill the holes with a mask token, mix with ConvNeXt V2 blocks, predict."""

    def __init__(self, config: ConvNextV2FCMAEConfig):
        super().__init__()
        dim = config.decoder_hidden_size
        self.num_channels = config.num_channels
        self.proj = nn.Linear(config.hidden_sizes[-1], dim)
        self.mask_token = nn.Parameter(torch.zeros(1, dim, 1, 1))  # 4-D as in the official checkpoints
        self.layers = nn.ModuleList(ConvNextV2Layer(config, dim) for _ in range(config.decoder_num_hidden_layers))
        num_pixels = config.cell_size**2 * config.num_channels
        self.pred = nn.Linear(dim, num_pixels) if "pixel" in config.target_type else None
        self.pred_feature, self.mimics = None, config.feature_target_on == "visible"
        if config.feature_target_dim is not None:
            width = config.hidden_sizes[-1] if self.mimics else dim
            self.pred_feature = nn.Linear(width, config.feature_target_dim)
        self.fusion = nn.ModuleDict()
        for stage in config.fusion_stages:
            number = stage_number(stage)
            side = 2 ** (len(config.depths) - number)  # positions of a cell: no kernel reaches into another one
            self.fusion[stage] = nn.Conv2d(config.hidden_sizes[number - 1], dim, kernel_size=side, stride=side)

    def forward(
        self, maps: tuple[Tensor, ...], cells: PackedCells, masked: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Packed maps `(N, C, k, k)`, the last stage's at the end, to predicted cells and features.

        `(K * B, L, P * P * num_channels)`, and features of the packed cells `(N, F, 1, 1)` or of all `(K * B, L, F)`.
        """
        features = maps[-1].permute(0, 2, 3, 1)  # (N, 1, 1, C)
        x = self.proj(features).permute(0, 3, 1, 2)  # (N, D, 1, 1)
        for stage, conv in self.fusion.items():
            x = x + patch_conv(conv, maps[stage_number(stage)])  # type: ignore[arg-type]
        x = unpack(x, cells)  # (K * B, D, h, w)
        x = torch.where(masked.view(-1, 1, *x.shape[2:]), self.mask_token.to(x.dtype), x)
        for layer in self.layers:
            x = layer(x)
        x = x.permute(0, 2, 3, 1)
        logits = self.pred(x).flatten(1, 2) if self.pred is not None else None
        if self.pred_feature is None:
            return logits, None
        if self.mimics:
            return logits, self.pred_feature(features).permute(0, 3, 1, 2)
        return logits, self.pred_feature(x).flatten(1, 2)

    def set_num_channels(self, num_channels: int) -> None:
        """Adapt the prediction to images of `num_channels` channels."""
        self.num_channels, stored = num_channels, self.num_channels
        if self.pred is None:
            return
        for name, parameter in list(self.pred.named_parameters()):
            adapted = adapt_output_channels(parameter.detach(), stored, num_channels)
            setattr(self.pred, name, nn.Parameter(adapted))
        self.pred.out_features = len(self.pred.weight)
