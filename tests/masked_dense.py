"""FCMAE the plain way: dense maps with the hidden cells multiplied by zero wherever they could be seen.

The oracle of the packed encoder. It reads the parameters of a `ConvNextV2ForPreTraining` and writes every formula out;
nothing of the package computes here, unless a caller gives it the package's MLP to time the rest against it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (positions (B, H, W, C), block, visible (B, H, W, 1)) to (B, H, W, C)
MLP = Callable[[Tensor, nn.Module, Tensor], Tensor]


def plain_mlp(x: Tensor, layer: nn.Module, visible: Tensor) -> Tensor:
    """Linear, GELU, GRN, linear, LayerScale; hidden positions count as zero in GRN's energy."""
    y = F.gelu(F.linear(x, layer.pwconv1.weight, layer.pwconv1.bias)) * visible
    if layer.grn is not None:
        energy = torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True)
        share = energy / (energy.mean(-1, keepdim=True) + 1e-6)
        y = y + layer.grn.weight * (y * share) + layer.grn.bias
    y = F.linear(y, layer.pwconv2.weight, layer.pwconv2.bias)
    return y if layer.layer_scale_parameter is None else layer.layer_scale_parameter * y


def unmasked_conv(conv: nn.Conv2d, x: Tensor, visible: Tensor) -> Tensor:
    return conv(x)


def masked_conv(conv: nn.Conv2d, x: Tensor, visible: Tensor) -> Tensor:
    return conv(x * visible) * visible


def block(layer: nn.Module, x: Tensor, visible: Tensor, mlp: MLP, conv: Callable[..., Tensor]) -> Tensor:
    """One block of a map `(B, C, H, W)`; `visible` is `(B, 1, H, W)`, 1 where the encoder may look."""
    y = conv(layer.dwconv, x, visible).permute(0, 2, 3, 1)
    y = F.layer_norm(y, y.shape[-1:], layer.layernorm.weight, layer.layernorm.bias, eps=1e-6)
    return (x + mlp(y, layer, visible.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)) * visible


def channels_first_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, eps=1e-6).permute(0, 3, 1, 2)


def encode(
    model: nn.Module,
    pixel_values: Tensor,
    masked: Tensor,
    mlp: MLP = plain_mlp,
    conv: Callable[..., Tensor] = masked_conv,
) -> list[Tensor]:
    """Five maps `(B, C, H, W)`, zero in hidden cells; `masked (B, L)` bool."""
    rows, columns = (side // model.config.cell_size for side in pixel_values.shape[2:])
    grid = (~masked).view(-1, 1, rows, columns).to(pixel_values.dtype)
    embeddings, stages = model.convnextv2.embeddings, model.convnextv2.encoder.stages
    x = embeddings.patch_embeddings(pixel_values.contiguous(memory_format=torch.channels_last))
    x = channels_first_norm(embeddings.layernorm, x)
    maps = [x := x * at_resolution(grid, x)]
    for stage in stages:
        if len(stage.downsampling_layer):
            norm, downsample = stage.downsampling_layer
            x = downsample(channels_first_norm(norm, x) * at_resolution(grid, x))
            x = x * at_resolution(grid, x)
        visible = at_resolution(grid, x)
        for layer in stage.layers:
            x = block(layer, x, visible, mlp, conv)
        maps.append(x)
    return maps


def at_resolution(grid: Tensor, x: Tensor) -> Tensor:
    return F.interpolate(grid, size=x.shape[2:], mode="nearest")


def decode(model: nn.Module, features: Tensor, masked: Tensor, mlp: MLP = plain_mlp) -> Tensor:
    """Predicted cells `(B, L, P * P * C)` from the last map."""
    decoder = model.decoder
    x = F.linear(features.permute(0, 2, 3, 1), decoder.proj.weight, decoder.proj.bias)
    hidden = masked.view(*x.shape[:3], 1)
    x = (x * ~hidden + decoder.mask_token.view(1, 1, 1, -1) * hidden).permute(0, 3, 1, 2)
    for layer in decoder.layers:
        x = block(layer, x, torch.ones_like(x[:, :1]), mlp, unmasked_conv)
    return F.linear(x.permute(0, 2, 3, 1), decoder.pred.weight, decoder.pred.bias).flatten(1, 2)


def loss(model: nn.Module, pixel_values: Tensor, logits: Tensor, masked: Tensor) -> Tensor:
    """Mean squared error against each hidden cell's pixels, normalised by that cell's mean and deviation."""
    side = model.config.cell_size
    cells = F.unfold(pixel_values, side, stride=side).transpose(1, 2)  # (B, L, C * P * P)
    cells = cells.unflatten(-1, (-1, side * side)).transpose(2, 3).flatten(2)  # row, column, channel
    mean, std = cells.mean(-1, keepdim=True), (cells.var(-1, keepdim=True) + 1e-6).sqrt()
    return F.mse_loss(logits[masked], ((cells - mean) / std)[masked])


def step(model: nn.Module, pixel_values: Tensor, masked: Tensor, mlp: MLP = plain_mlp) -> Tensor:
    """The loss of a whole pre-training forward pass."""
    maps = encode(model, pixel_values, masked, mlp)
    return loss(model, pixel_values, decode(model, maps[-1], masked, mlp), masked)
