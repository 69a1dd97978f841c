"""FCMAE without sparsity: an encoder that computes every cell of an image whose hidden cells are zeros.

The paper's "w/o sparse convolution" (section 3.1). Only the pixels are masked: from the stem on, features of visible
cells flow into hidden ones and back, and the zeros count in GRN's statistics. The decoder is the ordinary one, which
gets the visible cells of the last map and puts mask tokens into the others.
"""

from torch import Tensor

from hf_convnextv2 import ConvNextV2ForPreTraining
from hf_convnextv2.masked_pretraining import EncodedCells
from hf_convnextv2.packing import VisibleCells, locate_cells, pack, take_cells, unpack


def without_hidden_cells(pixel_values: Tensor, visible: VisibleCells, grid: tuple[int, int]) -> Tensor:
    """Images `(B, C, H, W)` with zeros, the mean colour, in their hidden cells."""
    pixels = locate_cells(visible, grid, pixel_values.shape[2] // grid[0], with_halo=False)
    return unpack(take_cells(pixel_values, visible, grid), pixels)


class DenseEncoderForPreTraining(ConvNextV2ForPreTraining):
    """FCMAE whose encoder sees the images with zeros in place of their hidden cells."""

    def forward_encoder(
        self, pixel_values: Tensor, visible: VisibleCells, grid: tuple[int, int], output_hidden_states: bool = False
    ) -> EncodedCells:
        """Encode whole images `(B, num_channels, height, width)`; of one visible set."""
        cells = self._locate(visible, grid, with_halo=False)
        embedded = self.base_model.embeddings(without_hidden_cells(pixel_values, visible, grid))
        hidden_states = self.base_model.encoder(embedded, output_hidden_states=True)
        places = (cells[0], *cells)  # the stem's map lies as the first stage's
        maps = tuple(pack(map_, place) for map_, place in zip(hidden_states, places, strict=True))
        return EncodedCells(maps, cells, None, hidden_states if output_hidden_states else None)
