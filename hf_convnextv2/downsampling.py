"""The convolution between stages, whose stride is its kernel's width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bypass import is_plain_conv


def patch_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv` of a map `(N, C, H, W)`: on a CPU as a matrix product, whose gradients are up to five times as fast."""
    if type(conv) is not nn.Conv2d or x.device.type != "cpu" or not torch.is_grad_enabled():
        return conv(x)
    height, width = conv.kernel_size
    if not is_plain_conv(conv, (height, width), (0, 0), 1):
        return conv(x)
    rows = x[:, :, : x.shape[2] // height * height, : x.shape[3] // width * width].permute(0, 2, 3, 1)
    patches = rows.unflatten(2, (-1, width)).unflatten(1, (-1, height)).transpose(2, 3).flatten(3)
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(patches, weight, conv.bias).permute(0, 3, 1, 2)
