"""What training has to know of each family of models: its classes, and what differs in their structure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from hf_convnextv2 import (
    ConvMAEBackbone,
    ConvMAEConfig,
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvMAEModel,
    ConvNextV2Backbone,
    ConvNextV2Config,
    ConvNextV2FCMAEConfig,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
)
from hf_convnextv2.configuration_convnextv2 import V1_MODEL_TYPE
from training.models.layer_decay import CONVMAE_LAYERS, CONVNEXTV2_LAYERS, LayerRule, layer_scale
from training.models.loading import model_named
from training.settings.checks import check
from training.settings.families import CONVMAE, CONVNEXTV2, FAMILIES
from training.settings.learning import FinetuneOptimizerSettings
from training.settings.model import ModelSettings, TrainedModelSettings

EncoderConfig = ConvNextV2Config | ConvMAEConfig
PreTrainingModel = ConvNextV2ForPreTraining | ConvMAEForPreTraining
Classifier = ConvNextV2ForImageClassification | ConvMAEForImageClassification
Backbone = ConvNextV2Backbone | ConvMAEBackbone


@dataclass(frozen=True)
class Family:
    """The classes of a family, and what training asks of its models.

    name: the setting `model_type`.
    patch_settings: the configuration's settings for patches of the stem of so many pixels a side.
    wide_layer: of a block, the module that returns its widest features: those of the MLP.
    layers: how layer-wise learning rates count the layers.
    other_types: the `model_type` of models of Transformers that have its classes here: ConvNeXt V1.
    """

    name: str
    config: Any
    pretraining_config: Any
    model: Any
    backbone: Any
    classifier: Any
    pretraining: Any
    patch_settings: Callable[[int], dict[str, Any]]
    wide_layer: Callable[[Any], nn.Module]
    layers: LayerRule
    other_types: tuple[str, ...] = ()

    @property
    def model_types(self) -> tuple[str, ...]:
        """The `model_type` of its configurations, and of those of Transformers that it also reads."""
        return self.config.model_type, self.pretraining_config.model_type, *self.other_types


# By the setting `model_type`.
BY_NAME = {
    CONVNEXTV2: Family(
        name=CONVNEXTV2,
        config=ConvNextV2Config,
        pretraining_config=ConvNextV2FCMAEConfig,
        model=ConvNextV2Model,
        backbone=ConvNextV2Backbone,
        classifier=ConvNextV2ForImageClassification,
        pretraining=ConvNextV2ForPreTraining,
        patch_settings=lambda side: {"patch_size": side},
        wide_layer=lambda block: block.grn if block.grn is not None else block.act,
        layers=CONVNEXTV2_LAYERS,
        other_types=(V1_MODEL_TYPE,),
    ),
    CONVMAE: Family(
        name=CONVMAE,
        config=ConvMAEConfig,
        pretraining_config=ConvMAEConfig,
        model=ConvMAEModel,
        backbone=ConvMAEBackbone,
        classifier=ConvMAEForImageClassification,
        pretraining=ConvMAEForPreTraining,
        patch_settings=lambda side: {"patch_sizes": [side, 2, 2]},
        wide_layer=lambda block: block.mlp.act,
        layers=CONVMAE_LAYERS,
    ),
}
BY_MODEL_TYPE = {model_type: family for family in BY_NAME.values() for model_type in family.model_types}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of an encoder, a classifier or a pre-training model."""
    return BY_MODEL_TYPE[config.model_type]


def learning_rate_scale(encoder: EncoderConfig, settings: FinetuneOptimizerSettings) -> Callable[[str], float]:
    """The factor on the learning rate of a parameter; raises for a `layer_decay_type` that the family does not have."""
    rule = family_of(encoder).layers
    return layer_scale(list(encoder.depths), settings.layer_decay, settings.layer_decay_type, rule)


def chosen_family(settings: ModelSettings) -> Family:
    """The family that the settings name, or that of the stored model."""
    asked = settings.model_type if isinstance(settings, TrainedModelSettings) else None
    name = settings.model_name_or_path
    if name is None:
        return BY_NAME[asked or CONVNEXTV2]
    with model_named(name):
        stored = PreTrainedConfig.get_config_dict(name, revision=settings.model_revision or "main")[0]
    kind = str(stored.get("model_type"))
    titles = " or ".join(sizes.title for sizes in FAMILIES.values())
    check("model_name_or_path", name, kind in BY_MODEL_TYPE, f"hold a {titles} model, not one of the type {kind}")
    family = BY_MODEL_TYPE[kind]
    check("model_type", asked, asked in (None, family.name), f"be {family.name}, as `model_name_or_path` ({name}) is")
    return family
