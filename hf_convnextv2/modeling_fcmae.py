"""FCMAE: a fully convolutional masked autoencoder around ConvNeXt V2 (arXiv 2301.00808, section 3).

B batch, L cells of an image (h * w of them), K sets that share them out, each of which a view of the image shows to the
encoder (FastConvMAE's complementary masking), N visible cells of all views, P side of a cell in pixels, C channels.
`masked` is (K * B, L) bool, True = hidden from the encoder. With K = 1, the original FCMAE, the one view of an image
shows some of its cells, and the rest is in no view.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.generic import ModelOutput, can_return_tuple

from .configuration_convnextv2 import ConvNextV2FCMAEConfig
from .fcmae_decoder import ConvNextV2FCMAEDecoder
from .grn import at_least_float32
from .keywords import refuse_unknown_keywords
from .layers import check_pixel_values
from .masking import check_mask, complementary_set_sizes, count_visible, patchify, rank_cells, unpatchify, visible_ids
from .modeling_convnextv2 import ConvNextV2Model, ConvNextV2PreTrainedModel
from .packing import PackedCells, VisibleCells, complementary_views, locate_cells, one_view, pack, take_cells, unpack
from .targets import feature_errors, masked_mean, normalise_cells, pixel_errors


@dataclass
class ConvNextV2ForPreTrainingOutput(ModelOutput):
    """Output of `ConvNextV2ForPreTraining`.

    With K visible sets, row s * B + b of `logits` and `mask` is image b, of which the encoder saw set s.

    loss: scalar, mean squared error on hidden cells of all views.
    logits: `(K * B, L, P * P * num_channels)`, predicted cells (row, column, channel), normalised per cell with
        `norm_pix_loss`.
    mask: `(K * B, L)` float, 1 = hidden, 0 = visible.
    ids_restore: `(B, L)` int64, rank of each cell in the order in which cells are kept; its set is rank * K // L.
    hidden_states: maps `(B, C, H, W)` after the stem and after each stage: zeros in hidden cells with one set, else all
        cells, each as its own set made it.
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
    features depend on its batch: see "Differences from the official pre-training" in docs/training.md.
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
        size = original_image_size or self.config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return unpatchify(logits, self.config.cell_size, height, width)

    def random_masking(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """`masked (K * B, L)` and `ids_restore (B, L)`: the cells of least `noise (B, L)` are the first set."""
        ids_restore = rank_cells(noise)
        num_cells, num_sets = noise.shape[1], self.config.num_visible_sets
        if num_sets == 1:
            return ids_restore >= count_visible(num_cells, self._mask_ratio), ids_restore
        sets = torch.arange(num_sets, device=noise.device)[:, None, None]
        return (ids_restore * num_sets // num_cells != sets).flatten(0, 1), ids_restore

    def forward_encoder(
        self, pixel_values: Tensor, visible: VisibleCells, output_hidden_states: bool = False
    ) -> tuple[tuple[Tensor, ...], tuple[PackedCells, ...]]:
        """Maps of the visible cells, packed as `(N, C, k, k)`, and where those lie at each stage."""
        cells = self._locate(visible, pixel_values)
        features = self.convnextv2.embeddings(take_cells(pixel_values, visible, self._grid(pixel_values)))
        return self.convnextv2.encoder(features, cells, output_hidden_states), cells

    def _forward_encoder_by_maps(
        self, pixel_values: Tensor, visible: VisibleCells
    ) -> tuple[tuple[Tensor, ...], tuple[PackedCells, ...], tuple[Tensor, ...]]:
        """The same with all maps, through maps of whole images `(B, C, H, W)`, which come last."""
        cells, images = self._locate(visible, pixel_values), self._locate_in_images(visible, pixel_values)
        features = self.convnextv2.embeddings(take_cells(pixel_values, visible, self._grid(pixel_values)))
        whole = self.convnextv2.encoder(features, cells, True, images)
        maps = tuple(pack(map_, images[max(index - 1, 0)]) for index, map_ in enumerate(whole))
        return maps, cells, whole

    def _locate(self, visible: VisibleCells, pixel_values: Tensor, with_halo: bool = True) -> tuple[PackedCells, ...]:
        """Where the visible cells lie at each stage."""
        grid = self._grid(pixel_values)
        sides = [2**stage for stage in reversed(range(len(self.config.depths)))]  # 8, 4, 2, 1 positions of a cell
        return tuple(locate_cells(visible, grid, side, with_halo=with_halo) for side in sides)

    def _locate_in_images(self, visible: VisibleCells, pixel_values: Tensor) -> tuple[PackedCells, ...]:
        """Where they lie in maps of whole images, on which the views of an image have their cells side by side."""
        images = visible._replace(views=visible.images, num_views=pixel_values.shape[0])
        return self._locate(images, pixel_values, with_halo=False)

    def forward_loss(self, pixel_values: Tensor, logits: Tensor, masked: Tensor) -> Tensor:
        """Mean squared error on hidden cells, averaged over a cell's pixels and then over the cells of all views."""
        cells = self.patchify(pixel_values.to(at_least_float32(pixel_values.dtype)))
        errors = pixel_errors(logits, cells, self.config.norm_pix_loss)
        return masked_mean(errors, masked)

    def forward_feature_loss(self, feature_logits: Tensor, feature_targets: Tensor, masked: Tensor) -> Tensor:
        """Mean error of the features of hidden cells, or of visible ones, as `feature_target_on` says."""
        errors = feature_errors(feature_logits, feature_targets, self.config.feature_loss)
        if self.config.feature_target_on == "masked":
            return masked_mean(errors, masked)
        return masked_mean(errors, ~masked.unflatten(0, (-1, feature_targets.shape[0])).all(dim=0))

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
        masked, ids_restore, visible = self._draw_mask(pixel_values, noise, bool_masked_pos)
        asked, hidden_states = self._asked_for_maps(output_hidden_states), None
        if asked:
            maps, cells, whole = self._forward_encoder_by_maps(pixel_values, visible)
            hidden_states = self._selected(whole, asked)
        else:
            maps, cells = self.forward_encoder(pixel_values, visible, bool(self.config.fusion_stages))
        logits, features = self.decoder(maps, cells[-1], masked)
        if features is not None and self.decoder.mimics:
            images = self._locate_in_images(visible, pixel_values)[-1]
            features = unpack(features, images).flatten(2).mT  # (B, L, F)
        losses = self._losses(pixel_values, logits, features, feature_targets, masked) if return_loss else {}
        return ConvNextV2ForPreTrainingOutput(
            loss=losses.get("loss"),
            logits=logits,
            mask=masked.to(pixel_values.dtype),
            ids_restore=ids_restore,
            hidden_states=hidden_states,
            feature_logits=features,
            pixel_loss=losses.get("pixel_loss"),
            feature_loss=losses.get("feature_loss"),
        )

    def _losses(
        self,
        pixel_values: Tensor,
        logits: Tensor | None,
        features: Tensor | None,
        feature_targets: Tensor | None,
        masked: Tensor,
    ) -> dict[str, Tensor | None]:
        """The loss, and its parts where features are predicted."""
        if features is None:
            assert logits is not None
            if feature_targets is not None:
                raise ValueError("`feature_targets` must be None with `target_type` (='pixel'): nothing predicts them.")
            return {"loss": self.forward_loss(pixel_values, logits, masked)}
        parts = {} if logits is None else {"pixel_loss": self.forward_loss(pixel_values, logits, masked)}
        if feature_targets is None:
            return {**parts, "loss": None}
        shape = (pixel_values.shape[0], self.config.feature_target_dim, *self._grid(pixel_values))
        if feature_targets.shape != shape:
            raise ValueError(
                f"`feature_targets` (of shape {tuple(feature_targets.shape)}) must be of shape {shape}: "
                "`feature_target_dim` channels for each cell."
            )
        parts["feature_loss"] = self.forward_feature_loss(features, feature_targets, masked)
        loss = self.config.feature_loss_weight * parts["feature_loss"]
        return {**parts, "loss": loss + parts["pixel_loss"] if logits is not None else loss}

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
        cells = self.patchify(pixel_values.to(at_least_float32(pixel_values.dtype))).repeat(
            logits.shape[0] // pixel_values.shape[0], 1, 1
        )
        predicted = logits.to(cells.dtype)
        if self.config.norm_pix_loss:
            _, mean, deviation = normalise_cells(cells)
            predicted = predicted * deviation + mean
        height, width = pixel_values.shape[2:]
        return self.unpatchify(torch.where(mask.bool()[..., None], predicted, cells), (height, width))

    @property
    def _mask_ratio(self) -> float:
        assert self.config.mask_ratio is not None
        return self.config.mask_ratio

    def _grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """Rows and columns of cells of an image."""
        check_pixel_values(pixel_values, self.config.num_channels, self.config.cell_size)
        height, width = pixel_values.shape[-2:]
        if height % self.config.cell_size or width % self.config.cell_size:
            raise ValueError(
                f"`pixel_values` (of shape {tuple(pixel_values.shape)}) must have sides that are multiples of "
                f"{self.config.cell_size}, the size of a cell. Resize the images or use another `patch_size`."
            )
        return height // self.config.cell_size, width // self.config.cell_size

    def _draw_mask(
        self, pixel_values: Tensor, noise: Tensor | None, bool_masked_pos: Tensor | None
    ) -> tuple[Tensor, Tensor, VisibleCells]:
        """`masked (K * B, L)`, `ids_restore (B, L)` and the cells that the views see."""
        rows, columns = self._grid(pixel_values)
        num_sets, shape = self.config.num_visible_sets, (pixel_values.shape[0], rows * columns)
        if bool_masked_pos is not None:
            if noise is not None:
                raise ValueError("`noise` and `bool_masked_pos` must not be given together: each of them is the mask.")
            if num_sets > 1:
                raise ValueError(
                    f"`bool_masked_pos` must be None with `num_visible_sets` (={num_sets}), whose sets share out all "
                    "cells. Give `noise`, or load the model with `num_visible_sets=1`."
                )
            masked = check_mask(bool_masked_pos.to(pixel_values.device), shape, (rows, columns))
            ids = visible_ids(masked, shape[1] - int(masked[0].sum()))
            return masked, rank_cells(masked.to(torch.uint8)), one_view(ids)
        if noise is None:
            noise = torch.rand(shape, device=pixel_values.device)
        if noise.shape != shape:
            raise ValueError(
                f"`noise` (of shape {tuple(noise.shape)}) must be of shape {shape}, a number for each cell."
            )
        masked, ids_restore = self.random_masking(noise)
        if num_sets == 1:
            return masked, ids_restore, one_view(visible_ids(masked, count_visible(shape[1], self._mask_ratio)))
        sizes = complementary_set_sizes(shape[1], num_sets)
        return masked, ids_restore, complementary_views(ids_restore * num_sets // shape[1], sizes)


class ConvNextV2FCMAEModel(ConvNextV2Model):
    """The encoder of an FCMAE folder under its own configuration: what `AutoModel` returns for one.

    All cells are visible. The pooled features pass through a LayerNorm that pre-training does not train.
    """

    config_class = ConvNextV2FCMAEConfig
    config: ConvNextV2FCMAEConfig
    _keys_to_ignore_on_load_missing = [r"^layernorm\."]  # noqa: RUF012
