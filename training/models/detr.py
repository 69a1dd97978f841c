"""Transformers' own detectors on a backbone of this package, by the name of their type."""

from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from transformers import (
    AutoModelForObjectDetection,
    ConditionalDetrImageProcessor,
    DeformableDetrImageProcessor,
    DetrImageProcessor,
    PreTrainedModel,
    RTDetrImageProcessor,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_convnextv2.registration import registered
from training.models.backbone import backbone_of
from training.models.creation import image_size_of
from training.models.families import Backbone
from training.settings.checks import check
from training.settings.model import DetectorSettings

FEATURE_LEVELS = {"rt_detr": 3, "rt_detr_v2": 3, "d_fine": 3, "deformable_detr": 3, "conditional_detr": 1, "detr": 1}
PROCESSORS: dict[str, Any] = {
    "rt_detr": RTDetrImageProcessor,
    "rt_detr_v2": RTDetrImageProcessor,
    "d_fine": RTDetrImageProcessor,
    "deformable_detr": DeformableDetrImageProcessor,
    "conditional_detr": ConditionalDetrImageProcessor,
    "detr": DetrImageProcessor,
}
MOST_QUERIES = 300  # the default of all three below
HYBRID = ("rt_detr", "rt_detr_v2", "d_fine")  # whose encoder sees the maps at their own widths


def create_detr(settings: DetectorSettings, backbone: Backbone, labels: dict[str, Any]) -> PreTrainedModel:
    """A model of Transformers with this backbone. It sees the last stages."""
    kind, width = settings.architecture, settings.decoder_hidden_size
    levels, stages = FEATURE_LEVELS[kind], backbone.stage_names[1:]
    rule = f"be {levels} or more for `architecture` {kind}"
    check("num_stages", len(stages), len(stages) >= levels, rule)
    divisor = 32 if kind == "deformable_detr" else 8  # groups of its normalisation; heads of the attention
    rule = f"be a multiple of {divisor} for `architecture` {kind}"
    check("decoder_hidden_size", width, width % divisor == 0, rule)
    backbone_config = type(backbone.config).from_dict({**backbone.config.to_dict(), "out_indices": None})
    backbone_config.out_features = stages[-levels:]
    fields: dict[str, Any] = {"backbone_config": backbone_config, "d_model": width, **labels}
    if kind in HYBRID:
        strides = list(backbone.config.strides)[-levels:]
        size = image_size_of(backbone.config)
        sides = [size // stride for stride in strides]
        fits = all(fine == 2 * coarse for fine, coarse in pairwise(sides))
        rule = f"give `architecture` {kind} maps each twice as large as the next, as a multiple of {strides[-1]} does"
        check("image_size", size, fits, rule)
        positions = sum((size // stride) ** 2 for stride in strides)  # of which the best become queries
        fields |= {"num_queries": min(MOST_QUERIES, positions)}
        fields |= {"encoder_in_channels": backbone.config.hidden_sizes[-levels:], "encoder_hidden_dim": width}
        fields |= {"decoder_in_channels": [width] * levels, "feat_strides": strides, "num_feature_levels": levels}
    with registered():  # so that the backbone is this package's
        model = AutoModelForObjectDetection.from_config(CONFIG_MAPPING[kind](**fields))
    own = backbone_of(model)
    kept = {name: value for name, value in backbone.state_dict().items() if name in own.state_dict()}
    own.load_state_dict(kept)
    if kind in HYBRID:
        model.register_forward_hook(keep_denoising_gradient)
    return model


def keep_denoising_gradient(model: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
    """A forward hook that adds 0 times the embeddings of noisy classes to the loss.

    In a batch without objects, Transformers leaves them out. They have no gradient then, and DDP fails because it waits
    for that of each parameter.
    """
    if outputs.loss is not None:
        embeddings: Tensor = model.model.denoising_class_embed.weight  # type: ignore[assignment,union-attr]
        outputs.loss = outputs.loss + 0 * embeddings.sum()
