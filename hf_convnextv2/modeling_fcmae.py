"""FCMAE: a fully convolutional masked autoencoder around ConvNeXt V2 (arXiv 2301.00808, section 3).

B batch, L cells of an image (h * w of them), V visible ones, P side of a cell in pixels, C channels,
D decoder width. `masked` is (B, L) bool, True = hidden from the encoder.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.generic import ModelOutput, can_return_tuple

from .channels import adapt_output_channels
from .configuration_convnextv2 import ConvNextV2FCMAEConfig
from .layers import ConvNextV2Layer, check_pixel_values
from .masking import count_visible, patchify, rank_cells, unpatchify, visible_ids
from .modeling_convnextv2 import ConvNextV2Model, ConvNextV2PreTrainedModel
from .packing import PackedCells, locate_cells, take_cells, unpack


@dataclass
class ConvNextV2ForPreTrainingOutput(ModelOutput):
    """Output of `ConvNextV2ForPreTraining`.

    loss: scalar, mean squared error on hidden cells.
    logits: `(B, L, P * P * num_channels)`, predicted cells (row, column, channel), normalised per cell with
        `norm_pix_loss`.
    mask: `(B, L)` float, 1 = hidden, 0 = visible.
    ids_restore: `(B, L)` int64, rank of each cell in the order in which cells are kept.
    hidden_states: maps `(B, C, H, W)` after the stem and after each stage, zeros in hidden cells.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class ConvNextV2FCMAEDecoder(nn.Module):
    """Project the visible cells, fill the holes with a mask token, mix with ConvNeXt V2 blocks, predict pixels."""

    def __init__(self, config: ConvNextV2FCMAEConfig):
        super().__init__()
        dim = config.decoder_hidden_size
        self.num_channels = config.num_channels
        self.proj = nn.Linear(config.hidden_sizes[-1], dim)
        self.mask_token = nn.Parameter(torch.zeros(1, dim, 1, 1))  # 4-D as in the official checkpoints
        self.layers = nn.ModuleList(ConvNextV2Layer(config, dim) for _ in range(config.decoder_num_hidden_layers))
        self.pred = nn.Linear(dim, config.cell_size**2 * config.num_channels)

    def forward(self, features: Tensor, cells: PackedCells, masked: Tensor) -> Tensor:
        """Packed features `(B * V, C, 1, 1)` of the last stage to predicted cells `(B, L, P * P * num_channels)`."""
        x = unpack(self.proj(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), cells)  # (B, D, h, w)
        x = torch.where(masked.view(-1, 1, *x.shape[2:]), self.mask_token.to(x.dtype), x)
        for layer in self.layers:
            x = layer(x)
        return self.pred(x.permute(0, 2, 3, 1)).flatten(1, 2)

    def set_num_channels(self, num_channels: int) -> None:
        """Adapt the prediction to images of `num_channels` channels."""
        for name, parameter in list(self.pred.named_parameters()):
            adapted = adapt_output_channels(parameter.detach(), self.num_channels, num_channels)
            setattr(self.pred, name, nn.Parameter(adapted))
        self.pred.out_features = len(self.pred.weight)
        self.num_channels = num_channels


class ConvNextV2ForPreTraining(ConvNextV2PreTrainedModel):
    """FCMAE: hide most cells of an image, encode the visible ones alone, predict the pixels of the hidden ones."""

    config_class = ConvNextV2FCMAEConfig
    config: ConvNextV2FCMAEConfig

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
        """`masked` and `ids_restore`, `(B, L)` each: the cells of least `noise (B, L)` stay visible."""
        ids_restore = rank_cells(noise)
        return ids_restore >= count_visible(noise.shape[1], self._mask_ratio), ids_restore

    def forward_encoder(
        self, pixel_values: Tensor, masked: Tensor, num_visible: int, output_hidden_states: bool = False
    ) -> tuple[tuple[Tensor, ...], tuple[PackedCells, ...]]:
        """Maps of the visible cells, packed as `(B * V, C, k, k)`, and where those lie at each stage.

        `num_visible` is V: counting it in `masked` would wait for the device.
        """
        grid = self._grid(pixel_values)
        ids = visible_ids(masked, num_visible)
        sides = [2**stage for stage in reversed(range(len(self.config.depths)))]  # 8, 4, 2, 1 positions of a cell
        cells = tuple(locate_cells(ids, grid, side) for side in sides)
        features = self.convnextv2.embeddings(take_cells(pixel_values, ids, grid))
        return self.convnextv2.encoder(features, cells, output_hidden_states), cells

    def forward_loss(self, pixel_values: Tensor, logits: Tensor, masked: Tensor) -> Tensor:
        """Mean squared error on hidden cells, averaged over a cell's pixels and then over the cells."""
        target = self.patchify(pixel_values.float())
        if self.config.norm_pix_loss:
            centred, _, deviation = _normalisation(target)
            target = centred / deviation
        error = (logits.float() - target).square().mean(dim=-1)  # (B, L)
        return (error * masked).sum() / masked.sum()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        noise: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> ConvNextV2ForPreTrainingOutput:
        """Images `(B, num_channels, height, width)`, sides multiples of the cell, to the loss of their reconstruction.

        Args:
            noise: `(B, L)`, decides which cells are hidden; drawn uniformly if neither it nor a mask is given.
            bool_masked_pos: `(B, L)` or `(B, h, w)` bool, True = hidden, the same number in each image.

        Raises:
            ValueError: for a wrong shape, both `noise` and `bool_masked_pos`, or a mask without a visible or a hidden
                cell.
        """
        if pixel_values is None:
            raise ValueError("`pixel_values` (=None) must be a tensor (batch, channels, height, width).")
        masked, ids_restore, num_visible = self._draw_mask(pixel_values, noise, bool_masked_pos)
        keep_maps = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        maps, cells = self.forward_encoder(pixel_values, masked, num_visible, bool(keep_maps))
        logits = self.decoder(maps[-1], cells[-1], masked)
        return ConvNextV2ForPreTrainingOutput(
            loss=self.forward_loss(pixel_values, logits, masked),
            logits=logits,
            mask=masked.to(pixel_values.dtype),
            ids_restore=ids_restore,
            # The stem's map has the positions of the first stage's.
            hidden_states=tuple(map(unpack, maps, (cells[0], *cells))) if keep_maps else None,
        )

    @torch.no_grad()
    def reconstruct(self, pixel_values: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
        """Images `(B, C, H, W)` with the hidden cells predicted and the visible ones pasted.

        With `norm_pix_loss` a prediction is de-normalised by the mean and deviation of the cell it stands for, as the
        MAE family shows it. The result is in the space of `pixel_values`: undo the image processor's statistics to see
        it.
        """
        cells = self.patchify(pixel_values.float())
        predicted = logits.float()
        if self.config.norm_pix_loss:
            _, mean, deviation = _normalisation(cells)
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
    ) -> tuple[Tensor, Tensor, int]:
        """`masked (B, L)`, `ids_restore (B, L)` and V."""
        rows, columns = self._grid(pixel_values)
        shape = (len(pixel_values), rows * columns)
        if bool_masked_pos is not None:
            if noise is not None:
                raise ValueError("`noise` and `bool_masked_pos` must not be given together: each of them is the mask.")
            masked = _check_mask(bool_masked_pos.to(pixel_values.device), shape, (rows, columns))
            return masked, rank_cells(masked.to(torch.uint8)), shape[1] - int(masked[0].sum())
        if noise is None:
            noise = torch.rand(shape, device=pixel_values.device)
        if noise.shape != shape:
            raise ValueError(
                f"`noise` (of shape {tuple(noise.shape)}) must be of shape {shape}, a number for each cell."
            )
        masked, ids_restore = self.random_masking(noise)
        return masked, ids_restore, count_visible(shape[1], self._mask_ratio)


class ConvNextV2FCMAEModel(ConvNextV2Model):
    """The encoder of an FCMAE folder under its own configuration: what `AutoModel` returns for one.

    All cells are visible. The pooled features pass through a LayerNorm that pre-training does not train.
    """

    config_class = ConvNextV2FCMAEConfig
    config: ConvNextV2FCMAEConfig
    _keys_to_ignore_on_load_missing = [r"^layernorm\."]  # noqa: RUF012


def _normalisation(cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cells `(B, L, n)` less their mean, the mean and the deviation (unbiased, as in the official code) `(B, L, 1)`."""
    mean = cells.mean(dim=-1, keepdim=True)
    centred = cells - mean
    # Several times as fast on a CPU as `torch.var`.
    variance = centred.square().sum(dim=-1, keepdim=True) / (cells.shape[-1] - 1)
    return centred, mean, (variance + 1e-6).sqrt()


def _check_mask(masked: Tensor, shape: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The mask as `(B, L)`; raises unless it is bool and hides as many cells of each image."""
    if masked.dtype != torch.bool or tuple(masked.shape) not in (shape, (shape[0], *grid)):
        raise ValueError(
            f"`bool_masked_pos` ({masked.dtype}, of shape {tuple(masked.shape)}) must be bool, of shape {shape} or "
            f"{(shape[0], *grid)}, True where a cell is hidden."
        )
    masked = masked.flatten(1)
    counts = masked.sum(dim=1).tolist()
    if min(counts) != max(counts) or not 0 < counts[0] < shape[1]:
        raise ValueError(
            f"`bool_masked_pos` (hiding {counts} of {shape[1]} cells) must hide the same number of cells in each image "
            "and leave at least one visible and one hidden."
        )
    return masked
