"""Loading a model to apply it as it is stored, and the image processor that belongs to it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel

from conversion.checkpoints import find_repository
from conversion.segmenters import convnextv2_supported
from hf_convnextv2.registration import registered
from training.models.creation import create_processor, stored_processor
from training.models.families import BY_NAME, Classifier, chosen_family
from training.models.loading import NOTHING, Expected, load_pretrained, model_named
from training.models.value_head import answer_in_units
from training.run.checkpoints import averaged_weights
from training.settings.checks import check
from training.settings.labels import REGRESSION
from training.settings.model import ModelSettings


def load_classifier(settings: ModelSettings, use_ema: bool) -> Classifier:
    """Load the classifier of a folder or Hub id. Raises an error for a model without a trained head."""
    name = settings.model_name_or_path or ""
    with model_named(name):
        config = AutoConfig.from_pretrained(name, revision=settings.model_revision, trust_remote_code=False)
    stored = config.architectures or []
    is_classifier = any(architecture.endswith("ForImageClassification") for architecture in stored)
    check("model_name_or_path", name, is_classifier, f"hold an image classifier, not {', '.join(stored)}")
    model = load_weights(chosen_family(settings).classifier, settings, use_ema, NOTHING)
    answer_in_units(model)
    return model


def check_precision(accelerator: Accelerator, model_config: Any) -> None:
    """Raise if a model is to predict values in half precision, which rounds them to three digits."""
    is_whole = accelerator.mixed_precision == "no" or getattr(model_config, "problem_type", None) != REGRESSION
    rule = "be no for regression: half precision rounds the values to three digits"
    check("mixed_precision", accelerator.mixed_precision, is_whole, rule)


def load_with_backbone(settings: ModelSettings, use_ema: bool, class_of: Callable[[Any], Any]) -> PreTrainedModel:
    """Load the model of a folder or Hub id, with a class by its configuration.

    Raises an error for one with another backbone.
    """
    name, revision = settings.model_name_or_path or "", settings.model_revision
    with registered(), convnextv2_supported():
        config: Any = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        backbone = config.backbone_config
        families = [family for family in BY_NAME.values() if isinstance(backbone, family.config)]
        rule = f"have a backbone of the type {' or '.join(BY_NAME)}, not {backbone.model_type}"
        check("model_name_or_path", name, bool(families), rule)
        channels = backbone.num_channels
        fits = settings.num_channels in (None, channels)
        check("num_channels", settings.num_channels, fits, f"be {channels}, the channels of the model")
        stored = replace(settings, num_channels=None)  # not to adapt the weights
        return load_weights(class_of(config), stored, use_ema, NOTHING)


def load_weights(model_class: Any, settings: ModelSettings, use_ema: bool, expected: Expected) -> Any:
    """Create a model of the class with the weights of the folder or Hub id."""
    name = settings.model_name_or_path or ""
    arguments: dict[str, Any] = {"dtype": torch.float32}
    if use_ema:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        stored = {"state_dict": averaged_weights(Path(name)), "config": config}
        model = load_pretrained(model_class, None, expected, **stored, **arguments)
        if settings.num_channels:  # `from_pretrained` adapts only weights read from a folder
            model.set_num_channels(settings.num_channels)
        return model
    if settings.num_channels:
        arguments["num_channels"] = settings.num_channels
    return load_pretrained(model_class, name, expected, revision=settings.model_revision, **arguments)


def load_processor(settings: ModelSettings, background: str | None, model: Any) -> Any:
    """The image processor saved with the model, changed where the settings differ from it.

    For the official repositories, it uses the resize and crop with which their reference accuracies were measured.
    """
    name = settings.model_name_or_path or ""
    checkpoint = find_repository(name)
    if checkpoint is not None:
        model.config.image_size = settings.image_size or checkpoint.image_size
        return create_processor(settings, background, model.config)
    if is_as_stored(settings):
        return stored_image_processor(settings)
    model.config.image_size = settings.image_size or model.config.image_size
    return create_processor(settings, background, model.config, keeps_resize=True)


def load_dense_processor(
    settings: ModelSettings, background: str | None, model: Any, create: Callable[..., Any]
) -> Any:
    """The image processor saved with a model that has a backbone, or another one if the settings change it."""
    if is_as_stored(settings):
        return stored_image_processor(settings)
    backbone = model.config.backbone_config
    backbone.image_size = settings.image_size or backbone.image_size
    return create(settings, background, backbone, model.config.model_type)


def stored_image_processor(settings: ModelSettings) -> Any:
    """The image processor saved with the model; raises a `ValueError` if there is none, or one that is not known."""
    name = settings.model_name_or_path or ""
    rule = "hold a preprocessor_config.json; without one, give `--image_size` to prepare images as ImageNet's"
    with model_named(name):
        check("model_name_or_path", name, bool(stored_processor(settings)), rule)
        return AutoImageProcessor.from_pretrained(name, revision=settings.model_revision, trust_remote_code=False)


def is_as_stored(settings: ModelSettings) -> bool:
    """Whether the settings leave images as the model's own image processor prepares them."""
    return (settings.image_size, settings.num_channels, settings.image_mean, settings.image_std) == (None,) * 4
