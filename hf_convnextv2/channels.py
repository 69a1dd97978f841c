"""Weights trained on images of some channels, adapted to images of others (3 to 1, 4 or 13, say)."""

import torch
from torch import Tensor


def adapt_input_channels(weight: Tensor, num_channels: int) -> Tensor:
    """Kernels `(out, c, h, w)` for `num_channels` inputs.

    One channel: the sum of the kernels, exact for a grey image given as c equal channels. Otherwise the kernels
    repeated in order and scaled by c / num_channels, which keeps the size of the response.
    """
    if num_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return _repeat_channels(weight, num_channels) * (weight.shape[1] / num_channels)


def adapt_output_channels(weight: Tensor, old_channels: int, num_channels: int) -> Tensor:
    """Rows `(positions * old_channels, ...)` that predict pixels, for `num_channels` channels a pixel.

    One channel: the mean of the rows. Otherwise the rows repeated in order: a prediction keeps the size of its target.
    """
    rows = weight.unflatten(0, (-1, old_channels))
    if num_channels == 1:
        return rows.mean(dim=1)
    return _repeat_channels(rows, num_channels).flatten(0, 1)


def _repeat_channels(weight: Tensor, num_channels: int) -> Tensor:
    """Channels `(_, c, ...)` repeated in order until there are `num_channels`."""
    index = torch.arange(num_channels, device=weight.device) % weight.shape[1]
    return weight.index_select(1, index)
