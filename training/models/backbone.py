"""The encoder of a segmentation model or detector, new or with stored weights."""

from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from conversion.detectors import DETECTORS
from conversion.segmenters import SEGMENTERS
from hf_convnextv2 import ConvNextV2Backbone, ConvNextV2Config
from training.models.creation import image_size_of, load_arguments
from training.models.loading import DECODER, FINAL_NORM, HEAD, Expected, load_pretrained, model_named
from training.settings.checks import check
from training.settings.model import DenseModelSettings

BACKBONE_NORMS = r"^hidden_states_norms\."  # one for each map that the heads see; pre-training has none
BACKBONE = Expected(new=(BACKBONE_NORMS,), unused=(HEAD, FINAL_NORM, DECODER))
DEFAULT_SIZE = 512  # of a crop, where neither the settings nor the weights say


def backbone_of(model: nn.Module) -> ConvNextV2Backbone:
    """The backbone of a model."""
    return next(module for module in model.modules() if isinstance(module, ConvNextV2Backbone))


def create_backbone(settings: DenseModelSettings) -> ConvNextV2Backbone:
    """The encoder with the maps of all its stages, new or with stored weights."""
    arguments = load_arguments(settings)
    if settings.drop_path_rate is not None:
        arguments["drop_path_rate"] = settings.drop_path_rate
    if settings.model_name_or_path is None:
        config = ConvNextV2Config.from_size(settings.model_size, **{"image_size": DEFAULT_SIZE, **arguments})
        config.out_features = config.stage_names[1:]
        backbone = ConvNextV2Backbone(config)
    else:
        refuse_dense_model(settings)
        stages = stage_names_of(settings)
        backbone = load_pretrained(
            ConvNextV2Backbone, settings.model_name_or_path, BACKBONE, out_features=stages, **arguments
        )
    size, cell = image_size_of(backbone.config), backbone.config.cell_size
    rule = "be square for segmentation and detection"
    check("patch_size", backbone.config.patch_size, isinstance(cell, int), rule)
    assert isinstance(cell, int)
    check("image_size", size, size >= cell, f"be at least {cell}, the size of a cell")
    return backbone


def refuse_dense_model(settings: DenseModelSettings) -> None:
    """Raise if the stored model is a segmentation model or a detector: only an encoder's weights are read."""
    name, revision = settings.model_name_or_path or "", settings.model_revision or "main"
    with model_named(name):
        kind = PreTrainedConfig.get_config_dict(name, revision=revision)[0].get("model_type")
    rule = f"hold an encoder, a classifier or a pre-training model, but is a {kind}: give what that one started from"
    check("model_name_or_path", name, kind not in {**SEGMENTERS, **DETECTORS}, rule)


def stage_names_of(settings: DenseModelSettings) -> list[str]:
    """The names of the stages of a stored encoder."""
    name, revision = settings.model_name_or_path or "", settings.model_revision or "main"
    config: Any = ConvNextV2Config.from_pretrained(name, revision=revision)
    return list(config.stage_names[1:])
