"""Convolutions whose stride is their kernel's size: between stages, and of the decoder's multi-scale fusion."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fast_path import is_plain_conv


def patch_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv` of a map `(N, C, H, W)`: on a CPU as a matrix product, whose gradients are up to five times as fast."""
    if type(conv) is not nn.Conv2d or x.device.type != "cpu" or not torch.is_grad_enabled():
        return conv(x)
    if torch.compiler.is_exporting():  # a program would be one for images with something left over, or for all others
        return conv(x)
    height, width = conv.kernel_size
    if not is_plain_conv(conv, (height, width), (0, 0), 1):
        return conv(x)
    rows, columns = x.shape[2] // height, x.shape[3] // width  # what is left over at the edges is in no patch
    x = x[:, :, : rows * height, : columns * width].permute(0, 2, 3, 1)
    patches = x.unflatten(2, (-1, width)).unflatten(1, (-1, height)).transpose(2, 3).flatten(3)
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(patches, weight, conv.bias).permute(0, 3, 1, 2)
