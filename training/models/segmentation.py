"""Transformers' segmentation models on a ConvNeXt V2 backbone, with the weights of a pre-trained encoder."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import (
    Mask2FormerImageProcessor,
    MaskFormerImageProcessor,
    PreTrainedModel,
    SegformerImageProcessor,
    UperNetConfig,
)
from transformers.image_utils import PILImageResampling

from conversion.segmenters import convnextv2_supported
from hf_convnextv2 import ConvNextV2Backbone, ConvNextV2Config
from hf_convnextv2.upernet import UperNetForSemanticSegmentation
from training.data.segmentation.masks import ignored_label
from training.models.creation import image_size_of, load_arguments, processor_overrides
from training.models.loading import DECODER, FINAL_NORM, HEAD, Expected, load_pretrained
from training.models.universal_segmentation import (
    Mask2FormerForUniversalSegmentation,
    MaskFormerForInstanceSegmentation,
    create_mask2former,
    create_maskformer,
)
from training.settings.checks import check
from training.settings.model import ModelSettings, SegmenterSettings

BACKBONE_NORMS = r"^hidden_states_norms\."  # one for each map that the heads see; pre-training has none
BACKBONE = Expected(new=(BACKBONE_NORMS,), unused=(HEAD, FINAL_NORM, DECODER))
DEFAULT_SIZE = 512  # of a crop, where neither the settings nor the weights say
AUXILIARY_STAGE = 2  # whose features the second head sees, counted from 0
LONGEST_EDGE = 100  # of an image relative to its shorter edge; their image processors need a limit


def create_segmenter(settings: SegmenterSettings, names: Sequence[str]) -> PreTrainedModel:
    """A segmentation model with new heads, on a backbone that is new or has stored weights."""
    backbone = create_backbone(settings)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
    with convnextv2_supported():
        model = CREATE[settings.architecture](settings, backbone.config, labels)
    own = backbone_of(model)
    own.load_state_dict(backbone.state_dict())
    if settings.activation_checkpointing:
        own.activation_checkpointing_enable()
    return model


def create_upernet(
    settings: SegmenterSettings, backbone_config: ConvNextV2Config, labels: dict[str, Any]
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


def backbone_of(model: nn.Module) -> ConvNextV2Backbone:
    """The backbone of a model."""
    return next(module for module in model.modules() if isinstance(module, ConvNextV2Backbone))


def create_backbone(settings: SegmenterSettings) -> ConvNextV2Backbone:
    """The encoder with the maps of all its stages, new or with stored weights."""
    arguments = load_arguments(settings)
    if settings.drop_path_rate is not None:
        arguments["drop_path_rate"] = settings.drop_path_rate
    if settings.model_name_or_path is None:
        config = ConvNextV2Config.from_size(settings.model_size, **{"image_size": DEFAULT_SIZE, **arguments})
        config.out_features = config.stage_names[1:]
        backbone = ConvNextV2Backbone(config)
    else:
        stages = stage_names_of(settings)
        backbone = load_pretrained(
            ConvNextV2Backbone, settings.model_name_or_path, BACKBONE, out_features=stages, **arguments
        )
    size, cell = image_size_of(backbone.config), backbone.config.cell_size
    assert isinstance(cell, int)
    check("image_size", size, size >= cell, f"be at least {cell}, the size of a cell")
    return backbone


def stage_names_of(settings: SegmenterSettings) -> list[str]:
    """The names of the stages of a stored encoder."""
    name, revision = settings.model_name_or_path or "", settings.model_revision or "main"
    config: Any = ConvNextV2Config.from_pretrained(name, revision=revision)
    return list(config.stage_names[1:])


def create_segmentation_processor(
    settings: ModelSettings, background: str | None, backbone_config: ConvNextV2Config, architecture: str
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
