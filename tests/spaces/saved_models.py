"""Small models in folders, as training leaves them, for the tests of the page."""

from pathlib import Path
from typing import Any

from hf_convnextv2 import (
    ConvMAEForPreTraining,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    create_image_processor,
)
from tests.small_models import awake, small_config, small_convmae_config, small_fcmae_config

CLASSES = ("astronaut", "cat", "coffee", "rocket", "brick")


def save_classifier(folder: Path, background: str = "white", **overrides: Any) -> Path:
    """A classifier of five classes, for images of 64 pixels."""
    labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: label for label, name in enumerate(CLASSES)}}
    model = awake(ConvNextV2ForImageClassification(small_config(**labels, **overrides)))
    return _save(model, folder, background)


def save_pretrained(folder: Path, background: str = "white", **overrides: Any) -> Path:
    """An FCMAE model for images of 128 pixels: 16 cells."""
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config(**{"image_size": 128, **overrides})))
    return _save(model, folder, background)


def save_convmae(folder: Path, **overrides: Any) -> Path:
    """A ConvMAE model for images of 64 pixels: 16 cells."""
    return _save(awake(ConvMAEForPreTraining(small_convmae_config(**overrides))), folder, "white")


def _save(model: Any, folder: Path, background: str) -> Path:
    model.save_pretrained(folder)
    create_image_processor(model.config, background=background).save_pretrained(folder)
    return folder
