"""The heads of Mask R-CNN and Faster R-CNN: torchvision's, with the initial weights of Detectron2.

They compute in the dtype of their weights, or of autocast, and return float32 at least: bfloat16 would round a
coordinate of 300 pixels to an even number, and one of 600 to a multiple of 4.
"""

from math import log2
from typing import Any

from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from .configuration_rcnn import ConvNextV2RCNNConfig
from .precision import at_least_float32
from .region_sampling import RegionSampler

NUM_MASK_LAYERS = 4  # convolutions of the mask head, as wide as the pyramid
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # of an object, and the pyramid's level that it is taken from (stride 2 ** 4)


class PyramidRoIAlign(MultiScaleRoIAlign):
    """`MultiScaleRoIAlign` that knows the strides of the maps instead of inferring them from the first image."""

    def __init__(self, strides: list[int], output_size: int) -> None:
        names = [str(level) for level in range(len(strides))]
        super().__init__(names, output_size, sampling_ratio=2)
        self.scales = [1 / stride for stride in strides]
        levels = [int(log2(stride)) for stride in strides]
        self.map_levels = initLevelMapper(levels[0], levels[-1], CANONICAL_SIZE, CANONICAL_LEVEL)


def wide(x: Tensor) -> Tensor:
    """The tensor in float32 at least."""
    return x.to(at_least_float32(x.dtype))


class RegionHead(RPNHead):
    """`RPNHead`: maps to wide objectness and box offsets."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        dtype = self.cls_logits.weight.dtype
        scores, offsets = super().forward([map_.to(dtype) for map_ in x])
        return [*map(wide, scores)], [*map(wide, offsets)]


class BoxHead(TwoMLPHead):
    """`TwoMLPHead` for wide regions."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.fc6.weight.dtype))


class BoxPredictor(FastRCNNPredictor):
    """`FastRCNNPredictor`: wide class scores and box offsets."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, offsets = super().forward(x)
        return wide(scores), wide(offsets)


class MaskHead(MaskRCNNHeads):
    """`MaskRCNNHeads` for wide regions."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(next(self.parameters()).dtype))


class MaskPredictor(MaskRCNNPredictor):
    """`MaskRCNNPredictor`: wide mask scores."""

    def forward(self, input: Tensor) -> Tensor:
        return wide(super().forward(input))


def create_rpn(config: ConvNextV2RCNNConfig) -> RegionProposalNetwork:
    """Region proposals as in torchvision's Faster R-CNN."""
    ratios = tuple(map(float, config.anchor_ratios))
    anchors = AnchorGenerator(tuple((size,) for size in config.anchor_sizes), (ratios,) * len(config.anchor_sizes))
    head = RegionHead(config.fpn_hidden_size, len(ratios))
    for layer in head.modules():
        layer.init_std = 0.01  # type: ignore[assignment]
    top_n = {"training": config.rpn_top_n_train, "testing": config.rpn_top_n_test}
    rpn = RegionProposalNetwork(anchors, head, 0.7, 0.3, config.rpn_batch_size, 0.5, top_n, top_n, 0.7)
    rpn.fg_bg_sampler = RegionSampler(config.rpn_batch_size, 0.5)  # type: ignore[assignment]
    return rpn


def create_roi_heads(config: ConvNextV2RCNNConfig, strides: list[int]) -> RoIHeads:
    """Heads for boxes and masks as in torchvision's Mask R-CNN."""
    width, num_classes = config.fpn_hidden_size, len(config.id2label or {}) + 1
    pool = PyramidRoIAlign(strides, 7)
    box_head = BoxHead(width * 7**2, config.box_head_size)
    predictor = BoxPredictor(config.box_head_size, num_classes)
    thresholds = (config.box_score_threshold, config.box_nms_threshold, config.max_detections)
    arguments: Any = (pool, box_head, predictor, 0.5, 0.5, config.box_batch_size, 0.25, None, *thresholds)
    heads = RoIHeads(*arguments)
    if config.use_masks:
        heads.mask_roi_pool = PyramidRoIAlign(strides, 14)
        heads.mask_head = MaskHead(width, [width] * NUM_MASK_LAYERS, 1)
        heads.mask_predictor = MaskPredictor(width, width, num_classes)
    heads.fg_bg_sampler = RegionSampler(config.box_batch_size, 0.25)  # type: ignore[assignment]
    predictor.cls_score.init_std = 0.01  # type: ignore[assignment]
    predictor.bbox_pred.init_std = 0.001  # type: ignore[assignment]
    if config.use_masks:
        heads.mask_predictor.mask_fcn_logits.init_std = 0.001  # type: ignore[assignment]
    return heads
