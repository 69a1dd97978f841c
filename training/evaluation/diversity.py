"""Feature diversity: how different the channels of a block are (arXiv 2301.00808, section 3.1 and Figure 4).

B images, N positions of an image, C channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hf_convnextv2.window_attention import locate_windows
from training.models.families import family_of
from training.models.hooks import hooked


def cosine_distances(features: Tensor) -> Tensor:
    """Mean of (1 - cosine) / 2 over all pairs of channels, for each image `(B,)` of features `(B, ..., C)`.

    Each channel is also paired with itself, as in the paper: C channels that are orthogonal have (1 - 1 / C) / 2.
    """
    channels = normalize(features.float().flatten(1, -2), dim=1)  # (B, N, C)
    # The mean of the products of all pairs is the squared norm of the mean channel.
    return (1 - channels.mean(dim=2).square().sum(dim=1)) / 2


def wide_layers(encoder: Any, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The module of each block that returns its widest features: after GRN, or after GELU without GRN."""
    family = family_of(encoder.config)
    return [family.wide_layer(block) for block in blocks]


def by_image(features: Tensor, encoder: Any, pixel_values: Tensor) -> Tensor:
    """Features `(B, N, C)`, row by row, of maps `(B, H, W, C)` or of a transformer's tokens, in windows or not.

    What windows hold beyond the edge of an image, which are copies of its tokens, is left out.
    """
    num_images, config = len(pixel_values), encoder.config
    if features.ndim == 3:  # (B, T, C), or (B * windows, T, C)
        strides = zip(pixel_values.shape[2:], config.last_strides, strict=True)
        height, width = (side // stride for side, stride in strides)
        if features.shape[:2] != (num_images, height * width):
            return locate_windows(config.window_size, num_images, height, width, features.device).join(features)
    return features.reshape(num_images, -1, features.shape[-1])


@torch.no_grad()
def block_diversity(encoder: Any, blocks: Sequence[nn.Module], pixel_values: Tensor) -> list[Tensor]:
    """The cosine distances `(B,)` of the widest features of each block, given in the order of the encoder."""
    found: list[Tensor] = []

    def measure(features: Tensor) -> None:
        found.append(cosine_distances(by_image(features, encoder, pixel_values)))

    with hooked(wide_layers(encoder, blocks), measure):
        encoder(pixel_values)
    return found
