"""ConvMAE the plain way: dense maps, one visible set at a time, the mask multiplied before each depthwise convolution.

The oracle of the packed encoder. It reads the parameters of a `ConvMAEForPreTraining` and writes every formula out;
nothing of the package computes here.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm_of_channels(norm: nn.LayerNorm, x: Tensor, eps: float) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, eps=eps).permute(0, 3, 1, 2)


def conv1x1(linear: nn.Linear, x: Tensor) -> Tensor:
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)


def embed(conv: nn.Conv2d, norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.gelu(norm_of_channels(norm, F.conv2d(x, conv.weight, conv.bias, stride=conv.stride), 1e-5))


def conv_block(layer: nn.Module, x: Tensor, visible: Tensor | float) -> Tensor:
    """`x (B, C, H, W)`; `visible (B, 1, H, W)`, 1 where the encoder may look."""
    y = conv1x1(layer.conv1, norm_of_channels(layer.norm1, x, 1e-5)) * visible
    y = F.conv2d(y, layer.attn.weight, layer.attn.bias, padding=2, groups=x.shape[1])
    x = x + conv1x1(layer.conv2, y)
    y = F.gelu(conv1x1(layer.mlp.fc1, norm_of_channels(layer.norm2, x, 1e-5)))
    return x + conv1x1(layer.mlp.fc2, y)


def block(layer: nn.Module, x: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """`x (B, T, C)`: softmax attention and an MLP, both after a LayerNorm; `bias (heads, T, T)` of the logits."""
    dim, heads = x.shape[-1], layer.attn.num_heads
    y = F.layer_norm(x, (dim,), layer.norm1.weight, layer.norm1.bias, eps=1e-6)
    y = F.linear(y, layer.attn.qkv.weight, layer.attn.qkv.bias)
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in y.split(dim, dim=-1))
    weights = (query @ key.mT / math.sqrt(dim / heads) + bias).softmax(dim=-1)
    y = (weights @ value).transpose(1, 2).flatten(2)
    x = x + F.linear(y, layer.attn.proj.weight, layer.attn.proj.bias)
    y = F.layer_norm(x, (dim,), layer.norm2.weight, layer.norm2.bias, eps=1e-6)
    y = F.gelu(F.linear(y, layer.mlp.fc1.weight, layer.mlp.fc1.bias))
    return x + F.linear(y, layer.mlp.fc2.weight, layer.mlp.fc2.bias)


def positions(height: int, width: int, dim: int) -> Tensor:
    """`(1, H * W, dim)`, number by number: quarters are sine and cosine of the column, sine and cosine of the row."""
    table, quarter = torch.zeros(height * width, dim), dim // 4
    for row in range(height):
        for column in range(width):
            for i in range(quarter):
                frequency = 10000 ** (-i / quarter)
                values = [f(place * frequency) for place in (column, row) for f in (math.sin, math.cos)]
                for part, value in enumerate(values):
                    table[row * width + column, part * quarter + i] = value
    return table[None]


def at_resolution(x: Tensor, visible: Tensor) -> Tensor:
    return F.interpolate(visible, size=x.shape[2:], mode="nearest")


def encode(model: nn.Module, pixel_values: Tensor, masked: Tensor, with_masks: bool = True) -> list[Tensor]:
    """Four maps `(B, C, H, W)`, zero in hidden tokens; `masked (B, T)` bool.

    Without masks, hidden tokens are seen by the convolutions, as by a dense encoder.
    """
    embeddings, (first, second, third) = model.convmae.embeddings, model.convmae.encoder.stages
    rows, columns = (side // model.config.target_size for side in pixel_values.shape[2:])
    grid = (~masked).view(-1, 1, rows, columns).to(pixel_values.dtype)
    x = embed(embeddings.patch_embeddings, embeddings.layernorm, pixel_values)
    maps = [x]
    for stage in (first, second):
        if stage is second:
            x = embed(stage.patch_embed.proj, stage.patch_embed.norm, x)
        for layer in stage.layers:
            x = conv_block(layer, x, at_resolution(x, grid) if with_masks else 1.0)
        maps.append(x)
    x = embed(third.patch_embed.proj, third.patch_embed.norm, x).flatten(2).mT
    x = F.linear(x, third.proj.weight, third.proj.bias) + positions(rows, columns, x.shape[-1]).to(x)
    kept = torch.stack([(~row).nonzero()[:, 0] for row in masked])[..., None].expand(-1, -1, x.shape[-1])
    y = x.gather(1, kept)
    for layer in third.layers:
        y = block(layer, y)
    maps.append(torch.zeros_like(x).scatter(1, kept, y).mT.unflatten(2, (rows, columns)))
    return [map_ * at_resolution(map_, grid) for map_ in maps]


def decode(model: nn.Module, maps: list[Tensor], masked: Tensor) -> Tensor:
    """Predicted tokens `(B, T, P * P * C)`."""
    decoder, x = model.decoder, maps[-1]
    for name, conv in decoder.fusion.items():
        x = x + F.conv2d(maps[int(name[-1])], conv.weight, conv.bias, stride=conv.kernel_size)
    height, width = x.shape[2:]
    x = norm_of_channels(decoder.norm, x, 1e-6).flatten(2).mT
    x = F.linear(x, decoder.embed.weight, decoder.embed.bias)
    hidden = masked[..., None].to(x.dtype)
    x = x * (1 - hidden) + decoder.mask_token * hidden + positions(height, width, x.shape[-1]).to(x)
    for layer in decoder.layers:
        x = block(layer, x)
    x = F.layer_norm(x, x.shape[-1:], decoder.layernorm.weight, decoder.layernorm.bias, eps=1e-6)
    return F.linear(x, decoder.pred.weight, decoder.pred.bias)


def loss(model: nn.Module, pixel_values: Tensor, logits: Tensor, masked: Tensor) -> Tensor:
    """Mean squared error against each hidden token's pixels, normalised by their mean and deviation."""
    side = model.config.target_size
    tokens = F.unfold(pixel_values, side, stride=side).mT  # (B, T, C * P * P)
    tokens = tokens.unflatten(-1, (-1, side * side)).mT.flatten(2)  # row, column, channel
    mean, std = tokens.mean(-1, keepdim=True), (tokens.var(-1, keepdim=True) + 1e-6).sqrt()
    return F.mse_loss(logits[masked], ((tokens - mean) / std)[masked])
