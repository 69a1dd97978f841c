"""Layers of ConvNeXt V2, from the smallest up (arXiv 2301.00808, sections 2 and 4, appendix A.1).

The same block computes dense images and packed visible cells (`cells`, see packing.py):
N images of a dense map, or visible cells of all images; C channels, H W height and width at the current stride (k k in
a cell); a view is an image, or a set of its visible cells. Between blocks a map is (N, C, H, W) in channels-last
memory; inside, (N, H, W, C).
"""

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN, GELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer

from .channels import adapt_input_channels
from .configuration_convnextv2 import ConvNextV2Config
from .depthwise import depthwise_conv
from .downsampling import patch_conv
from .fast_path import PLAIN_PARAMETERS, has_affine, is_plain, is_transformed
from .fused_mlp import fused_mlp
from .grn import ConvNextV2GRN
from .groups import Groups, count_views, split_views
from .input_checks import check_pixel_values
from .packing import KERNEL_SIZE, PackedCells


def call(module: nn.Module, x: Tensor, *more: PackedCells | Groups | Tensor | None) -> Tensor:
    """`module(x, *more)`, or `module(x)` if all of `more` is None: a module in the place of ours may take x alone.

    `nn.Identity` and `nn.Sequential` do to packed cells what they do to a map.
    """
    if all(value is None for value in more) or type(module) is nn.Identity:
        return module(x)
    if is_plain(module, nn.Sequential):
        for part in module.children():
            x = call(part, x, *more)
        return x
    return module(x, *more)


class ConvNextV2LayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (N, C, H, W)."""

    def __init__(self, dim: int, eps: float = 1e-6):  # the default of Transformers' class; nn.LayerNorm's is 1e-5
        super().__init__(dim, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextV2DropPath(nn.Module):
    """Drop the residual branch of whole views (arXiv 1603.09382)."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor, groups: Groups | None = None) -> Tensor:
        """`x (N, ...)`; `groups` says of which views the N are: each of its own by default."""
        if groups is None:
            groups = ((x.shape[0], 1),)
        factor = self.draw(count_views(groups), x)
        if factor is None:
            return x
        parts = zip(split_views(factor, groups), groups, strict=True)
        repeated = [part.repeat_interleave(size) for part, (_, size) in parts]
        factor = torch.cat(repeated) if len(repeated) > 1 else repeated[0]
        return x * factor.view(-1, *[1] * (x.ndim - 1))

    def draw(self, num_views: int, like: Tensor) -> Tensor | None:
        """The factor `(num_views,)` of each view's branch, 0 or 1 / keep probability; None where none is dropped."""
        if not self.training or self.drop_prob == 0:
            return None
        keep_prob = 1 - self.drop_prob
        return torch.bernoulli(torch.empty(num_views, device=like.device, dtype=like.dtype), keep_prob) / keep_prob

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class ConvNextV2Layer(GradientCheckpointingLayer):
    """One block: depthwise 7x7 convolution, LayerNorm, 1x1 up, GELU, GRN, 1x1 down, residual (paper, Figure 5).

    ConvNeXt V1's has LayerScale, a learned factor on each channel of the branch, and no GRN.
    """

    def __init__(self, config: ConvNextV2Config, dim: int, drop_path: float = 0.0):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=KERNEL_SIZE, padding=KERNEL_SIZE // 2, groups=dim)
        self.layernorm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = ACT2FN[config.hidden_act]
        self.grn = ConvNextV2GRN(4 * dim) if config.use_grn else None
        self.pwconv2 = nn.Linear(4 * dim, dim)
        has_scale, scale = config.has_layer_scale, float(config.layer_scale_init_value)
        self.layer_scale_parameter = nn.Parameter(torch.full((dim,), scale)) if has_scale else None
        self.drop_path = ConvNextV2DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, features: Tensor, cells: PackedCells | None = None) -> Tensor:
        """`(N, C, H, W)` to the same shape."""
        x = depthwise_conv(self.dwconv, features, cells).permute(0, 2, 3, 1)  # (N, H, W, C)
        if features.shape[0] and self._can_fuse():
            return self._fused(x, features.permute(0, 2, 3, 1), cells).permute(0, 3, 1, 2)
        return features + self._branch(x, cells)

    def _branch(self, x: Tensor, cells: PackedCells | None) -> Tensor:
        """What follows the convolution, module by module: `(N, H, W, C)` to `(N, C, H, W)`, without the residual."""
        x = self.act(self.pwconv1(self.layernorm(x)))
        if self.grn is not None:
            x = call(self.grn, x, None if cells is None else cells.row_groups)
        x = self.pwconv2(x)
        if self.layer_scale_parameter is not None:
            x = self.layer_scale_parameter * x
        x = x.permute(0, 3, 1, 2)
        return call(self.drop_path, x, None if cells is None else cells.groups)

    def _fused(self, x: Tensor, features: Tensor, cells: PackedCells | None) -> Tensor:
        """The branch and the residual `features` in one function; all are `(N, H, W, C)`."""
        groups = ((x.shape[0], x.shape[1] * x.shape[2]),) if cells is None else cells.row_groups
        drop_path = self.drop_path
        factor = drop_path.draw(count_views(groups), x) if isinstance(drop_path, ConvNextV2DropPath) else None
        out = fused_mlp(
            x.reshape(-1, x.shape[-1]),
            groups,
            self.pwconv1,
            self.grn,
            self.pwconv2,
            self.layernorm,
            residual=features.reshape(-1, features.shape[-1]),
            factor=factor,
            layer_scale=self.layer_scale_parameter,
            overwrite=is_plain(self.dwconv, nn.Conv2d),  # then nobody else holds its output
        )
        return out.view(x.shape)

    def _can_fuse(self) -> bool:
        """Whether the fused MLP gives what calling the modules would give."""
        kinds = ((self.pwconv1, nn.Linear), (self.pwconv2, nn.Linear), (self.layernorm, nn.LayerNorm))
        if not all(is_plain(module, kind) and has_affine(module) for module, kind in kinds):
            return False
        if self.grn is not None and not is_plain(self.grn, ConvNextV2GRN):
            return False
        if not is_plain(self.act, GELUActivation) or type(self.layer_scale_parameter) not in PLAIN_PARAMETERS:
            return False
        return is_plain(self.drop_path, nn.Identity) or is_plain(self.drop_path, ConvNextV2DropPath)


class PixelEmbeddings(nn.Module):
    """A convolution over patches of pixels and a LayerNorm.

    `least_size` is that of an image in pixels, height and width if they differ.
    """

    def __init__(
        self, num_channels: int, dim: int, patch_sides: tuple[int, int], least_size: int | tuple[int, int], eps: float
    ):
        super().__init__()
        self.num_channels, self.least_size = num_channels, least_size
        self.patch_embeddings = nn.Conv2d(num_channels, dim, kernel_size=patch_sides, stride=patch_sides)
        self.layernorm = ConvNextV2LayerNorm(dim, eps=eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`(N, num_channels, height, width)` to `(N, C, H, W)`, H = height / patch_size rounded down."""
        conv = self.patch_embeddings
        if isinstance(conv, nn.Conv2d):
            num_channels, weight = conv.in_channels, conv.weight
        else:  # an adapter or another module in its place
            num_channels, weight = self.num_channels, next(conv.parameters(), pixel_values)
        check_pixel_values(pixel_values, num_channels, self.least_size)
        if weight.is_floating_point():  # a quantised weight is not
            pixel_values = pixel_values.to(weight.dtype)
        # From here on every map is channels-last in memory; converting the image is cheaper than its embedding.
        if not is_transformed():
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        return self.layernorm(conv(pixel_values))

    def set_num_channels(self, num_channels: int) -> None:
        """Adapt the kernels to images of `num_channels` channels (see `adapt_input_channels`)."""
        conv = self.patch_embeddings
        if type(conv) is not nn.Conv2d:
            raise ValueError(
                f"`patch_embeddings` (a {type(conv).__name__}) must be an nn.Conv2d for its kernels to be adapted to "
                "other channels. Set them first, then change the layer."
            )
        self.num_channels = num_channels
        adapted = adapt_input_channels(conv.weight.detach(), num_channels)
        conv.weight = nn.Parameter(adapted, requires_grad=conv.weight.requires_grad)
        conv.in_channels = num_channels


class ConvNextV2Embeddings(PixelEmbeddings):
    """The stem."""

    def __init__(self, config: ConvNextV2Config):
        super().__init__(config.num_channels, config.hidden_sizes[0], config.patch_sides, config.cell_size, eps=1e-6)


class ConvNextV2Stage(nn.Module):
    """Downsampling by two (but in the first stage) and a block for each of `drop_path_rates`."""

    def __init__(self, config: ConvNextV2Config, index: int, drop_path_rates: list[float]):
        super().__init__()
        out_channels = config.hidden_sizes[index]
        self.downsampling_layer = nn.ModuleList()
        if index > 0:
            in_channels = config.hidden_sizes[index - 1]
            self.downsampling_layer.append(ConvNextV2LayerNorm(in_channels))
            self.downsampling_layer.append(nn.Conv2d(in_channels, out_channels, kernel_size=2, stride=2))
        self.layers = nn.ModuleList(ConvNextV2Layer(config, out_channels, rate) for rate in drop_path_rates)

    def forward(self, features: Tensor, cells: PackedCells | None = None) -> Tensor:
        """`(N, C, H, W)` to `(N, C', H / 2, W / 2)`; `cells` where they are packed, after downsampling."""
        for layer in self.downsampling_layer:
            features = patch_conv(layer, features) if isinstance(layer, nn.Conv2d) else layer(features)
        for layer in self.layers:
            features = call(layer, features, cells)
        return features
