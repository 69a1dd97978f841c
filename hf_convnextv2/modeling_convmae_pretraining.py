"""ConvMAE and FastConvMAE: a masked autoencoder around the hybrid encoder (arXiv 2205.03892, section 3).

How it hides, encodes and compares cells is in masked_pretraining.py, whose letters the output's shapes use; the decoder
is in convmae_decoder.py. A patch, which is what is predicted, is a token here; a cell has one or several.
"""

import os
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers.utils import logging

from .configuration_convmae import ConvMAEConfig
from .convmae_decoder import ConvMAEDecoder
from .convmae_layers import KERNEL_SIZE
from .masked_pretraining import MaskedAutoencoderOutput, MaskedPreTrainingModel
from .modeling_convmae import ConvMAEModel, ConvMAEPreTrainedModel
from .packing import PackedCells, VisibleCells, locate_cells
from .position_embeddings import PositionEmbeddings

logger = logging.get_logger(__name__)


@dataclass
class ConvMAEForPreTrainingOutput(MaskedAutoencoderOutput):
    """Output of `ConvMAEForPreTraining`.

    With K visible sets, row s * B + b of `logits` and `mask` is image b, of which the encoder saw set s.

    Attributes:
        loss: scalar, mean squared error on hidden tokens of all views.
        logits: `(K * B, T, P * P * num_channels)`, predicted tokens (row, column, channel), normalised per token with
            `norm_pix_loss`.
        mask: `(K * B, T)` float, 1 = hidden, 0 = visible, of tokens.
        ids_restore: `(B, L)` int64, rank of each cell in the order in which cells are kept; its set is rank * K // L.
        hidden_states: maps `(B, C, H, W)` after the stem and after each stage: zeros in hidden cells with one set, else
            all cells, each as its own set made it.
        feature_logits: predicted features, of hidden tokens `(K * B, T, F)` (meaningless in visible ones), or of
            visible tokens `(B, T, F)` (zeros in hidden ones).
        pixel_loss, feature_loss: the parts of `loss` where features are predicted.
        pooled_features: if asked for, `(K * B, C)` of the visible cells of each view, or `(B, C)` of whole images.
    """


class ConvMAEForPreTraining(MaskedPreTrainingModel, ConvMAEPreTrainedModel):
    """ConvMAE: hide most cells of an image, encode the visible ones alone, predict the pixels of the hidden ones.

    Masks are drawn anew for each call, in evaluation mode too: give `noise` or `bool_masked_pos` for fixed ones. With
    `config.num_visible_sets` (4) it is FastConvMAE. Position embeddings are fixed: sines and cosines.
    """

    config_class = ConvMAEConfig
    config: ConvMAEConfig
    output_class: ClassVar[type[MaskedAutoencoderOutput]] = ConvMAEForPreTrainingOutput

    def __init__(self, config: ConvMAEConfig):
        super().__init__(config)
        _refuse_settings_of_whole_images(config)
        self.convmae = ConvMAEModel(config, add_pooling_layer=False, learned_positions=False)
        self.decoder = ConvMAEDecoder(config)
        self.post_init()

    def _settle_loaded_weights(self, source: Any, report: dict[str, Any]) -> None:
        """Drop the learned position embeddings of a model without a decoder: those of pre-training are fixed.

        Those that come with a decoder are kept, for it was trained with them.
        """
        of_encoder: PositionEmbeddings = self.convmae.encoder.stages[-1].position_embeddings
        tables = {"encoder": of_encoder, "decoder": self.decoder.position_embeddings}
        others = [name for name, table in tables.items() if not table.has_initial_weight()]
        if not others:
            return
        if "decoder.position_embeddings.weight" in report["missing_keys"]:
            of_encoder.restore_initial_weight()
            told = (
                "has learned position embeddings, which pre-training does not use: its own are fixed sines and cosines."
            )
        else:
            told = (
                f"has position embeddings of the {' and of the '.join(others)} that are not the sines and cosines of "
                f"`image_size` (={self.config.image_size}). They are kept: check that it is the size of pre-training."
            )
        if os.environ.get("LOCAL_RANK", "0") == "0":  # once for all processes
            logger.warning(f"`{source}` {told}")

    def _locate(self, visible: VisibleCells, grid: tuple[int, int], with_halo: bool = True) -> tuple[PackedCells, ...]:
        """Where the visible cells lie at each stage."""
        assert self.config.cell_size is not None
        num_tokens = self.config.cell_size // self.config.target_size  # a side of a cell
        *of_convolutions, of_tokens = (num_tokens * side for side in self.config.token_sides)
        located = [
            locate_cells(visible, grid, side, with_halo=with_halo, kernel_size=KERNEL_SIZE) for side in of_convolutions
        ]
        return *located, locate_cells(visible, grid, of_tokens, with_halo=False)


def _refuse_settings_of_whole_images(config: ConvMAEConfig) -> None:
    """Raise if attention is to be in windows, or to know relative positions: visible cells lie in no windows."""
    for name in ("window_size", "use_relative_position_bias"):
        value = getattr(config, name)
        if value:
            raise ValueError(
                f"`{name}` (={value}) must be left out in pre-training, which computes visible cells alone. Give it "
                f"where images are whole: `ConvMAEBackbone.from_pretrained(..., {name}={value})`. Weights that hold "
                "trained biases have no place for them here: pre-train what they were trained from."
            )
