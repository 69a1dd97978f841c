"""FCMAE: a fully convolutional masked autoencoder around ConvNeXt V2 (arXiv 2301.00808, section 3).

B batch, L cells of an image (h * w of them), K sets that share them out, each of which a view of the image shows to the
encoder (FastConvMAE's complementary masking), N visible cells of all views, P side of a cell in pixels, C channels.
`masked` is (K * B, L) bool, True = hidden from the encoder. With K = 1, the original FCMAE, the one view of an image
shows some of its cells, and the rest is in no view.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.generic import ModelOutput, can_return_tuple

from .cell_mask import CellMask, drawn_mask, given_mask, random_masking
from .configuration_convnextv2 import ConvNextV2FCMAEConfig, height_and_width
from .fcmae_decoder import ConvNextV2FCMAEDecoder
from .feature_targets import check_feature_targets, feature_loss
from .input_checks import check_pixel_values, refuse_unknown_keywords
from .masking import masked_mean, patchify, unpatchify
from .modeling_convnextv2 import ConvNextV2Model, ConvNextV2PreTrainedModel
from .packing import PackedCells, VisibleCells, in_whole_images, locate_cells, pack, take_cells
from .pixel_targets import paint_cells, pixel_errors
from .precision import at_least_float32


class EncodedCells(NamedTuple):
    """What the encoder makes of the visible cells.

    maps: packed, `(N, C, k, k)`, after the stem and after each stage, or the last one alone.
    cells: for each stage, where its packed cells lie in the maps of the views.
    images: for each stage, where they lie in maps of whole images; None where nothing needs it.
    hidden_states: the maps of whole images `(B, C, H, W)`, if asked for.
    """

    maps: tuple[Tensor, ...]
    cells: tuple[PackedCells, ...]
    images: tuple[PackedCells, ...] | None
    hidden_states: tuple[Tensor, ...] | None


@dataclass
class ConvNextV2ForPreTrainingOutput(ModelOutput):
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
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    feature_logits: Tensor | None = None
    pixel_loss: Tensor | None = None
    feature_loss: Tensor | None = None


class ConvNextV2ForPreTraining(ConvNextV2PreTrainedModel):
    """FCMAE: hide most cells of an image, encode the visible ones alone, predict the pixels of the hidden ones.

    Masks are drawn anew for each call, in evaluation mode too: give `noise` or `bool_masked_pos` for fixed ones.

    GRN's statistics are those of one view, as in the paper and as the released classifiers compute them. The official
    pre-training script takes them over all visible cells of a batch on a device at once, so that there an image's
    features depend on its batch: see "Differences from the official pre-training" in docs/paper.md.
    """

    config_class = ConvNextV2FCMAEConfig
    config: ConvNextV2FCMAEConfig
    accepts_loss_kwargs = False

    def __init__(self, config: ConvNextV2FCMAEConfig):
        super().__init__(config)
        self.convnextv2 = ConvNextV2Model(self.config, add_pooling_layer=False)
        self.decoder = ConvNextV2FCMAEDecoder(self.config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ConvNextV2FCMAEDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """Images `(B, num_channels, H, W)` as cells `(B, L, P * P * num_channels)`."""
        return patchify(pixel_values, self.config.cell_size)

    def unpatchify(self, logits: Tensor, original_image_size: tuple[int, int] | None = None) -> Tensor:
        """Cells `(B, L, P * P * num_channels)` as images of `original_image_size` (height, width).

        Default: `config.image_size`.
        """
        height, width = height_and_width(original_image_size or self.config.image_size)
        return unpatchify(logits, self.config.cell_size, height, width)

    def random_masking(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """`masked (K * B, L)` and `ids_restore (B, L)`: the cells of least `noise (B, L)` are the first set."""
        return random_masking(noise, self.config.num_visible_sets, self._mask_ratio)

    def forward_encoder(
        self, pixel_values: Tensor, visible: VisibleCells, grid: tuple[int, int], output_hidden_states: bool = False
    ) -> EncodedCells:
        """Encode the visible cells of images `(B, num_channels, height, width)` on their `grid` (h, w) of cells."""
        cells, images = self._locate(visible, grid), None
        if output_hidden_states or self.decoder.mimics:
            images = self._locate(in_whole_images(visible, pixel_values.shape[0]), grid, with_halo=False)
        features = self.convnextv2.embeddings(take_cells(pixel_values, visible, grid))
        if not output_hidden_states:
            maps = self.convnextv2.encoder(features, cells, output_hidden_states=bool(self.config.fusion_stages))
            return EncodedCells(maps, cells, images, hidden_states=None)
        assert images is not None
        places = (images[0], *images)  # the stem's map lies as the first stage's
        hidden_states = self.convnextv2.encoder(features, cells, output_hidden_states=True, images=places)
        maps = tuple(pack(map_, place) for map_, place in zip(hidden_states, places, strict=True))
        return EncodedCells(maps, cells, images, hidden_states)

    def _locate(self, visible: VisibleCells, grid: tuple[int, int], with_halo: bool = True) -> tuple[PackedCells, ...]:
        """Where the visible cells lie at each stage."""
        sides = [2**stage for stage in reversed(range(len(self.config.depths)))]  # 8, 4, 2, 1 positions of a cell
        return tuple(locate_cells(visible, grid, side, with_halo=with_halo) for side in sides)

    def forward_loss(self, pixel_values: Tensor, logits: Tensor, masked: Tensor) -> Tensor:
        """Mean squared error on hidden cells, averaged over a cell's pixels and then over the cells of all views."""
        cells = self.patchify(pixel_values.to(at_least_float32(pixel_values.dtype)))
        errors = pixel_errors(logits, cells, self.config.norm_pix_loss)
        return masked_mean(errors, masked)

    def forward_feature_loss(self, feature_logits: Tensor, feature_targets: Tensor, masked: Tensor) -> Tensor:
        """Mean error of the features of hidden cells, or of visible ones, as `feature_target_on` says."""
        return feature_loss(feature_logits, feature_targets, masked, self.config)

    @can_return_tuple
    @refuse_unknown_keywords(strict=True)
    def forward(
        self,
        pixel_values: Tensor | None = None,
        noise: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        feature_targets: Tensor | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        return_loss: bool = True,
        **kwargs: Any,
    ) -> ConvNextV2ForPreTrainingOutput:
        """Images `(B, num_channels, height, width)`, sides multiples of the cell, to the loss of their reconstruction.

        Args:
            noise: `(B, L)`, decides which cells are hidden, or in which set each is; drawn uniformly, anew for each
                call, if neither it nor a mask is given.
            bool_masked_pos: `(B, L)` or `(B, h, w)` bool, True = hidden, the same number in each image. For one
                visible set only.
            feature_targets: `(B, F, h, w)`, a teacher's features of each cell, where `config.target_type` asks for
                features; without them the loss is None.
            output_hidden_states: True for all maps, or the numbers of some, of which the stem's is 0.
            return_loss: False leaves the losses out.

        Raises:
            ValueError: for a wrong shape, both `noise` and `bool_masked_pos`, a mask without a visible or a hidden
                cell, or fewer cells than sets.
            TypeError: for a keyword that is unknown, for it might have been a mask.
        """
        if pixel_values is None:
            raise ValueError("`pixel_values` (=None) must be a tensor (batch, channels, height, width).")
        mask = self._draw_mask(pixel_values, noise, bool_masked_pos)
        asked = self._asked_for_maps(output_hidden_states)
        encoded = self.forward_encoder(pixel_values, mask.visible, mask.grid, output_hidden_states=bool(asked))
        logits, features = self.decoder(encoded.maps, encoded.cells, encoded.images, mask.masked)
        losses = self._losses(pixel_values, logits, features, feature_targets, mask) if return_loss else {}
        return ConvNextV2ForPreTrainingOutput(
            logits=logits,
            mask=mask.masked.to(pixel_values.dtype),
            ids_restore=mask.ids_restore,
            hidden_states=self._select_maps(encoded.hidden_states, asked),
            feature_logits=features,
            **losses,
        )

    def _losses(
        self,
        pixel_values: Tensor,
        logits: Tensor | None,
        features: Tensor | None,
        feature_targets: Tensor | None,
        mask: CellMask,
    ) -> dict[str, Tensor | None]:
        """The loss, and its parts where features are predicted."""
        check_feature_targets(feature_targets, self.config, pixel_values.shape[0], mask.grid)
        pixel_loss = None
        if logits is not None:
            pixel_loss = self.forward_loss(pixel_values, logits, mask.masked)
        if features is None:
            return {"loss": pixel_loss}
        if feature_targets is None:
            return {"pixel_loss": pixel_loss}
        feature_loss = self.forward_feature_loss(features, feature_targets, mask.masked)
        loss = self.config.feature_loss_weight * feature_loss
        if pixel_loss is not None:
            loss = loss + pixel_loss
        return {"loss": loss, "pixel_loss": pixel_loss, "feature_loss": feature_loss}

    @torch.no_grad()
    def reconstruct(self, pixel_values: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
        """Images `(K * B, C, H, W)` with the hidden cells predicted and the visible ones pasted.

        With `norm_pix_loss` a prediction is de-normalised by the mean and deviation of the cell it stands for, as the
        MAE family shows it. The result is in the space of `pixel_values`: undo the image processor's statistics to see
        it.

        Raises:
            ValueError: for a model that predicts features alone.
        """
        if self.decoder.pred is None:
            raise ValueError("`target_type` (='feature') must be one with pixels for pixels to be painted.")
        num_views = logits.shape[0] // pixel_values.shape[0]  # of an image
        cells = self.patchify(pixel_values.to(at_least_float32(pixel_values.dtype))).repeat(num_views, 1, 1)
        painted = paint_cells(cells, logits, mask.bool(), self.config.norm_pix_loss)
        height, width = pixel_values.shape[2:]
        return self.unpatchify(painted, (height, width))

    def _grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """Rows and columns of cells of an image."""
        side = self.config.cell_size
        check_pixel_values(pixel_values, self.config.num_channels, side)
        height, width = pixel_values.shape[-2:]
        if height % side or width % side:
            raise ValueError(
                f"`pixel_values` (of shape {tuple(pixel_values.shape)}) must have sides that are multiples of {side}, "
                "the size of a cell. Resize the images or use another `patch_size`."
            )
        return height // side, width // side

    @property
    def _mask_ratio(self) -> float:
        """The share of hidden cells, which the configuration has resolved."""
        assert self.config.mask_ratio is not None
        return self.config.mask_ratio

    def _draw_mask(self, pixel_values: Tensor, noise: Tensor | None, bool_masked_pos: Tensor | None) -> CellMask:
        """The mask that a caller gives, or the one that noise decides: a caller's, or drawn here."""
        grid, num_sets = self._grid(pixel_values), self.config.num_visible_sets
        batch, device = pixel_values.shape[0], pixel_values.device
        if bool_masked_pos is not None:
            if noise is not None:
                raise ValueError("`noise` and `bool_masked_pos` must not be given together: each of them is the mask.")
            if num_sets > 1:
                raise ValueError(
                    f"`bool_masked_pos` must be None with `num_visible_sets` (={num_sets}), whose sets share out all "
                    "cells. Give `noise`, or load the model with `num_visible_sets=1`."
                )
            return given_mask(bool_masked_pos.to(device), batch, grid)
        shape = (batch, grid[0] * grid[1])
        if noise is None:
            noise = torch.rand(shape, device=device)
        if noise.shape != shape:
            raise ValueError(
                f"`noise` (of shape {tuple(noise.shape)}) must be of shape {shape}, a number for each cell."
            )
        masked, ids_restore = self.random_masking(noise)
        return drawn_mask(masked, ids_restore, grid, num_sets, self._mask_ratio)


class ConvNextV2FCMAEModel(ConvNextV2Model):
    """The encoder of an FCMAE folder under its own configuration: what `AutoModel` returns for one.

    All cells are visible. The pooled features pass through a LayerNorm that pre-training does not train.
    """

    config_class = ConvNextV2FCMAEConfig
    config: ConvNextV2FCMAEConfig
    _keys_to_ignore_on_load_missing = [r"^layernorm\."]  # noqa: RUF012
