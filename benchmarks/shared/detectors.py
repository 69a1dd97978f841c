"""Mask R-CNN on our backbone, and torchvision's class on Transformers'."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from transformers import ConvNextV2Backbone as StockBackbone
from transformers import ConvNextV2Config as StockConfig

from hf_convnextv2 import ConvNextV2Config
from hf_convnextv2.configuration_rcnn import ConvNextV2RCNNConfig
from hf_convnextv2.modeling_rcnn import ConvNextV2RCNNForObjectDetection

CLASSES = 80  # of COCO
WIDTH = 256  # of the pyramid
STAGES = ["stage1", "stage2", "stage3", "stage4"]
OBJECTS = 7  # of an image, as in COCO on average


class StockPyramid(nn.Module):
    """Transformers' backbone with torchvision's pyramid."""

    out_channels = WIDTH

    def __init__(self, size: str) -> None:
        super().__init__()
        config = ConvNextV2Config.from_size(size)
        shape: dict[str, Any] = {"hidden_sizes": config.hidden_sizes, "depths": config.depths, "out_features": STAGES}
        self.backbone = StockBackbone(StockConfig(**shape))
        self.neck = FeaturePyramidNetwork(list(self.backbone.channels), WIDTH, LastLevelMaxPool())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(x).feature_maps
        return self.neck(OrderedDict((str(index), map_) for index, map_ in enumerate(maps)))


def our_mask_rcnn(size: str) -> ConvNextV2RCNNForObjectDetection:
    """Mask R-CNN of a size of ConvNeXt V2, for COCO's classes."""
    torch.manual_seed(0)
    backbone = ConvNextV2Config.from_size(size, out_features=STAGES)
    described: dict[str, Any] = {"backbone_config": backbone, "num_labels": CLASSES}
    return ConvNextV2RCNNForObjectDetection(ConvNextV2RCNNConfig(**described))


def torchvisions_mask_rcnn(size: str, image_size: int) -> MaskRCNN:
    """torchvision's class on Transformers' backbone, for square images."""
    torch.manual_seed(0)
    plain: dict[str, Any] = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    return MaskRCNN(StockPyramid(size), CLASSES + 1, min_size=image_size, max_size=image_size, **plain)


def objects_of(batch_size: int, image_size: int, device: str) -> list[dict[str, Tensor]]:
    """Objects at random: `boxes` `(N, 4)` in pixels, `labels` from 0 on and `masks`."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(batch_size):
        sides = (0.05 + 0.4 * torch.rand(OBJECTS, 2, generator=generator)) * image_size
        corners = torch.rand(OBJECTS, 2, generator=generator) * (image_size - sides)
        boxes = torch.cat([corners, corners + sides], dim=1)
        masks = torch.zeros(OBJECTS, image_size, image_size, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        labels = torch.randint(CLASSES, (OBJECTS,), generator=generator)
        found.append({"boxes": boxes.to(device), "labels": labels.to(device), "masks": masks.to(device)})
    return found


def as_detr_labels(objects: list[dict[str, Tensor]], image_size: int) -> list[dict[str, Tensor]]:
    """The same objects as our model takes them."""
    labels = []
    for found in objects:
        first, last = found["boxes"][:, :2], found["boxes"][:, 2:]
        boxes = torch.cat([(first + last) / 2, last - first], dim=1) / image_size
        labels.append({"boxes": boxes, "class_labels": found["labels"], "masks": found["masks"]})
    return labels
