"""UPerNet on a ConvNeXt V2 backbone, with the same results as Transformers' class of this name and less work.

The last 3 x 3 convolution of the head sees the maps of all stages, enlarged to the size of the first. Enlarging is
linear and acts on each channel alone, so the sums over the channels can come before it, on the small maps. Of a map f,
with the kernel W, the enlargement U and the shift S of an enlarged map by a place of the kernel,

    convolution of U f  =  sum over places p of  S_p U (W_p f)

Shift and enlargement are products with two small matrices, one for rows and one for columns. A map of half the side
then costs a quarter of the products with W, and so on.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import UperNetConfig
from transformers import UperNetForSemanticSegmentation as StockUperNet
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.upernet.modeling_upernet import UperNetHead as StockUperNetHead
from transformers.utils.generic import can_return_tuple

from .enlarged_loss import enlarged_cross_entropy, enlargement
from .registration import registered


class UperNetForSemanticSegmentation(StockUperNet):
    """As Transformers' class of the same name: the same parameters, logits and loss.

    The second head is computed only for the loss. While training, `loss_alone = True` leaves the logits out of the
    output: enlarging them to the size of the images takes time and memory.
    """

    loss_alone = False

    def __init__(self, config: UperNetConfig):
        with registered():  # so that the backbone is this package's
            super().__init__(config)
        self.decode_head = UperNetHead(config, in_channels=self.backbone.channels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's: Accelerate asks for them where it shards weights."""
        return self.backbone.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> SemanticSegmenterOutput:
        """Images `(B, num_channels, H, W)` to `logits (B, num_labels, H, W)`.

        Args:
            labels: class numbers `(B, H, W)` int64; pixels of `config.loss_ignore_index` do not count.
        """
        wants_maps = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        outputs = self.backbone(pixel_values, output_hidden_states=wants_maps, return_dict=True)
        small = self.decode_head(outputs.feature_maps)
        loss = None
        if labels is not None:
            ignored = self.config.loss_ignore_index
            loss = enlarged_cross_entropy(small, labels, ignored)
            if self.auxiliary_head is not None:
                auxiliary_loss = enlarged_cross_entropy(self.auxiliary_head(outputs.feature_maps), labels, ignored)
                loss = loss + self.config.auxiliary_loss_weight * auxiliary_loss
        if labels is not None and self.training and self.loss_alone:
            return SemanticSegmenterOutput(loss=loss, hidden_states=outputs.hidden_states)
        height, width = pixel_values.shape[2:]
        logits = F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
        return SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class UperNetHead(StockUperNetHead):
    """As Transformers' class of the same name."""

    def forward(self, feature_maps: tuple[Tensor, ...]) -> Tensor:
        """The maps of the stages `(B, C_i, H_i, W_i)` to logits `(B, num_labels, H_0, W_0)`."""
        return self.classify(self.pyramid(feature_maps))

    def pyramid(self, feature_maps: tuple[Tensor, ...]) -> list[Tensor]:
        """The neck: the maps of the stages at one width `(B, C, H_i, W_i)`, each with what the smaller ones know."""
        laterals = [
            lateral(feature_map) for lateral, feature_map in zip(self.lateral_convs, feature_maps, strict=False)
        ]
        laterals.append(self.psp_forward(feature_maps))
        for level in range(len(laterals) - 1, 0, -1):
            size = laterals[level - 1].shape[2:]
            above = F.interpolate(laterals[level], size=size, mode="bilinear", align_corners=self.align_corners)
            laterals[level - 1] = laterals[level - 1] + above
        maps = [convolve(lateral) for convolve, lateral in zip(self.fpn_convs, laterals, strict=False)]
        maps.append(laterals[-1])
        return maps

    def classify(self, maps: list[Tensor]) -> Tensor:
        """The maps of the pyramid to logits `(B, num_labels, H_0, W_0)`."""
        bottleneck = self.fpn_bottleneck
        first, *rest = bottleneck.conv.weight.split(self.channels, dim=1)
        output = F.conv2d(maps[0], first, padding=1)
        for smaller, weight in zip(maps[1:], rest, strict=True):
            height, width = output.shape[2:]
            convolve = convolve_enlarged if pays(smaller, weight, (height, width)) else convolve_after_enlarging
            output = output + convolve(smaller, weight, (height, width))
        return self.classifier(bottleneck.activation(bottleneck.batch_norm(output)))


def convolve_enlarged(x: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """The convolution, with one pixel of zeros around, of `x (B, C, h, w)` enlarged bilinearly to `size`.

    `weight` is `(O, C, 3, 3)`; the result is `(B, O, *size)`.
    """
    batch_size, channels, height, width = x.shape
    places = weight.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)  # for each output channel, the nine places
    taps = F.conv2d(x, places).view(batch_size, len(weight), 3, 3, height, width)
    rows = shifted_enlargement(height, size[0], x).permute(1, 0, 2).reshape(size[0], -1)  # (H, 3 h)
    columns = shifted_enlargement(width, size[1], x).permute(0, 2, 1).reshape(-1, size[1])  # (3 w, W)
    wide = taps.permute(0, 1, 2, 4, 3, 5).reshape(batch_size, len(weight), 3 * height, 3 * width) @ columns
    return rows @ wide


def convolve_after_enlarging(x: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """The same as written: enlarge, then convolve."""
    return F.conv2d(F.interpolate(x, size=size, mode="bilinear", align_corners=False), weight, padding=1)


def pays(x: Tensor, weight: Tensor, size: tuple[int, int]) -> bool:
    """Whether `convolve_enlarged` multiplies clearly less often: it does for wide maps that are enlarged a lot."""
    channels, (height, width), (large_height, large_width) = weight.shape[1], x.shape[2:], size
    direct = 9 * channels * large_height * large_width
    enlarging = 3 * height * large_width * (3 * width + large_height)
    return 9 * channels * height * width + enlarging < direct / 2


def shifted_enlargement(small: int, large: int, like: Tensor) -> Tensor:
    """Matrices `(3, large, small)`: the bilinear enlargement of a line, shifted by -1, 0 and 1, with zeros moved in."""
    padded = F.pad(enlargement(small, large, like.device), (0, 0, 1, 1))
    return torch.stack([padded[shift : shift + large] for shift in range(3)]).to(like.dtype)
