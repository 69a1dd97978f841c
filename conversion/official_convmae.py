"""What the official code of ConvMAE computes, from parameters under its names, for images of its size (--verify).

Written from its description, for comparisons alone: nothing of this package's models computes here. B batch, H W height
and width at the current stride, T tokens, C channels; maps are (B, H, W, C).
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Parameters = Mapping[str, Tensor]
GLOBAL_BLOCKS = (0, 3, 6, 10)  # of a detector's transformer; the others attend within windows
BIAS_TABLE = "{}_rel_pos_bias.relative_position_bias_table"
CONV_EPS, EPS = 1e-5, 1e-6  # of the norms of the convolutional stages, and of all others


def logits(tensors: Parameters, pixel_values: Tensor, num_heads: int) -> Tensor:
    """`(B, num_labels)` of a classifier."""
    pooled = last_map(tensors, pixel_values, num_heads).mean([2, 3])
    return _linear(tensors, "head", _norm(tensors, "fc_norm", pooled, EPS))


def last_map(tensors: Parameters, pixel_values: Tensor, num_heads: int) -> Tensor:
    """`(B, C, H, W)` of an encoder that sees the whole image, also of a detector's."""
    maps = _convolve(tensors, pixel_values, None)
    tokens = _add_positions(tensors, maps[-1])
    if BIAS_TABLE.format("windowed") in tensors:
        return _transform_in_windows(tensors, tokens.unflatten(1, maps[-1].shape[1:3]), num_heads).permute(0, 3, 1, 2)
    encoded = _transform(tensors, "blocks3", tokens, num_heads)
    return encoded.mT.unflatten(2, maps[-1].shape[1:3])


def predicted_tokens(
    tensors: Parameters, pixel_values: Tensor, hidden: Tensor, num_heads: int, decoder_num_heads: int
) -> Tensor:
    """`(B, T, P * P * channels)` of a pre-training model; `hidden (B, T)`, as many in each image."""
    maps = _convolve(tensors, pixel_values, ~hidden)
    tokens = _add_positions(tensors, maps[-1])
    first, second = (_conv(tensors, f"stage{s}_output_decode", maps[s - 1]).flatten(1, 2) for s in (1, 2))
    kept = (~hidden).nonzero()[:, 1].view(len(hidden), -1, 1).expand(-1, -1, tokens.shape[2])
    encoded = _transform(tensors, "blocks3", tokens.gather(1, kept), num_heads)
    encoded = _norm(tensors, "norm", encoded + (first + second).gather(1, kept), EPS)
    x = tensors["mask_token"].repeat(*hidden.shape, 1)
    x = x.masked_scatter(~hidden[..., None], _linear(tensors, "decoder_embed", encoded))
    x = _transform(tensors, "decoder_blocks", x + tensors["decoder_pos_embed"], decoder_num_heads)
    return _linear(tensors, "decoder_pred", _norm(tensors, "decoder_norm", x, EPS))


def _convolve(tensors: Parameters, pixel_values: Tensor, visible: Tensor | None) -> list[Tensor]:
    """The maps of the two convolutional stages, and the one that the tokens are made of; `visible (B, T)`."""
    maps, x = [], pixel_values.permute(0, 2, 3, 1)
    for stage in (1, 2):
        x = _embed(tensors, f"patch_embed{stage}", x)
        for block in range(_depth(tensors, f"blocks{stage}")):
            x = _conv_block(tensors, f"blocks{stage}.{block}", x, visible)
        maps.append(x)
    return [*maps, _embed(tensors, "patch_embed3", x)]


def _conv_block(tensors: Parameters, name: str, x: Tensor, visible: Tensor | None) -> Tensor:
    y = _linear(tensors, f"{name}.conv1", _norm(tensors, f"{name}.norm1", x, CONV_EPS))
    if visible is not None:
        side = math.isqrt(visible.shape[1])
        mask = visible.view(-1, 1, side, side).to(x.dtype)
        y = y * F.interpolate(mask, size=x.shape[1:3], mode="nearest").permute(0, 2, 3, 1)
    weight, bias = tensors[f"{name}.attn.weight"], tensors[f"{name}.attn.bias"]
    y = F.conv2d(y.permute(0, 3, 1, 2), weight, bias, padding=2, groups=x.shape[3]).permute(0, 2, 3, 1)
    x = x + _linear(tensors, f"{name}.conv2", y)
    return x + _mlp(tensors, name, x, CONV_EPS)


def _transform(tensors: Parameters, name: str, x: Tensor, num_heads: int) -> Tensor:
    """Tokens `(B, T, C)` through the blocks of a transformer."""
    for number in range(_depth(tensors, name)):
        x = _block(tensors, f"{name}.{number}", x, num_heads)
    return x


def _transform_in_windows(tensors: Parameters, x: Tensor, num_heads: int) -> Tensor:
    """A map of tokens through the blocks of a detector's transformer; its sides are multiples of a window's."""
    height, width = x.shape[1:3]
    side = (math.isqrt(len(tensors[BIAS_TABLE.format("windowed")])) + 1) // 2
    of_windows = _position_bias(tensors[BIAS_TABLE.format("windowed")], side, side)
    of_images = _position_bias(tensors[BIAS_TABLE.format("global")], height, width)
    for number in range(_depth(tensors, "blocks3")):
        name = f"blocks3.{number}"
        if number in GLOBAL_BLOCKS:
            x = _block(tensors, name, x.flatten(1, 2), num_heads, of_images).view_as(x)
            continue
        rows = []
        for row in x.split(side, dim=1):
            windows = (window.flatten(1, 2) for window in row.split(side, dim=2))
            seen = [_block(tensors, name, window, num_heads, of_windows) for window in windows]
            rows.append(torch.cat([window.unflatten(1, (side, side)) for window in seen], dim=2))
        x = torch.cat(rows, dim=1)
    return x


def _position_bias(table: Tensor, height: int, width: int) -> Tensor:
    """`(heads, T, T)` of a grid of tokens: the entry of the rows and columns from key to query."""
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    down, right = (places[:, None] - places for places in (rows, columns))
    return table[(down + height - 1) * (2 * width - 1) + right + width - 1].permute(2, 0, 1)


def _block(tensors: Parameters, name: str, x: Tensor, num_heads: int, bias: Tensor | float = 0.0) -> Tensor:
    """Tokens `(B, T, C)` through a block; `bias (heads, T, T)` is added to the logits."""
    y = _linear(tensors, f"{name}.attn.qkv", _norm(tensors, f"{name}.norm1", x, EPS))
    query, key, value = (part.unflatten(2, (num_heads, -1)).transpose(1, 2) for part in y.chunk(3, dim=2))
    weights = (query @ key.mT / math.sqrt(query.shape[-1]) + bias).softmax(-1)
    x = x + _linear(tensors, f"{name}.attn.proj", (weights @ value).transpose(1, 2).flatten(2))
    return x + _mlp(tensors, name, x, EPS)


def _add_positions(tensors: Parameters, x: Tensor) -> Tensor:
    return _linear(tensors, "patch_embed4", x).flatten(1, 2) + tensors["pos_embed"]


def _embed(tensors: Parameters, name: str, x: Tensor) -> Tensor:
    return F.gelu(_norm(tensors, f"{name}.norm", _conv(tensors, f"{name}.proj", x), CONV_EPS))


def _mlp(tensors: Parameters, name: str, x: Tensor, eps: float) -> Tensor:
    y = F.gelu(_linear(tensors, f"{name}.mlp.fc1", _norm(tensors, f"{name}.norm2", x, eps)))
    return _linear(tensors, f"{name}.mlp.fc2", y)


def _conv(tensors: Parameters, name: str, x: Tensor) -> Tensor:
    """A convolution whose stride is its kernel's side."""
    weight = tensors[f"{name}.weight"]
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, tensors[f"{name}.bias"], stride=weight.shape[2:])
    return y.permute(0, 2, 3, 1)


def _linear(tensors: Parameters, name: str, x: Tensor) -> Tensor:
    """A linear layer, also one that is stored as a 1x1 convolution."""
    return F.linear(x, tensors[f"{name}.weight"].flatten(1), tensors[f"{name}.bias"])


def _norm(tensors: Parameters, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)


def _depth(tensors: Parameters, name: str) -> int:
    numbers = [int(key.split(".")[1]) for key in tensors if key.startswith(f"{name}.")]
    return 1 + max(numbers)


def without_easycv_names(tensors: Parameters) -> dict[str, Tensor]:
    """EasyCV's tensors under the official names."""
    prefixes = ("encoder.", "backbone.", "decoder.")
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        named[name.removeprefix(prefix).replace("head_0.fc_cls.", "head.")] = tensor
    return named


def hidden_tokens(num_tokens: int) -> Tensor:
    """`(1, T)` with three quarters of the tokens hidden, the same ones at every call."""
    noise = torch.rand(1, num_tokens, generator=torch.Generator().manual_seed(0))
    return noise.argsort().argsort() >= num_tokens // 4
