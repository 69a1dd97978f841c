"""Detectors on a backbone of this package, and their image processors."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DetrImageProcessor, PreTrainedModel
from transformers.image_utils import PILImageResampling

from hf_convnextv2.configuration_rcnn import ConvNextV2RCNNConfig
from hf_convnextv2.modeling_rcnn import ConvNextV2RCNNForObjectDetection
from training.data.labels import label_maps
from training.evaluation.average_precision import Detections
from training.models.backbone import create_backbone
from training.models.creation import image_size_of, processor_overrides
from training.models.detr import PROCESSORS, create_detr
from training.models.families import EncoderConfig
from training.settings.checks import check
from training.settings.model import RCNN, DetectorSettings, ModelSettings

LOSS_PARTS = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")  # of an R-CNN


def create_detector(settings: DetectorSettings, names: Sequence[str]) -> PreTrainedModel:
    """A detector with new heads, on a backbone that is new or has stored weights."""
    backbone = create_backbone(settings)
    labels = label_maps(names)
    if not is_rcnn(settings):
        model = create_detr(settings, backbone, labels)
    else:
        levels, sizes = len(backbone.channels) + 1, settings.anchor_sizes
        rule = f"be {levels} numbers: one for each stage of the backbone, and one more"
        check("anchor_sizes", sizes, len(sizes) == levels, rule)
        config = ConvNextV2RCNNConfig(
            backbone_config=backbone.config,
            use_masks=has_masks(settings),
            fpn_hidden_size=settings.decoder_hidden_size,
            box_head_size=settings.box_head_size,
            box_batch_size=settings.box_batch_size,
            anchor_sizes=sizes,
            **labels,
        )
        model = ConvNextV2RCNNForObjectDetection(config)
        model.backbone.load_state_dict(backbone.state_dict())
    if settings.activation_checkpointing:
        model.activation_checkpointing_enable()
    return model


def has_masks(settings: DetectorSettings) -> bool:
    """Whether the detector predicts masks."""
    return settings.architecture == "mask_rcnn"


def is_rcnn(settings: DetectorSettings) -> bool:
    """Whether the detector is an R-CNN, with torchvision's heads."""
    return settings.architecture in RCNN


def loss_parts(settings: DetectorSettings) -> list[str]:
    """The names of the losses that the log has beside their sum."""
    if not is_rcnn(settings):
        return []
    return [name for name in LOSS_PARTS if name != "loss_mask" or has_masks(settings)]


def create_detection_processor(
    settings: ModelSettings, background: str | None, backbone_config: EncoderConfig, architecture: str
) -> Any:
    """The image processor that evaluation uses and that is saved with the model.

    For an R-CNN it resizes an image to fit into a square of the size of the training crops, and keeps its shape; for
    Transformers' own detectors it makes the image that square.
    """
    size = image_size_of(backbone_config)
    shape: dict[str, Any] = {"do_convert_rgb": backbone_config.num_channels == 3, "do_normalize": True}
    shape |= processor_overrides(settings, background, backbone_config)
    if architecture in PROCESSORS:
        return PROCESSORS[architecture](size={"height": size, "width": size}, **shape)
    limits = {"max_height": size, "max_width": size}
    return DetrImageProcessor(size=limits, resample=PILImageResampling.BILINEAR, **shape)


def detect_with(
    processor: Any, has_rcnn_outputs: bool, threshold: float = 0.0
) -> Callable[[nn.Module, Tensor, tuple[int, int]], Detections]:
    """The function that gives a model's detections in an image `(C, h, w)` whose original size is `(H, W)`.

    Their scores are above the threshold.
    """
    rcnn = ConvNextV2RCNNForObjectDetection.post_process_instance_segmentation
    post_process: Callable[..., Any] = rcnn if has_rcnn_outputs else processor.post_process_object_detection

    def detect(model: nn.Module, pixel_values: Tensor, size: tuple[int, int]) -> Detections:
        # Transformers' detectors return boxes relative to the image: half precision would round them to 1/256 of it.
        is_on = has_rcnn_outputs and torch.is_autocast_enabled(pixel_values.device.type)
        with torch.autocast(pixel_values.device.type, enabled=is_on):
            outputs = model(pixel_values=pixel_values[None])
        (found,) = post_process(outputs, threshold=threshold, target_sizes=[size])
        masks = found.get("masks")
        masks = None if masks is None else masks.to(torch.uint8)
        return Detections(found["boxes"].float(), found["scores"].float(), found["labels"], masks)

    return detect
