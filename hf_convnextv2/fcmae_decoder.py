"""The decoder of FCMAE: from visible cells to predictions of every cell (arXiv 2301.00808, section 3).

B batch, L cells of an image (h * w of them), K views of it, N visible cells of all views, P side of a cell in pixels,
C channels, D decoder width, F channels of predicted features.
"""

import torch
from torch import Tensor, nn

from .configuration_convnextv2 import ConvNextV2FCMAEConfig
from .fusion import StageFusion
from .layers import ConvNextV2Layer
from .packing import PackedCells, unpack
from .prediction_heads import PredictionHeads


class ConvNextV2FCMAEDecoder(PredictionHeads):
    """Project the visible cells, fill the holes with a mask token, mix with ConvNeXt V2 blocks, predict."""

    def __init__(self, config: ConvNextV2FCMAEConfig):
        super().__init__()
        dim = config.decoder_hidden_size
        self.proj = nn.Linear(config.hidden_sizes[-1], dim)
        self.mask_token = nn.Parameter(torch.zeros(1, dim, 1, 1))  # 4-D as in the official checkpoints
        self.layers = nn.ModuleList(ConvNextV2Layer(config, dim) for _ in range(config.decoder_num_hidden_layers))
        self._create_heads(config, config.num_channels, config.hidden_sizes[-1], config.target_size)
        sides = [2**stage for stage in reversed(range(len(config.depths)))]
        self.fusion = StageFusion(config.fusion_stages, config.hidden_sizes, sides, dim)

    def forward(
        self,
        maps: tuple[Tensor, ...],
        cells: tuple[PackedCells, ...],
        images: tuple[PackedCells, ...] | None,
        masked: Tensor,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Packed maps `(N, C, k, k)` to predicted cells `(K * B, L, P * P * num_channels)` and features.

        Args:
            maps: the last stage's at the end; the stem's first where earlier stages are fused.
            cells: for each stage, where its packed cells lie.
            images: the same in whole images, which features of visible cells need.
            masked: `(K * B, L)`.

        Returns:
            None in place of what is not predicted. Features of hidden cells are `(K * B, L, F)`, those of visible
            cells `(B, L, F)`.
        """
        encoded = maps[-1].permute(0, 2, 3, 1)  # (N, 1, 1, C)
        x = self.proj(encoded).permute(0, 3, 1, 2)  # (N, D, 1, 1)
        x = unpack(self.fusion(x, maps), cells[-1])  # (K * B, D, h, w)
        x = torch.where(masked.view(-1, 1, *x.shape[2:]), self.mask_token.to(x.dtype), x)
        for layer in self.layers:
            x = layer(x)
        decoded = x.permute(0, 2, 3, 1)  # (K * B, h, w, D)
        return self._predict(encoded, images, decoded)
