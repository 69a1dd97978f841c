"""What a decoder of masked pre-training predicts: pixels of every patch, and a teacher's features.

N visible cells of all views, K views of each of B images, h w patches of an image, C D F channels of the encoder, of
the decoder and of the features.
"""

from torch import Tensor, nn

from .channels import adapt_output_channels
from .packing import PackedCells, unpack
from .shared_config import PreTrainingConfig


class PredictionHeads(nn.Module):
    """The base of the decoders: their last layers, which each creates after its others."""

    def _create_heads(self, config: PreTrainingConfig, num_channels: int, hidden_size: int, target_size: int) -> None:
        """Layers that predict patches of `target_size` pixels a side; the encoder is `hidden_size` wide."""
        self.num_channels = num_channels
        num_pixels = target_size**2 * num_channels
        self.pred = nn.Linear(config.decoder_hidden_size, num_pixels) if "pixel" in config.target_type else None
        self.mimics = config.feature_target_dim is not None and config.feature_target_on == "visible"
        self.pred_feature = None
        if config.feature_target_dim is not None:
            width = hidden_size if self.mimics else config.decoder_hidden_size
            self.pred_feature = nn.Linear(width, config.feature_target_dim)

    def _predict(
        self, encoded: Tensor, images: tuple[PackedCells, ...] | None, decoded: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Pixels `(K * B, T, P * P * num_channels)` and features, None in place of what is not predicted."""
        logits = self.pred(decoded).flatten(1, 2) if self.pred is not None else None
        return logits, self._predict_features(encoded, images, decoded)

    def _predict_features(
        self, encoded: Tensor, images: tuple[PackedCells, ...] | None, decoded: Tensor
    ) -> Tensor | None:
        """A teacher's features: of visible cells from the encoder's map, of hidden ones from the decoder's.

        `encoded (N, k, k, C)` is packed, `decoded` is `(K * B, h, w, D)`.
        """
        if self.pred_feature is None:
            return None
        if not self.mimics:
            return self.pred_feature(decoded).flatten(1, 2)
        assert images is not None
        features = self.pred_feature(encoded).permute(0, 3, 1, 2)  # (N, F, k, k)
        return unpack(features, images[-1]).flatten(2).mT

    def set_num_channels(self, num_channels: int) -> None:
        """Adapt the prediction to images of `num_channels` channels."""
        self.num_channels, stored = num_channels, self.num_channels
        if self.pred is None:
            return
        for name, parameter in list(self.pred.named_parameters()):
            adapted = adapt_output_channels(parameter.detach(), stored, num_channels)
            setattr(self.pred, name, nn.Parameter(adapted, requires_grad=parameter.requires_grad))
        self.pred.out_features = len(self.pred.weight)
