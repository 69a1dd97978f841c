"""The decoder of FCMAE: from visible cells to predictions of every cell (arXiv 2301.00808, section 3).

B batch, L cells of an image (h * w of them), K views of it, N visible cells of all views, P side of a cell in pixels,
C channels, D decoder width, F channels of predicted features.
"""

import torch
from torch import Tensor, nn

from .channels import adapt_output_channels
from .configuration_convnextv2 import ConvNextV2FCMAEConfig
from .fusion import ConvNextV2Fusion
from .layers import ConvNextV2Layer
from .packing import PackedCells, unpack


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
        self.pred_feature = _feature_head(config)
        self.mimics = self.pred_feature is not None and config.feature_target_on == "visible"
        self.fusion = ConvNextV2Fusion(config)

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
        logits = self.pred(decoded).flatten(1, 2) if self.pred is not None else None
        return logits, self._predict_features(encoded, images, decoded)

    def _predict_features(
        self, encoded: Tensor, images: tuple[PackedCells, ...] | None, decoded: Tensor
    ) -> Tensor | None:
        """A teacher's features: of visible cells from the encoder's map, of hidden ones from the decoder's."""
        if self.pred_feature is None:
            return None
        if not self.mimics:
            return self.pred_feature(decoded).flatten(1, 2)
        assert images is not None
        features = self.pred_feature(encoded).permute(0, 3, 1, 2)  # (N, F, 1, 1)
        return unpack(features, images[-1]).flatten(2).mT

    def set_num_channels(self, num_channels: int) -> None:
        """Adapt the prediction to images of `num_channels` channels."""
        self.num_channels, stored = num_channels, self.num_channels
        if self.pred is None:
            return
        for name, parameter in list(self.pred.named_parameters()):
            adapted = adapt_output_channels(parameter.detach(), stored, num_channels)
            setattr(self.pred, name, nn.Parameter(adapted))
        self.pred.out_features = len(self.pred.weight)


def _feature_head(config: ConvNextV2FCMAEConfig) -> nn.Linear | None:
    """The layer that predicts a teacher's features, where any are asked for."""
    if config.feature_target_dim is None:
        return None
    on_visible = config.feature_target_on == "visible"
    width = config.hidden_sizes[-1] if on_visible else config.decoder_hidden_size
    return nn.Linear(width, config.feature_target_dim)
