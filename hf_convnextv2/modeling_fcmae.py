"""FCMAE: a fully convolutional masked autoencoder around ConvNeXt V2 (arXiv 2301.00808, section 3).

How it hides, encodes and compares cells is in masked_pretraining.py, whose letters the output's shapes use; the decoder
is in fcmae_decoder.py. A patch, which is what is predicted, is a whole cell here: T = L.
"""

from dataclasses import dataclass
from typing import ClassVar

from .configuration_convnextv2 import ConvNextV2FCMAEConfig
from .fcmae_decoder import ConvNextV2FCMAEDecoder
from .masked_pretraining import MaskedAutoencoderOutput, MaskedPreTrainingModel
from .modeling_convnextv2 import ConvNextV2Model, ConvNextV2PreTrainedModel
from .packing import PackedCells, VisibleCells, locate_cells


@dataclass
class ConvNextV2ForPreTrainingOutput(MaskedAutoencoderOutput):
    """Output of `ConvNextV2ForPreTraining`.

    With K visible sets, row s * B + b of `logits` and `mask` is image b, of which the encoder saw set s.

    Attributes:
        loss: scalar, mean squared error on hidden cells of all views.
        logits: `(K * B, L, P * P * num_channels)`, predicted cells (row, column, channel), normalised per cell with
            `norm_pix_loss`.
        mask: `(K * B, L)` float, 1 = hidden, 0 = visible.
        ids_restore: `(B, L)` int64, rank of each cell in the order in which cells are kept; its set is rank * K // L.
        hidden_states: maps `(B, C, H, W)` after the stem and after each stage: zeros in hidden cells with one set, else
            all cells, each as its own set made it.
        feature_logits: predicted features, of hidden cells `(K * B, L, F)` (meaningless in visible ones), or of visible
            cells `(B, L, F)` (zeros in hidden ones).
        pixel_loss, feature_loss: the parts of `loss` where features are predicted.
        pooled_features: if asked for, `(K * B, C)` of the visible cells of each view, or `(B, C)` of whole images.
    """


class ConvNextV2ForPreTraining(MaskedPreTrainingModel, ConvNextV2PreTrainedModel):
    """FCMAE: hide most cells of an image, encode the visible ones alone, predict the pixels of the hidden ones.

    Masks are drawn anew for each call, in evaluation mode too: give `noise` or `bool_masked_pos` for fixed ones.

    GRN's statistics are those of one view, as in the paper and as the released classifiers compute them. The official
    pre-training script takes them over all visible cells of a batch on a device at once, so that there an image's
    features depend on its batch: see "Differences from the official pre-training" in docs/paper.md.
    """

    config_class = ConvNextV2FCMAEConfig
    config: ConvNextV2FCMAEConfig
    output_class: ClassVar[type[MaskedAutoencoderOutput]] = ConvNextV2ForPreTrainingOutput

    def __init__(self, config: ConvNextV2FCMAEConfig):
        super().__init__(config)
        self.convnextv2 = ConvNextV2Model(self.config, add_pooling_layer=False)
        self.decoder = ConvNextV2FCMAEDecoder(self.config)
        self.post_init()

    def _locate(self, visible: VisibleCells, grid: tuple[int, int], with_halo: bool = True) -> tuple[PackedCells, ...]:
        """Where the visible cells lie at each stage."""
        sides = [2**stage for stage in reversed(range(len(self.config.depths)))]  # 8, 4, 2, 1 positions of a cell
        return tuple(locate_cells(visible, grid, side, with_halo=with_halo) for side in sides)


class ConvNextV2FCMAEModel(ConvNextV2Model):
    """The encoder of an FCMAE folder under its own configuration: what `AutoModel` returns for one.

    All cells are visible. The pooled features pass through a LayerNorm that pre-training does not train.
    """

    config_class = ConvNextV2FCMAEConfig
    config: ConvNextV2FCMAEConfig
    _keys_to_ignore_on_load_missing = [r"^layernorm\."]  # noqa: RUF012
