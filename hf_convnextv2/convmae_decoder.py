"""The decoder of ConvMAE: from visible tokens to predictions of every token (arXiv 2205.03892, section 3).

B batch, h w tokens of an image (T of them), K views of it, N visible cells of all views, k tokens a side of a cell, P
side of a token in pixels, C channels, D decoder width, F channels of predicted features.
"""

import torch
from torch import Tensor, nn

from .configuration_convmae import ConvMAEConfig
from .convmae_layers import ConvMAELayer
from .fusion import StageFusion
from .layers import call
from .packing import PackedCells, to_rows, unpack
from .position_embeddings import PositionEmbeddings
from .prediction_heads import PredictionHeads


class ConvMAEDecoder(PredictionHeads):
    """Add the maps of earlier stages, fill the holes with a mask token, mix with a transformer, predict.

    `norm` is that of the encoder's output: it stands after the fusion, and nothing but the decoder sees its result.
    """

    def __init__(self, config: ConvMAEConfig):
        super().__init__()
        width, dim, num_heads = config.hidden_sizes[-1], config.decoder_hidden_size, config.decoder_num_attention_heads
        self.fusion = StageFusion(config.fusion_stages, config.hidden_sizes, config.token_sides, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position_embeddings = PositionEmbeddings(config.image_size, config.target_size, dim, learned=False)
        num_layers = config.decoder_num_hidden_layers
        self.layers = nn.ModuleList(ConvMAELayer(config, dim, num_heads) for _ in range(num_layers))
        self.layernorm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self._create_heads(config, config.num_channels, width, config.target_size)

    def forward(
        self,
        maps: tuple[Tensor, ...],
        cells: tuple[PackedCells, ...],
        images: tuple[PackedCells, ...] | None,
        masked: Tensor,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Packed maps `(N, C, k, k)` to predicted tokens `(K * B, T, P * P * num_channels)` and features.

        Args:
            maps: the last stage's at the end; the stem's first where earlier stages are fused.
            cells: for each stage, where its packed cells lie.
            images: the same in whole images, which features of visible cells need.
            masked: `(K * B, T)`.

        Returns:
            None in place of what is not predicted. Features of hidden tokens are `(K * B, T, F)`, those of visible ones
            `(B, T, F)`.
        """
        encoded = self.norm(self.fusion(maps[-1], maps).permute(0, 2, 3, 1))  # (N, k, k, C)
        x = unpack(self.embed(encoded).permute(0, 3, 1, 2), cells[-1])  # (K * B, D, h, w)
        num_views, _, height, width = x.shape
        tokens = to_rows(x).view(num_views, height * width, -1)
        x = torch.where(masked[..., None], self.mask_token, tokens) + self.position_embeddings(height, width)
        for layer in self.layers:
            x = call(layer, x)
        decoded = self.layernorm(x).view(num_views, height, width, -1)
        return self._predict(encoded, images, decoded)
