"""Mask R-CNN and Faster R-CNN on a backbone of this package: torchvision's heads in a Transformers model.

GRN computes its statistics over a whole input, so padding beside an image changes its features everywhere: those of
the last stage by 27 % where an image fills a quarter of a padded square. ConvMAE's attention sees padding too. Images
of a batch that differ in size are therefore computed without each other's padding: a batch gives what its images give
one by one. Images of one size are computed at once.

B batch, C channels, H W height and width, N objects of an image, M side of a mask that is relative to its box.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FeaturePyramidNetwork, box_convert
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput, can_return_tuple

from .configuration_convmae import ConvMAEConfig
from .configuration_convnextv2 import ConvNextV2Config
from .configuration_rcnn import ConvNextV2RCNNConfig
from .modeling_convmae import ConvMAEBackbone
from .modeling_convnextv2 import ConvNextV2Backbone
from .rcnn_heads import create_roi_heads, create_rpn, wide

Pyramid = dict[str, Tensor]  # maps `(1, C, H, W)` of an image by the names of torchvision

# By the `model_type` of their configuration.
BACKBONES: dict[str, Any] = {ConvNextV2Config.model_type: ConvNextV2Backbone, ConvMAEConfig.model_type: ConvMAEBackbone}


@dataclass
class ConvNextV2RCNNOutput(ModelOutput):
    """What DETR's models of Transformers return, so that their image processors' `post_process_object_detection` works.

    loss: the mean over the images of the sum of their losses, where labels are given.
    loss_dict: its parts, by torchvision's names.
    logits: `(B, N, num_labels + 1)`, whose softmax is the score of a detection for its class and the rest for "no
        object" (the last); an image with fewer than N detections has only "no object" in the others. None in training.
    pred_boxes: `(B, N, 4)`, centre, width and height relative to the image without padding. None in training.
    pred_masks: `(B, N, M, M)`, the probability of the object in a grid over its box; None without masks.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    pred_masks: Tensor | None = None


class ConvNextV2RCNNForObjectDetection(PreTrainedModel):
    """ConvNeXt V2 or ConvMAE, a feature pyramid (FPN), region proposals (RPN), and heads for boxes and masks."""

    config_class = ConvNextV2RCNNConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    config: ConvNextV2RCNNConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False

    def __init__(self, config: ConvNextV2RCNNConfig):
        super().__init__(config)
        backbone_config: Any = config.backbone_config
        self.backbone = BACKBONES[backbone_config.model_type](backbone_config)
        self.stride: int = backbone_config.strides[-1]
        self.num_labels, width = len(config.id2label or {}), config.fpn_hidden_size
        self.neck = FeaturePyramidNetwork(list(self.backbone.channels), width, LastLevelMaxPool())
        self.rpn = create_rpn(config)
        self.roi_heads = create_roi_heads(config, self.map_strides())
        self.post_init()

    def map_strides(self) -> list[int]:
        """Pixels between the positions of each of the backbone's maps."""
        stages, strides = self.backbone.stage_names[1:], self.backbone.config.strides
        return [strides[stages.index(name)] for name in self.backbone.out_features]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Pyramid and heads as Detectron2 does: normal(0, std) where a layer has an `init_std`, He's uniform
        distribution elsewhere, biases 0. The backbone's own class does the backbone."""
        if not isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            return
        if hasattr(module, "init_std"):
            init.normal_(module.weight, std=module.init_std)  # type: ignore[arg-type]
        else:
            init.kaiming_uniform_(module.weight, a=1)
        if module.bias is not None:
            init.zeros_(module.bias)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        **kwargs: Any,
    ) -> ConvNextV2RCNNOutput:
        """Images `(B, num_channels, H, W)` to detections, and to losses if labels are given.

        Args:
            pixel_mask: `(B, H, W)`, 1 where an image is, 0 in the padding right of it and below; default: no padding.
            labels: for each image `class_labels` `(N,)` int64, `boxes` `(N, 4)` (centre, width and height, relative to
                H and W as DETR's image processors have it), with masks `masks` `(N, H, W)`. Two may be left out: `seed`
                (int), from which the regions for the losses are drawn, and `pixel_boxes` `(N, 4)` (left, top, right,
                bottom in pixels), which take the place of `boxes`: these, relative to a padded batch, are rounded in
                each batch in another way, and anchors that fit an object equally well are taken for it or not.
        """
        if self.training and labels is None:
            raise ValueError("`labels` (=None) must be given in training; `model.eval()` is for detections.")
        height, width = pixel_values.shape[-2:]
        sizes = image_sizes(pixel_mask) if pixel_mask is not None else [(height, width)] * len(pixel_values)
        pyramids = self.pyramids(pixel_values, sizes)
        parts = None
        if labels is not None:
            found = [
                self.losses(pyramid, size, torchvision_target(label, height, width, size))
                for pyramid, size, label in zip(pyramids, sizes, labels, strict=True)
            ]
            parts = {name: torch.stack([losses[name] for losses in found]).mean() for name in found[0]}
        loss = None if parts is None else torch.stack(list(parts.values())).sum()
        if self.training:
            return ConvNextV2RCNNOutput(loss=loss, loss_dict=parts)
        detections = [self.detect(pyramid, size) for pyramid, size in zip(pyramids, sizes, strict=True)]
        return ConvNextV2RCNNOutput(loss=loss, loss_dict=parts, **self.as_queries(detections, sizes))

    def pyramids(self, pixel_values: Tensor, sizes: list[tuple[int, int]]) -> list[Pyramid]:
        """The feature pyramid of each image, which depends on nothing but the image: images whose sizes round up to the
        same multiples of the backbone's stride are computed together."""
        stride = self.stride
        rounded = [(-(-height // stride) * stride, -(-width // stride) * stride) for height, width in sizes]
        found: list[Pyramid] = [{}] * len(sizes)
        for height, width in dict.fromkeys(rounded):
            members = [index for index, size in enumerate(rounded) if size == (height, width)]
            images = take_images(pixel_values, members, [sizes[index] for index in members], (height, width))
            maps = self.backbone(images, return_dict=True).feature_maps
            named = self.neck(OrderedDict((str(index), map_) for index, map_ in enumerate(maps)))
            for place, index in enumerate(members):
                found[index] = {name: wide(map_[place : place + 1]) for name, map_ in named.items()}
        return found

    def losses(self, pyramid: Pyramid, size: tuple[int, int], target: dict[str, Any]) -> dict[str, Tensor]:
        """The losses of an image, by torchvision's names."""
        seed = target.pop("seed", None)
        for part in (self.rpn, self.roi_heads):
            part.fg_bg_sampler.seed = seed  # type: ignore[union-attr]
        with in_mode(self.rpn, True), in_mode(self.roi_heads, True):
            regions, rpn_losses = self.rpn(self.image_list(pyramid, size), pyramid, [target])
            _, losses = self.roi_heads(pyramid, regions, [size], [target])
        return {**losses, **rpn_losses}

    def detect(self, pyramid: Pyramid, size: tuple[int, int]) -> dict[str, Tensor]:
        """The detections of an image: `boxes` `(N, 4)` in its pixels, `labels` from 1 on, `scores` and `masks`."""
        with in_mode(self.rpn, False), in_mode(self.roi_heads, False):
            regions, _ = self.rpn(self.image_list(pyramid, size), pyramid)
            (found,), _ = self.roi_heads(pyramid, regions, [size])
        return found

    def image_list(self, pyramid: Pyramid, size: tuple[int, int]) -> ImageList:
        """The image as torchvision's anchors need it: its size with padding, and without."""
        rows, columns = pyramid["0"].shape[-2:]
        stride = self.map_strides()[0]
        return ImageList(pyramid["0"].new_empty(1, 0, rows * stride, columns * stride), [size])

    def as_queries(self, detections: list[dict[str, Tensor]], sizes: list[tuple[int, int]]) -> dict[str, Tensor | None]:
        """Detections in the form of DETR's outputs."""
        count = max(len(found["scores"]) for found in detections)
        like = detections[0]["boxes"]
        logits = like.new_full((len(detections), count, self.num_labels + 1), -torch.inf)
        logits[..., -1] = 0
        boxes = like.new_zeros(len(detections), count, 4)
        masks = None
        if self.config.use_masks:
            side = detections[0]["masks"].shape[-1]
            masks = like.new_zeros(len(detections), count, side, side)
        for index, (found, (height, width)) in enumerate(zip(detections, sizes, strict=True)):
            scores, number = found["scores"], torch.arange(len(found["scores"]), device=like.device)
            logits[index, number, found["labels"] - 1] = scores.log().to(logits.dtype)
            logits[index, number, -1] = (-scores).log1p().to(logits.dtype)
            whole = like.new_tensor([width, height, width, height])
            boxes[index, : len(number)] = box_convert(found["boxes"], "xyxy", "cxcywh") / whole
            if masks is not None:
                masks[index, : len(number)] = found["masks"][:, 0].to(masks.dtype)
        return {"logits": logits, "pred_boxes": boxes, "pred_masks": masks}

    @staticmethod
    def post_process_instance_segmentation(
        outputs: ConvNextV2RCNNOutput, target_sizes: list[tuple[int, int]], threshold: float = 0.5
    ) -> list[dict[str, Tensor]]:
        """For each image of a size `(height, width)`: `scores` `(N,)`, `labels` `(N,)`, `boxes` `(N, 4)` (left, top,
        right, bottom in pixels) and, with masks, `masks` `(N, height, width)` bool. Masks may overlap."""
        assert outputs.logits is not None and outputs.pred_boxes is not None
        results = []
        for index, (height, width) in enumerate(target_sizes):
            scores, labels = outputs.logits[index].softmax(-1)[:, :-1].max(-1)
            chosen = scores > threshold
            whole = scores.new_tensor([width, height, width, height])
            boxes = box_convert(outputs.pred_boxes[index][chosen], "cxcywh", "xyxy") * whole
            result = {"scores": scores[chosen], "labels": labels[chosen], "boxes": boxes}
            if outputs.pred_masks is not None:
                masks = outputs.pred_masks[index][chosen][:, None]
                result["masks"] = paste_masks_in_image(masks, boxes, (height, width))[:, 0] >= 0.5
            results.append(result)
        return results


def take_images(
    pixel_values: Tensor, members: list[int], sizes: list[tuple[int, int]], padded: tuple[int, int]
) -> Tensor:
    """Some images of a batch, each with its size and then zeros up to the size `padded`."""
    if len(members) == len(pixel_values) and set(sizes) == {pixel_values.shape[-2:]} == {padded}:
        return pixel_values
    parts = []
    for index, (height, width) in zip(members, sizes, strict=True):
        image = pixel_values[index, :, :height, :width]
        parts.append(F.pad(image, (0, padded[1] - width, 0, padded[0] - height)))
    return torch.stack(parts)


def image_sizes(pixel_mask: Tensor) -> list[tuple[int, int]]:
    """Height and width of each image in a padded batch."""
    heights, widths = pixel_mask.any(dim=2).sum(1).tolist(), pixel_mask.any(dim=1).sum(1).tolist()
    return list(zip(heights, widths, strict=True))


def torchvision_target(label: dict[str, Any], height: int, width: int, size: tuple[int, int]) -> dict[str, Any]:
    """The labels of an image as torchvision's heads take them: boxes in pixels, classes from 1 on."""
    boxes = label.get("pixel_boxes")
    if boxes is None:
        whole = label["boxes"].new_tensor([width, height, width, height])
        boxes = box_convert(label["boxes"], "cxcywh", "xyxy") * whole
    target = {"boxes": boxes, "labels": label["class_labels"] + 1}
    if "masks" in label:
        target["masks"] = label["masks"][:, : size[0], : size[1]].to(torch.uint8)
    if "seed" in label:
        target["seed"] = int(label["seed"])
    return target


@contextmanager
def in_mode(part: Any, is_training: bool) -> Iterator[None]:
    """Within the block, torchvision's part computes losses, or detections; it has no layer that depends on the mode."""
    before = part.training
    part.training = is_training
    try:
        yield
    finally:
        part.training = before
