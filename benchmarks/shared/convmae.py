"""An encoder step of ConvMAE: on visible cells alone, and arranged as in the official code, with the same parts.

The official arrangement computes the convolutional stages on whole images, with the mask multiplied before each
depthwise convolution, and the transformer on the visible tokens. FastConvMAE's convolves the maps of each of K sets in
turn and computes the rest of those stages once.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.shared.measure import Call
from hf_convnextv2 import ConvMAEConfig, ConvMAEForPreTraining
from hf_convnextv2.depthwise import depthwise_conv
from hf_convnextv2.packing import VisibleCells, locate_cells, pack

PACKED, PASSES, OFFICIAL = "packed", "one pass for each set", "official"


def prepare(name: str, size: str, batch_size: int, num_sets: int, image_size: int = 224, device: str = "cpu") -> Call:
    """A call that runs forward and backward of `num_sets` views of each image, and drops the gradients.

    `name`: "packed", "one pass for each set" (as one view at a time), or "official".
    """
    torch.manual_seed(0)
    model: Any = ConvMAEForPreTraining(ConvMAEConfig.from_size(size, num_visible_sets=num_sets)).train()
    model.to(device)
    pixel_values = torch.randn(batch_size, 3, image_size, image_size, device=device)
    grid = (image_size // model.config.cell_size,) * 2
    mask = model._draw_mask(pixel_values, torch.rand(batch_size, grid[0] * grid[1], device=device), None)
    forward: dict[str, Callable[[], list[Tensor]]] = {
        PACKED: lambda: [model.forward_encoder(pixel_values, mask.visible, grid).maps[-1]],
        PASSES: lambda: [
            model.forward_encoder(pixel_values, visible, grid).maps[-1]
            for visible in separate(mask.visible, batch_size, num_sets)
        ],
        OFFICIAL: lambda: [official(model, pixel_values, mask.masked, mask.visible, grid)],
    }

    def call() -> None:
        maps = forward[name]()
        sum(map_.square().sum() for map_ in maps).backward()  # type: ignore[union-attr]
        model.zero_grad()

    return call


def separate(visible: VisibleCells, batch: int, num_sets: int) -> list[VisibleCells]:
    """The views of each set as a batch of their own."""
    parts = []
    for index in range(num_sets):
        mine = visible.views // batch == index
        count = int(mine.sum())
        images = visible.images[mine]
        parts.append(VisibleCells(visible.ids[mine], images, images, batch, ((batch, count // batch),)))
    return parts


def official(model: Any, pixel_values: Tensor, masked: Tensor, visible: VisibleCells, grid: tuple[int, int]) -> Tensor:
    """The map of the visible tokens `(N, C, 1, 1)`, as `forward_encoder` gives it."""
    first, second, third = model.convmae.encoder.stages
    shown = (~masked).view(-1, len(pixel_values), 1, *grid).to(pixel_values.dtype)  # (K, B, 1, h, w)
    x = model.convmae.embeddings(pixel_values)
    for stage in (first, second):
        x = stage.patch_embed(x)
        masks = [F.interpolate(of_set, size=x.shape[2:], mode="nearest") for of_set in shown]
        for layer in stage.layers:
            x = conv_layer(layer, x, masks)
    x = third.proj(third.patch_embed(x).permute(0, 2, 3, 1))
    x = x + third.position_embeddings(*grid)[0].view(*grid, -1)
    cells = locate_cells(visible._replace(views=visible.images, num_views=len(pixel_values)), grid, 1, with_halo=False)
    rows = pack(x.permute(0, 3, 1, 2), cells).flatten(1)
    for layer in third.layers:
        rows = layer(rows, visible.groups)
    return rows[:, :, None, None]


def conv_layer(layer: Any, features: Tensor, masks: list[Tensor]) -> Tensor:
    """A block of convolutions of whole images, `(B, C, H, W)`."""
    x = features.permute(0, 2, 3, 1)
    y = layer.conv1(layer.norm1(x)).permute(0, 3, 1, 2)
    if len(masks) == 1:
        y = depthwise_conv(layer.attn, y * masks[0])
    else:
        y = sum(mask * depthwise_conv(layer.attn, y * mask) for mask in masks)
    x = x + layer.conv2(y.permute(0, 2, 3, 1))  # type: ignore[union-attr]
    return (x + layer.mlp(layer.norm2(x))).permute(0, 3, 1, 2)
