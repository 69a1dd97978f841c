"""Transformers' segmentation models on a backbone of this package, with the weights of a pre-trained encoder."""

from collections.abc import Sequence
from typing import Any

from transformers import (
    Mask2FormerImageProcessor,
    MaskFormerImageProcessor,
    PreTrainedModel,
    SegformerImageProcessor,
    UperNetConfig,
)
from transformers.image_utils import PILImageResampling

from conversion.segmenters import convnextv2_supported
from hf_convnextv2.upernet import UperNetForSemanticSegmentation
from training.data.labels import label_maps
from training.data.segmentation.masks import ignored_label
from training.models.backbone import backbone_of, create_backbone
from training.models.creation import image_size_of, processor_overrides
from training.models.families import EncoderConfig
from training.models.universal_segmentation import (
    Mask2FormerForUniversalSegmentation,
    MaskFormerForInstanceSegmentation,
    create_mask2former,
    create_maskformer,
)
from training.settings.checks import check
from training.settings.model import ModelSettings, SegmenterSettings

AUXILIARY_STAGE = 2  # whose features the second head sees, counted from 0
LONGEST_EDGE = 100  # of an image relative to its shorter edge; their image processors need a limit


def create_segmenter(settings: SegmenterSettings, names: Sequence[str]) -> PreTrainedModel:
    """A segmentation model with new heads, on a backbone that is new or has stored weights."""
    backbone = create_backbone(settings)
    labels = label_maps(names)
    with convnextv2_supported():
        model = CREATE[settings.architecture](settings, backbone.config, labels)
    own = backbone_of(model)
    own.load_state_dict(backbone.state_dict())
    if settings.activation_checkpointing:
        own.activation_checkpointing_enable()
    return model


def create_upernet(
    settings: SegmenterSettings, backbone_config: EncoderConfig, labels: dict[str, Any]
) -> UperNetForSemanticSegmentation:
    """UPerNet with new weights; `labels` are the names of the classes for its configuration."""
    has_auxiliary_head = settings.auxiliary_loss_weight > 0
    rule = "be 0 for a backbone of fewer than three stages: the second head sees the third"
    has_stage = len(backbone_config.depths) > AUXILIARY_STAGE
    check("auxiliary_loss_weight", settings.auxiliary_loss_weight, has_stage or not has_auxiliary_head, rule)
    config = UperNetConfig(
        backbone_config=backbone_config,
        hidden_size=settings.decoder_hidden_size,
        use_auxiliary_head=has_auxiliary_head,
        auxiliary_loss_weight=float(settings.auxiliary_loss_weight),
        auxiliary_channels=max(1, settings.decoder_hidden_size // 2),
        loss_ignore_index=ignored_label(len(labels["id2label"])),
        **labels,
    )
    model = UperNetForSemanticSegmentation(config)
    model.loss_alone = True
    return model


# By the name of the architecture, which is also the `model_type` of its configuration.
CREATE = {"upernet": create_upernet, "mask2former": create_mask2former, "maskformer": create_maskformer}
SEGMENTERS: dict[str, type[PreTrainedModel]] = {
    "upernet": UperNetForSemanticSegmentation,
    "mask2former": Mask2FormerForUniversalSegmentation,
    "maskformer": MaskFormerForInstanceSegmentation,
}
PROCESSORS = {"mask2former": Mask2FormerImageProcessor, "maskformer": MaskFormerImageProcessor}


def create_segmentation_processor(
    settings: ModelSettings, background: str | None, backbone_config: EncoderConfig, architecture: str
) -> Any:
    """The image processor that evaluation uses and that is saved with the model.

    It resizes the shorter side to the size of the training crops, and keeps the shape of the image.
    """
    size = image_size_of(backbone_config)
    common = {
        "resample": PILImageResampling.BILINEAR,
        "do_convert_rgb": backbone_config.num_channels == 3,
        "do_reduce_labels": False,
        **processor_overrides(settings, background, backbone_config),
    }
    if architecture == "upernet":
        return SegformerImageProcessor(size={"shortest_edge": size}, default_to_square=False, **common)
    sizes = {"shortest_edge": size, "longest_edge": LONGEST_EDGE * size}
    return PROCESSORS[architecture](size=sizes, size_divisor=0, **common)
