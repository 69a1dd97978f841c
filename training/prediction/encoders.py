"""The encoder that embeds images, out of any model of this package, and its image processor."""

import json
from typing import Any, NamedTuple

from hf_convnextv2.shared_config import height_and_width
from training.models.backbone import BACKBONE_NORMS, backbone_of
from training.models.creation import create_processor
from training.models.families import BY_MODEL_TYPE, Backbone, chosen_family
from training.models.loading import FEATURES
from training.prediction.models import config_of_model, has_our_encoder, kind_of, load_dense_model, what_is
from training.run.stored_models import load_processor, load_weights
from training.settings.checks import check
from training.settings.families import FAMILIES
from training.settings.model import ModelSettings

ENCODER = FEATURES._replace(unused=(*FEATURES.unused, BACKBONE_NORMS))  # maps are taken before those norms


class StoredEncoder(NamedTuple):
    """An encoder or a backbone, and the image processor that makes its input."""

    model: Any
    processor: Any

    @property
    def num_channels(self) -> int:
        """The number of channels of its images."""
        return self.model.config.num_channels

    @property
    def num_stages(self) -> int:
        """The number of its stages."""
        return len(self.model.encoder.stages)


def load_encoder(settings: ModelSettings, background: str | None) -> StoredEncoder:
    """Load the encoder of a model of any kind, from a folder or Hub id.

    Raises:
        ValueError: if the model has no encoder of this package.
    """
    name, stored = settings.model_name_or_path or "", config_of_model(settings)
    titles = " or ".join(family.title for family in FAMILIES.values())
    rule = f"hold a {titles} model, or a model with such a backbone, not a {what_is(stored)}"
    check("model_name_or_path", name, has_our_encoder(stored), rule)
    if stored["model_type"] in BY_MODEL_TYPE:
        model = load_weights(chosen_family(settings).model, settings, False, ENCODER)
        processor = load_processor(settings, background, model)
    else:
        model = backbone_of(load_dense_model(settings, kind_of(name, stored)))
        processor = square_processor(settings, background, model)
    check_image_size(model)
    return StoredEncoder(model, processor)


def square_processor(settings: ModelSettings, background: str | None, model: Backbone) -> Any:
    """An image processor that makes inputs of one size, which those of segmentation models and detectors do not."""
    model.config.image_size = settings.image_size or model.config.image_size
    return create_processor(settings, background, model.config)


def values_of(processor: Any) -> dict[str, Any]:
    """The values of an image processor, as JSON has them."""
    return json.loads(processor.to_json_string())


def check_image_size(model: Any) -> None:
    """Raise if images are smaller than a position of the last map."""
    size, stride = model.config.image_size, model.config.strides[-1]
    fits = min(height_and_width(size)) >= stride
    check("image_size", size, fits, f"be at least {stride}, the stride of the encoder")
