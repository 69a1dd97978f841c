"""Batches of images of different sizes with their objects."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert

from training.data.samples import Batch, Collator


class DetectionCollator(Collator):
    """Pads the images of a batch to one size, and gives their objects as DETR's models of Transformers take them.

    with_regions: add what an R-CNN draws regions from for its losses.
    """

    def __init__(self, with_regions: bool) -> None:
        super().__init__()
        self.with_regions = with_regions

    def stack(self, samples: list[dict[str, Any]]) -> Batch:
        """`pixel_values` `(B, C, H, W)`, `pixel_mask` `(B, H, W)` int64 (1: image, 0: padding), and `labels`: for each
        image `class_labels` and `boxes` (centre, width, height relative to H and W), and `masks` if there are masks."""
        height, width = (max(sample["pixel_values"].shape[side] for sample in samples) for side in (-2, -1))

        def padded(image: Tensor) -> Tensor:
            return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))

        images = [sample["pixel_values"] for sample in samples]
        mask = [padded(torch.ones(image.shape[-2:], dtype=torch.int64)) for image in images]
        whole, labels = torch.tensor([width, height, width, height]), []
        for sample in samples:
            boxes = box_convert(sample["boxes"], "xyxy", "cxcywh") / whole
            label = {"class_labels": sample["class_labels"], "boxes": boxes}
            if "masks" in sample:
                label["masks"] = padded(sample["masks"])
            if self.with_regions:
                label |= {"seed": sample["region_seed"], "pixel_boxes": sample["boxes"]}
            labels.append(label)
        return {"pixel_values": torch.stack([*map(padded, images)]), "pixel_mask": torch.stack(mask), "labels": labels}
