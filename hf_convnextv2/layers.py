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

from .bypass import has_affine, is_plain, is_transformed
from .channels import adapt_input_channels
from .configuration_convnextv2 import ConvNextV2Config
from .depthwise import depthwise_conv
from .downsampling import patch_conv
from .grn import ConvNextV2GRN, Groups
from .mixing import response_mlp
from .packing import KERNEL_SIZE, PackedCells


def call(module: nn.Module, x: Tensor, cells: PackedCells | Groups | None) -> Tensor:
    """`module` of `x`, with `cells` where there are some: one that was put in another's place may take a map alone.

    What `nn.Identity` and `nn.Sequential` do to a map, they do to packed cells.
    """
    if cells is None or type(module) is nn.Identity:
        return module(x)
    if is_plain(module, nn.Sequential):
        for part in module.children():
            x = call(part, x, cells)
        return x
    return module(x, cells)


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
        """`x (N, C, H, W)`; `groups` says of which views the N are: each of its own by default."""
        groups = ((x.shape[0], 1),) if groups is None else groups
        factor = self.draw(sum(views for views, _ in groups), x)
        if factor is None:
            return x
        if len(groups) == 1:
            return x * factor.repeat_interleave(groups[0][1])[:, None, None, None]
        parts = zip(factor.split([views for views, _ in groups]), groups, strict=True)
        return x * torch.cat([part.repeat_interleave(size) for part, (_, size) in parts])[:, None, None, None]

    def draw(self, num_views: int, like: Tensor) -> Tensor | None:
        """What the branch of each view is multiplied by, `(num_views,)`: 0, or more than 1; None where nothing is."""
        if not self.training or self.drop_prob == 0:
            return None
        keep_prob = 1 - self.drop_prob
        return torch.bernoulli(torch.empty(num_views, device=like.device, dtype=like.dtype), keep_prob) / keep_prob

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class ConvNextV2Layer(GradientCheckpointingLayer):
    """One block: depthwise 7x7 convolution, LayerNorm, 1x1 up, GELU, GRN, 1x1 down, residual (paper, Figure 5)."""

    def __init__(self, config: ConvNextV2Config, dim: int, drop_path: float = 0.0):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=KERNEL_SIZE, padding=KERNEL_SIZE // 2, groups=dim)
        self.layernorm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = ACT2FN[config.hidden_act]
        self.grn = ConvNextV2GRN(4 * dim) if config.use_grn else None
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.drop_path = ConvNextV2DropPath(drop_path) if drop_path > 0 else None

    def forward(self, features: Tensor, cells: PackedCells | None = None) -> Tensor:
        """`(N, C, H, W)` to the same shape."""
        x = depthwise_conv(self.dwconv, features, cells).permute(0, 2, 3, 1)  # (N, H, W, C)
        if features.shape[0] and self._is_plain():
            return self._mix_in_one(x, features.permute(0, 2, 3, 1), cells).permute(0, 3, 1, 2)
        x = self.act(self.pwconv1(self.layernorm(x)))
        x = call(self.grn, x, cells.row_groups if cells is not None else None) if self.grn is not None else x
        x = self.pwconv2(x).permute(0, 3, 1, 2)  # (N, C, H, W)
        groups = cells.groups if cells is not None else None
        return features + (x if self.drop_path is None else call(self.drop_path, x, groups))

    def _mix_in_one(self, x: Tensor, features: Tensor, cells: PackedCells | None) -> Tensor:
        """What follows the convolution, of `(N, H, W, C)`, past the modules and in fewer passes over memory."""
        groups = cells.row_groups if cells is not None else ((x.shape[0], x.shape[1] * x.shape[2]),)
        rows, residual = (t.reshape(-1, t.shape[-1]) for t in (x, features))
        num_views = sum(views for views, _ in groups)
        factor = self.drop_path.draw(num_views, x) if self.drop_path is not None else None
        # Nobody else holds the output of a plain convolution.
        overwrite = is_plain(self.dwconv, nn.Conv2d)
        mlp = (self.pwconv1, self.grn, self.pwconv2, self.layernorm)
        return response_mlp(rows, groups, *mlp, residual, factor, overwrite).view(x.shape)  # type: ignore[arg-type]

    def _is_plain(self) -> bool:
        """Whether nobody could tell that the parameters are read past the modules."""
        kinds = ((self.pwconv1, nn.Linear), (self.pwconv2, nn.Linear), (self.layernorm, nn.LayerNorm))
        if not all(is_plain(module, kind) and has_affine(module) for module, kind in kinds):
            return False
        if self.grn is None or not is_plain(self.grn, ConvNextV2GRN) or not is_plain(self.act, GELUActivation):
            return False
        return self.drop_path is None or is_plain(self.drop_path, ConvNextV2DropPath)


def check_pixel_values(pixel_values: Tensor, num_channels: int, cell_size: int | tuple[int, int]) -> None:
    """Raise a `ValueError` unless `pixel_values` are images of `num_channels` channels, at least one cell large."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"`pixel_values` (of shape {tuple(pixel_values.shape)}) must be (batch, `num_channels` (={num_channels}), "
            "height, width). Load the model with `num_channels=...` to adapt its weights to other images."
        )
    height, width = (cell_size, cell_size) if isinstance(cell_size, int) else cell_size
    if pixel_values.shape[2] < height or pixel_values.shape[3] < width:
        raise ValueError(
            f"`pixel_values` (of shape {tuple(pixel_values.shape)}) must be at least {height} pixels high and {width} "
            "wide, the size of one cell. Resize the images or use a smaller `patch_size`."
        )


class ConvNextV2Embeddings(nn.Module):
    """The stem: a convolution over patches and a LayerNorm."""

    def __init__(self, config: ConvNextV2Config):
        super().__init__()
        self.num_channels, self.cell_size = config.num_channels, config.cell_size
        self.patch_embeddings = nn.Conv2d(
            config.num_channels, config.hidden_sizes[0], kernel_size=config.patch_sides, stride=config.patch_sides
        )
        self.layernorm = ConvNextV2LayerNorm(config.hidden_sizes[0])

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`(N, num_channels, height, width)` to `(N, C, H, W)`, H = height / patch_size rounded down."""
        conv = self.patch_embeddings
        is_conv = isinstance(conv, nn.Conv2d)
        check_pixel_values(pixel_values, conv.in_channels if is_conv else self.num_channels, self.cell_size)
        weight = conv.weight if is_conv else next(conv.parameters(), pixel_values)
        pixel_values = pixel_values.to(weight.dtype if weight.is_floating_point() else pixel_values.dtype)
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
        conv.weight = nn.Parameter(adapt_input_channels(conv.weight.detach(), num_channels))
        conv.in_channels = num_channels


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
        for layer in self.downsampling_layer:
            features = patch_conv(layer, features) if isinstance(layer, nn.Conv2d) else layer(features)
        for layer in self.layers:
            features = call(layer, features, cells)
        return features
