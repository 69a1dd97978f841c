"""Layers of ConvMAE, from the smallest up (arXiv 2205.03892, section 3; names in blocks are the official code's).

The same blocks compute dense images and packed visible cells (`cells`, see packing.py): N images of a dense map, or
visible cells of all images; C channels, H W height and width at the current stride (k k in a cell). Between stages a
map is (N, C, H, W) in channels-last memory. In the transformer a token is a row, (C,). A view is an image, a window of
one, or a set of its visible cells. Views of one size are (B, T, C), T tokens of each; packed ones may differ in size,
and are R rows, (R, C), beside `groups` that say which rows are of which view.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_convmae import ConvMAEConfig
from .depthwise import depthwise_conv
from .downsampling import patch_conv
from .groups import Groups, join_rows, split_rows
from .layers import ConvNextV2DropPath, ConvNextV2LayerNorm, PixelEmbeddings, call
from .packing import PackedCells, to_rows
from .position_embeddings import PositionEmbeddings
from .window_attention import RelativePositionBias, Windows, locate_windows

KERNEL_SIZE = 5
CONV_NORM_EPS = 1e-5


def drop_path_layer(rate: float) -> nn.Module:
    """Stochastic depth, where there is any."""
    return ConvNextV2DropPath(rate) if rate > 0 else nn.Identity()


class ConvMAEMLP(nn.Module):
    """Linear, activation, linear, on each row."""

    def __init__(self, config: ConvMAEConfig, dim: int):
        super().__init__()
        hidden_dim = int(dim * config.mlp_ratio)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class ConvMAEConvLayer(GradientCheckpointingLayer):
    """One block of convolutions: 1x1, depthwise 5x5 of what is visible, 1x1; then an MLP; both with a residual."""

    def __init__(self, config: ConvMAEConfig, dim: int, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=CONV_NORM_EPS)
        self.conv1 = nn.Linear(dim, dim)
        self.attn = nn.Conv2d(dim, dim, kernel_size=KERNEL_SIZE, padding=KERNEL_SIZE // 2, groups=dim)
        self.conv2 = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=CONV_NORM_EPS)
        self.mlp = ConvMAEMLP(config, dim)
        self.drop_path = drop_path_layer(drop_path)
        for linear in (self.conv1, self.conv2, self.mlp.fc1, self.mlp.fc2):
            linear.is_convolution = True  # type: ignore[assignment]  # of 1x1, and initialised as one

    def forward(self, features: Tensor, cells: PackedCells | None = None) -> Tensor:
        """`(N, C, H, W)` to the same shape."""
        groups = None if cells is None else cells.groups
        x = features.permute(0, 2, 3, 1)  # (N, H, W, C)
        y = self.conv1(self.norm1(x)).permute(0, 3, 1, 2)
        y = self.conv2(depthwise_conv(self.attn, y, cells).permute(0, 2, 3, 1))
        x = x + call(self.drop_path, y, groups)
        x = x + call(self.drop_path, self.mlp(self.norm2(x)), groups)
        return x.permute(0, 3, 1, 2)


def eager_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """`scaled_dot_product_attention` of `(B, heads, T, C / heads)` in single steps."""
    logits = query * query.shape[-1] ** -0.5 @ key.mT
    return (logits if attn_mask is None else logits + attn_mask).softmax(dim=-1) @ value


# By `attn_implementation`.
ATTENTION: dict[str, Callable[..., Tensor]] = {"sdpa": F.scaled_dot_product_attention, "eager": eager_attention}


def check_attention(name: str) -> None:
    """Raise a `ValueError` unless attention is implemented under this name."""
    if name not in ATTENTION:
        raise ValueError(f"`attn_implementation` (={name!r}) must be one of {', '.join(ATTENTION)} for a ConvMAE.")


class ConvMAEAttention(nn.Module):
    """Self-attention among the tokens of a view, as `attn_implementation` says: PyTorch's own, or written out."""

    def __init__(self, config: ConvMAEConfig, dim: int, num_heads: int):
        super().__init__()
        self.config, self.num_heads = config, num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, groups: Groups | None = None, mask: Tensor | None = None) -> Tensor:
        """Views `(B, T, C)`, or with `groups` rows `(R, C)`, to the same shape.

        `mask` is added to the logits of all views, or of each: `(heads, T, T)` or `(B, heads, T, T)`.
        """
        x = self.qkv(x)
        if groups is None:
            return self.proj(self._attend(x, mask))
        return self.proj(join_rows([self._attend(part, mask) for part in split_rows(x, groups)]))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`(B, T, 3 * C)` to `(B, T, C)`; query, key and value are `(B, heads, T, C / heads)`."""
        query, key, value = x.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        name = self.config._attn_implementation or "sdpa"  # also set after the model has been created
        check_attention(name)
        return ATTENTION[name](query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


class ConvMAELayer(GradientCheckpointingLayer):
    """One block of the transformer, as in ViT: attention, then an MLP, both with a LayerNorm and a residual."""

    def __init__(self, config: ConvMAEConfig, dim: int, num_heads: int, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attn = ConvMAEAttention(config, dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = ConvMAEMLP(config, dim)
        self.drop_path = drop_path_layer(drop_path)

    def forward(self, x: Tensor, groups: Groups | None = None, mask: Tensor | None = None) -> Tensor:
        """Views `(B, T, C)`, or with `groups` rows `(R, C)`, to the same shape; `mask` as in attention."""
        x = x + call(self.drop_path, call(self.attn, self.norm1(x), groups, mask), groups)
        return x + call(self.drop_path, self.mlp(self.norm2(x)), groups)


class ConvMAEEmbeddings(PixelEmbeddings):
    """The stem: a convolution over patches of pixels, a LayerNorm and an activation."""

    def __init__(self, config: ConvMAEConfig):
        dim = config.hidden_sizes[0]
        super().__init__(config.num_channels, dim, config.patch_sides, config.target_size, eps=CONV_NORM_EPS)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`(N, num_channels, height, width)` to `(N, C, H, W)`, H = height / patch size rounded down."""
        return self.act(super().forward(pixel_values))


class ConvMAEPatchEmbeddings(nn.Module):
    """Downsampling before the second and the third stage: like the stem, of a map."""

    def __init__(self, config: ConvMAEConfig, index: int):
        super().__init__()
        side, (in_channels, dim) = config.patch_sizes[index], config.hidden_sizes[index - 1 : index + 1]
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=side, stride=side)
        self.norm = ConvNextV2LayerNorm(dim, eps=CONV_NORM_EPS)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, features: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C', H', W')`."""
        return self.act(self.norm(patch_conv(self.proj, features)))


class ConvMAEConvStage(nn.Module):
    """Downsampling (but in the first stage) and a block of convolutions for each of `drop_path_rates`."""

    def __init__(self, config: ConvMAEConfig, index: int, drop_path_rates: list[float]):
        super().__init__()
        self.patch_embed = ConvMAEPatchEmbeddings(config, index) if index > 0 else nn.Identity()
        dim = config.hidden_sizes[index]
        self.layers = nn.ModuleList(ConvMAEConvLayer(config, dim, rate) for rate in drop_path_rates)

    def forward(self, features: Tensor, cells: PackedCells | None = None) -> Tensor:
        """`(N, C, H, W)` to `(N, C', H', W')`; `cells` where they are packed, after downsampling."""
        features = self.patch_embed(features)
        for layer in self.layers:
            features = call(layer, features, cells)
        return features


class ConvMAETransformerStage(nn.Module):
    """Downsampling, position embeddings and a block of the transformer for each of `drop_path_rates`.

    In whole images the blocks of `config.window_block_indices` attend within windows. Biases by relative position are
    one table for all of these, and one for all other blocks.
    """

    def __init__(self, config: ConvMAEConfig, drop_path_rates: list[float], learned_positions: bool):
        super().__init__()
        dim, num_heads = config.hidden_sizes[-1], config.num_attention_heads
        self.patch_embed = ConvMAEPatchEmbeddings(config, len(config.hidden_sizes) - 1)
        self.patch_embed.proj.is_linear = True  # type: ignore[assignment]  # of a patch, and initialised as one
        self.proj = nn.Linear(dim, dim)
        self.position_embeddings = PositionEmbeddings(config.image_size, config.target_size, dim, learned_positions)
        self.layers = nn.ModuleList(ConvMAELayer(config, dim, num_heads, rate) for rate in drop_path_rates)
        self.window_size, in_windows = config.window_size or 0, config.window_block_indices or ()
        self.is_windowed = [index in in_windows for index in range(len(self.layers))]
        has_windows, has_images = any(self.is_windowed), not all(self.is_windowed)
        window, grid = (self.window_size, self.window_size), self.position_embeddings.grid
        has_biases = config.use_relative_position_bias
        self.windowed_bias = RelativePositionBias(window, num_heads) if has_biases and has_windows else None
        self.global_bias = RelativePositionBias(grid, num_heads) if has_biases and has_images else None

    def forward(self, features: Tensor, cells: PackedCells | None = None) -> Tensor:
        """`(N, C, H, W)` to `(N, C', H', W')`; `cells` where they are packed, after downsampling."""
        features = self.patch_embed(features)
        num_maps, dim, height, width = features.shape
        x = self.proj(to_rows(features))
        if cells is None:
            x = x.view(num_maps, height * width, dim) + self.position_embeddings(height, width)
            x = self._transform(x, height, width)
        else:
            groups, (_, rows, columns) = cells.row_groups, cells.canvas
            table = self.position_embeddings(rows, columns)[0]
            x = x + table.index_select(0, cells.to_canvas % (rows * columns))
            for layer in self.layers:
                x = call(layer, x, groups)
        return x.view(num_maps, height, width, dim).permute(0, 3, 1, 2)

    def _transform(self, x: Tensor, height: int, width: int) -> Tensor:
        """The blocks on whole images, `(N, H * W, C)`."""
        bias = None if self.global_bias is None else self.global_bias(height, width).to(x.dtype)
        if not any(self.is_windowed):
            for layer in self.layers:
                x = call(layer, x, None, bias)
            return x
        windows = locate_windows(self.window_size, x.shape[0], height, width, x.device)
        mask = self._mask_of(windows, x)
        is_split = False
        for layer, is_windowed in zip(self.layers, self.is_windowed, strict=True):
            if is_windowed != is_split:
                x = windows.split(x) if is_windowed else windows.join(x)
                is_split = is_windowed
            x = call(layer, x, None, mask if is_windowed else bias)
        return windows.join(x) if is_split else x

    def _mask_of(self, windows: Windows, like: Tensor) -> Tensor | None:
        """What is added to the logits in windows."""
        side, bias = self.window_size, None
        if self.windowed_bias is not None:
            bias = self.windowed_bias(side, side).to(like.dtype)
        return windows.mask(bias, like)

    def set_image_size(self, image_size: int | Sequence[int]) -> None:
        """Make the biases of whole images those of images of another size, as the position embeddings."""
        if self.global_bias is not None:
            self.global_bias.resize(self.position_embeddings.grid_of(image_size))
