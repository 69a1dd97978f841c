"""UPerNet on a ConvNeXt V2 backbone, as Transformers' own class, with the weights of a pre-trained encoder."""

from collections.abc import Sequence
from typing import Any

from transformers import SegformerImageProcessor, UperNetConfig
from transformers.image_utils import PILImageResampling

from hf_convnextv2 import ConvNextV2Backbone, ConvNextV2Config
from hf_convnextv2.upernet import UperNetForSemanticSegmentation
from training.data.segmentation.masks import ignored_label
from training.models.creation import image_size_of, load_arguments, processor_overrides
from training.models.loading import DECODER, FINAL_NORM, HEAD, Expected, load_pretrained
from training.settings.checks import check
from training.settings.model import SegmenterSettings

BACKBONE_NORMS = r"^hidden_states_norms\."  # one for each map that the heads see; pre-training has none
BACKBONE = Expected(new=(BACKBONE_NORMS,), unused=(HEAD, FINAL_NORM, DECODER))
DEFAULT_SIZE = 512  # of a crop, where neither the settings nor the weights say
AUXILIARY_STAGE = 2  # whose features the second head sees, counted from 0


def create_segmenter(settings: SegmenterSettings, names: Sequence[str]) -> UperNetForSemanticSegmentation:
    """UPerNet with new heads, on a backbone that is new or has stored weights."""
    backbone = create_backbone(settings)
    has_auxiliary_head = settings.auxiliary_loss_weight > 0
    config = UperNetConfig(
        backbone_config=backbone.config,
        hidden_size=settings.decoder_hidden_size,
        use_auxiliary_head=has_auxiliary_head,
        auxiliary_loss_weight=float(settings.auxiliary_loss_weight),
        auxiliary_channels=max(1, settings.decoder_hidden_size // 2),
        loss_ignore_index=ignored_label(len(names)),
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
    )
    rule = "be 0 for a backbone of fewer than three stages: the second head sees the third"
    has_stage = len(backbone.channels) > AUXILIARY_STAGE
    check("auxiliary_loss_weight", settings.auxiliary_loss_weight, has_stage or not has_auxiliary_head, rule)
    model = UperNetForSemanticSegmentation(config)
    model.loss_alone = True
    model.backbone.load_state_dict(backbone.state_dict())
    if settings.activation_checkpointing:
        model.backbone.activation_checkpointing_enable()
    return model


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
    settings: SegmenterSettings, background: str | None, backbone_config: ConvNextV2Config
) -> SegformerImageProcessor:
    """The image processor that evaluation uses and that is saved with the model.

    It resizes the shorter side to the size of the training crops, and keeps the shape of the image.
    """
    overrides = processor_overrides(settings, background, backbone_config)
    return SegformerImageProcessor(
        size={"shortest_edge": image_size_of(backbone_config)},
        default_to_square=False,
        resample=PILImageResampling.BILINEAR,
        do_convert_rgb=backbone_config.num_channels == 3,
        do_reduce_labels=False,
        **overrides,
    )
