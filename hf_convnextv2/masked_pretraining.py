"""Masked pre-training as all families have it: hide most cells, encode the visible ones alone, predict the hidden ones.

B batch, L cells of an image (h * w of them), K sets that share them out, each of which a view of the image shows to the
encoder (FastConvMAE's complementary masking), N visible cells of all views, C channels. With K = 1 the one view of an
image shows some of its cells, and the rest is in no view. What is predicted are patches: T of an image, P pixels a
side. In FCMAE a patch is a cell; in ConvMAE a cell may have several. `masked` is (K * B, T) bool, True = hidden.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.generic import ModelOutput, can_return_tuple

from .cell_mask import CellMask, divide_cells, drawn_mask, given_mask, random_masking
from .feature_targets import check_feature_targets, feature_loss
from .input_checks import check_pixel_values, refuse_unknown_keywords
from .masking import check_images, check_patches, masked_mean, patchify, unpatchify
from .packing import PackedCells, VisibleCells, in_whole_images, pack, take_cells, unpack
from .pixel_targets import paint_cells, pixel_errors
from .precision import at_least_float32
from .prediction_heads import PredictionHeads
from .pretrained_model import ImageEncoderPreTrainedModel
from .shared_config import height_and_width


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
class MaskedAutoencoderOutput(ModelOutput):
    """Output of masked pre-training; each family's own says what the tensors are."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    feature_logits: Tensor | None = None
    pixel_loss: Tensor | None = None
    feature_loss: Tensor | None = None
    pooled_features: Tensor | None = None


class MaskedPreTrainingModel(ImageEncoderPreTrainedModel):
    """An encoder that is the base model, and a `decoder`; a family says where cells lie at each of its stages."""

    decoder: Any
    output_class: ClassVar[type[MaskedAutoencoderOutput]] = MaskedAutoencoderOutput
    accepts_loss_kwargs = False

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        self._check_pixels(self.config.num_channels)

    def post_init(self) -> None:
        """As in Transformers, but weights of a decoder that this one has no place for are reported."""
        super().post_init()
        self._keys_to_ignore_on_load_unexpected = set()  # the encoder's, which has no decoder

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PredictionHeads):  # the base of the decoders
            init.normal_(module.mask_token, std=self.config.initializer_range)  # type: ignore[arg-type]

    def set_num_channels(self, num_channels: int) -> None:
        """As of all models; raises a `ValueError` too where `norm_pix_loss` could not be computed any more."""
        self._check_pixels(num_channels)
        super().set_num_channels(num_channels)

    def _check_pixels(self, num_channels: int) -> None:
        """Raise if patches of so many channels are to be normalised by their deviation, and have none."""
        config = self.config
        if config.norm_pix_loss and "pixel" in config.target_type and config.target_size == num_channels == 1:
            raise ValueError(
                f"`norm_pix_loss` (={config.norm_pix_loss}) must be False with patches of one number: one pixel of one "
                "channel has no deviation."
            )

    def _locate(self, visible: VisibleCells, grid: tuple[int, int], with_halo: bool = True) -> tuple[PackedCells, ...]:
        """Where the visible cells lie at each stage."""
        raise NotImplementedError

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """Images `(B, num_channels, H, W)` as patches `(B, T, P * P * num_channels)`.

        Raises:
            ValueError: for another number of channels, and for sides that are no multiples of a patch.
        """
        check_images(pixel_values, self.config.target_size, self.config.num_channels)
        return self._patches(pixel_values)

    def unpatchify(self, logits: Tensor, original_image_size: tuple[int, int] | None = None) -> Tensor:
        """Patches `(B, T, P * P * num_channels)` as images of `original_image_size` (height, width).

        Default: `config.image_size`.

        Raises:
            ValueError: if images of this size have another number of patches, or patches another number of pixels.
        """
        height, width = height_and_width(original_image_size or self.config.image_size)
        check_patches(logits, self.config.target_size, self.config.num_channels, height, width)
        return unpatchify(logits, self.config.target_size, height, width)

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
        features = self.base_model.embeddings(take_cells(pixel_values, visible, grid))
        if not output_hidden_states:
            maps = self.base_model.encoder(features, cells, output_hidden_states=bool(self.config.fusion_stages))
            return EncodedCells(maps, cells, images, hidden_states=None)
        assert images is not None
        places = (images[0], *images)  # the stem's map lies as the first stage's
        hidden_states = self.base_model.encoder(features, cells, output_hidden_states=True, images=places)
        maps = tuple(pack(map_, place) for map_, place in zip(hidden_states, places, strict=True))
        return EncodedCells(maps, cells, images, hidden_states)

    def forward_loss(self, pixel_values: Tensor, logits: Tensor, masked: Tensor) -> Tensor:
        """Mean squared error on hidden patches: over the pixels of a patch, then over the patches of all views."""
        cells = self._patches(pixel_values.to(at_least_float32(pixel_values.dtype)))
        errors = pixel_errors(logits, cells, self.config.norm_pix_loss)
        return masked_mean(errors, masked)

    def forward_feature_loss(self, feature_logits: Tensor, feature_targets: Tensor, masked: Tensor) -> Tensor:
        """Mean error of the features of hidden patches, or of visible ones, as `feature_target_on` says."""
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
        pooled_cells: str | None = None,
        **kwargs: Any,
    ) -> MaskedAutoencoderOutput:
        """Images `(B, num_channels, height, width)`, sides multiples of the cell, to the loss of their reconstruction.

        Args:
            noise: `(B, L)`, decides which cells are hidden, or in which set each is; drawn uniformly, anew for each
                call, if neither it nor a mask is given.
            bool_masked_pos: `(B, L)` or `(B, h, w)` bool, True = hidden, the same number in each image. For one
                visible set only.
            feature_targets: `(B, F, h, w)`, a teacher's features of each patch, where `config.target_type` asks for
                features; without them the loss is None.
            output_hidden_states: True for all maps, or the numbers of some, of which the stem's is 0.
            return_loss: False leaves the losses out.
            pooled_cells: "visible" returns the mean of the last stage's features of the cells that each view sees,
                `pooled_features (K * B, C)`; "all" that of whole images `(B, C)`, which are encoded a second time.

        Raises:
            ValueError: for a wrong shape, both `noise` and `bool_masked_pos`, a mask without a visible or a hidden
                cell, or fewer cells than sets.
            TypeError: for a keyword that is unknown, for it might have been a mask.
        """
        if pixel_values is None:
            raise ValueError("`pixel_values` (=None) must be a tensor (batch, channels, height, width).")
        mask = self._draw_mask(pixel_values, noise, bool_masked_pos)
        masked = self._masked_patches(mask)
        asked = self._asked_for_maps(output_hidden_states)
        encoded = self.forward_encoder(pixel_values, mask.visible, mask.grid, output_hidden_states=bool(asked))
        logits, features = self.decoder(encoded.maps, encoded.cells, encoded.images, masked)
        losses = self._losses(pixel_values, logits, features, feature_targets, masked) if return_loss else {}
        pooled = None if pooled_cells is None else self._pool(pooled_cells, pixel_values, encoded, masked)
        return self.output_class(
            logits=logits,
            mask=masked.to(pixel_values.dtype),
            ids_restore=mask.ids_restore,
            hidden_states=self._select_maps(encoded.hidden_states, asked),
            feature_logits=features,
            pooled_features=pooled,
            **losses,
        )

    def _pool(self, cells: str, pixel_values: Tensor, encoded: EncodedCells, masked: Tensor) -> Tensor:
        """The mean of the last stage's features over the visible cells of each view, or over all cells of images."""
        if cells not in ("visible", "all"):
            raise ValueError(f"`pooled_cells` (={cells!r}) must be 'visible', 'all' or None.")
        dtype = at_least_float32(encoded.maps[-1].dtype)
        if cells == "all":
            return self.base_model(pixel_values).last_hidden_state.mean((2, 3), dtype=dtype)
        visible = (~masked).mean(dim=1, keepdim=True, dtype=dtype)  # a share of the map, which is 0 elsewhere
        return unpack(encoded.maps[-1], encoded.cells[-1]).mean((2, 3), dtype=dtype) / visible

    def _losses(
        self,
        pixel_values: Tensor,
        logits: Tensor | None,
        features: Tensor | None,
        feature_targets: Tensor | None,
        masked: Tensor,
    ) -> dict[str, Tensor | None]:
        """The loss, and its parts where features are predicted."""
        side, (height, width) = self.config.target_size, pixel_values.shape[2:]
        grid = (height // side, width // side)
        check_feature_targets(feature_targets, self.config, pixel_values.shape[0], grid)
        pixel_loss = None
        if logits is not None:
            pixel_loss = self.forward_loss(pixel_values, logits, masked)
        if features is None:
            return {"loss": pixel_loss}
        if feature_targets is None:
            return {"pixel_loss": pixel_loss}
        feature_loss = self.forward_feature_loss(features, feature_targets, masked)
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
        if pixel_values.shape[0] == 0:
            raise ValueError(
                f"`pixel_values` (of shape {tuple(pixel_values.shape)}) must hold an image in pre-training."
            )
        height, width = pixel_values.shape[-2:]
        if height % side or width % side:
            raise ValueError(
                f"`pixel_values` (of shape {tuple(pixel_values.shape)}) must have sides that are multiples of {side}, "
                "the size of a cell. Resize the images, or change `patch_size` (FCMAE), or `cell_size` and "
                "`patch_sizes` (ConvMAE)."
            )
        return height // side, width // side

    def _masked_patches(self, mask: CellMask) -> Tensor:
        """`(K * B, T)`: the patches of the hidden cells."""
        return divide_cells(mask.masked, mask.grid, self.config.cell_size // self.config.target_size)

    def _patches(self, pixel_values: Tensor) -> Tensor:
        """As `patchify`, of images that `forward` has checked."""
        return patchify(pixel_values, self.config.target_size)

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
