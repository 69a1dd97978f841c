"""The encoder of a segmentation model or detector, new or with stored weights."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from conversion.detectors import DETECTORS
from conversion.segmenters import SEGMENTERS
from training.models.creation import image_size_of, load_arguments
from training.models.families import BY_NAME, Backbone, Family, chosen_family
from training.models.loading import DECODER, FINAL_NORM, HEAD, Expected, load_pretrained, model_named
from training.settings.checks import check
from training.settings.families import check_family
from training.settings.model import DenseModelSettings

BACKBONE_NORMS = r"^hidden_states_norms\."  # one for each map that the heads see; pre-training has none
BACKBONE = Expected(new=(BACKBONE_NORMS,), unused=(HEAD, FINAL_NORM, DECODER))
# Settings of the encoder's configuration that also stored weights can be given.
OVERRIDES = ("drop_path_rate", "window_size", "use_relative_position_bias")
DEFAULT_SIZE = 512  # of a crop, where neither the settings nor the weights say


def backbone_of(model: nn.Module) -> Backbone:
    """The backbone of a model."""
    classes = tuple(family.backbone for family in BY_NAME.values())
    modules: Iterator[Any] = model.modules()
    return next(module for module in modules if isinstance(module, classes))


def create_backbone(settings: DenseModelSettings) -> Backbone:
    """The encoder with the maps of all its stages, new or with stored weights."""
    arguments = load_arguments(settings)
    given = {name: getattr(settings, name) for name in OVERRIDES}
    arguments |= {name: value for name, value in given.items() if value is not None}
    if settings.model_name_or_path is None:
        family = chosen_family(settings)
        config = family.config.from_size(settings.model_size, **{"image_size": DEFAULT_SIZE, **arguments})
        config.out_features = config.stage_names[1:]
        backbone = family.backbone(config)
    else:
        refuse_dense_model(settings)
        family, name = chosen_family(settings), settings.model_name_or_path
        check_family(settings, family.name)
        stages = stage_names_of(family, settings)
        backbone = load_pretrained(family.backbone, name, BACKBONE, out_features=stages, **arguments)
    height, width = backbone.config.patch_sides
    check("patch_size", [height, width], height == width, "be square for segmentation and detection")
    size, stride = image_size_of(backbone.config), backbone.config.strides[-1]
    check("image_size", size, size >= stride, f"be at least {stride}, the stride of the encoder")
    return backbone


def num_channels_of(settings: DenseModelSettings) -> int:
    """The number of channels of the images that the encoder takes, before it is created."""
    name, revision = settings.model_name_or_path, settings.model_revision or "main"
    if settings.num_channels is not None or name is None:
        return settings.num_channels or 3
    with model_named(name):
        return PreTrainedConfig.get_config_dict(name, revision=revision)[0].get("num_channels", 3)


def refuse_dense_model(settings: DenseModelSettings) -> None:
    """Raise if the stored model is a segmentation model or a detector: only an encoder's weights are read."""
    name, revision = settings.model_name_or_path or "", settings.model_revision or "main"
    with model_named(name):
        kind = PreTrainedConfig.get_config_dict(name, revision=revision)[0].get("model_type")
    rule = f"hold an encoder, a classifier or a pre-training model, but is a {kind}: give what that one started from"
    check("model_name_or_path", name, kind not in {**SEGMENTERS, **DETECTORS}, rule)


def stage_names_of(family: Family, settings: DenseModelSettings) -> list[str]:
    """The names of the stages of a stored encoder."""
    name, revision = settings.model_name_or_path or "", settings.model_revision or "main"
    config: Any = family.config.from_pretrained(name, revision=revision)
    return list(config.stage_names[1:])
