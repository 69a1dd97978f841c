"""The model that answers, told apart by its configuration, and its image processor."""

from typing import Any, Literal, NamedTuple, get_args

import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)

from conversion.detectors import DETECTORS
from conversion.segmenters import convnextv2_supported
from training.console.errors import is_first_process
from training.models.detection import create_detection_processor
from training.models.families import BY_MODEL_TYPE
from training.models.loading import NOTHING, load_pretrained, model_named, stored_config
from training.models.segmentation import SEGMENTERS, create_segmentation_processor
from training.run.stored_models import (
    is_as_stored,
    load_classifier,
    load_dense_processor,
    load_processor,
    load_with_backbone,
)
from training.settings.checks import check
from training.settings.model import ModelSettings

Kind = Literal["classifier", "segmentation model", "detector"]
# By the end of the name of the class that a configuration states.
KINDS: dict[str, Kind] = {
    "ForImageClassification": "classifier",
    "ForImageClassificationWithTeacher": "classifier",
    "ForSemanticSegmentation": "segmentation model",
    "ForObjectDetection": "detector",
}
AUTO_CLASSES: dict[Kind, Any] = {
    "classifier": AutoModelForImageClassification,
    "segmentation model": AutoModelForSemanticSegmentation,
    "detector": AutoModelForObjectDetection,
}


class StoredModel(NamedTuple):
    """A model, what kind it is, and its image processor."""

    kind: Kind
    model: PreTrainedModel
    processor: Any

    @property
    def num_channels(self) -> int:
        """The number of channels of its images."""
        config: Any = self.model.config
        backbone = getattr(config, "backbone_config", None)
        return getattr(config, "num_channels", None) or getattr(backbone, "num_channels", None) or 3


def load_stored_model(settings: ModelSettings, background: str | None) -> StoredModel:
    """Load the model of a folder or Hub id.

    Raises:
        ValueError: if it is none of the three kinds.
    """
    stored = config_of_model(settings)
    kind = kind_of(settings.model_name_or_path or "", stored)
    if not has_our_encoder(stored):
        return load_other(settings, kind, stored)
    if kind == "classifier":
        model: Any = load_classifier(settings, use_ema=False)
        return StoredModel(kind, model, load_processor(settings, background, model))
    create = create_detection_processor if kind == "detector" else create_segmentation_processor
    model = load_dense_model(settings, kind)
    return StoredModel(kind, model, load_dense_processor(settings, background, model, create))


def config_of_model(settings: ModelSettings) -> dict[str, Any]:
    """What config.json of a folder or Hub id says; raises a `ValueError` if there is none of a model."""
    name = settings.model_name_or_path or ""
    stored = stored_config(name, settings.model_revision)
    rule = "be a folder that holds a model, or a model on the Hub, but has no config.json with a `model_type`"
    check("model_name_or_path", name, bool(stored.get("model_type")), rule)
    return stored


def load_dense_model(settings: ModelSettings, kind: Kind) -> PreTrainedModel:
    """Load a segmentation model or a detector with a backbone of this package."""
    if kind == "detector":
        classes = AutoModelForObjectDetection._model_mapping
        return load_with_backbone(settings, False, lambda config: classes[type(config)])
    return load_with_backbone(settings, False, lambda config: SEGMENTERS[config.model_type])


def kind_of(name: str, stored: dict[str, Any]) -> Kind:
    """The kind of a model by its config.json."""
    model_type, classes = stored.get("model_type"), stored.get("architectures") or []
    if model_type in SEGMENTERS:
        return "segmentation model"
    if model_type in DETECTORS and not classes:
        return "detector"
    found: list[Kind] = [kind for ending, kind in KINDS.items() if any(each.endswith(ending) for each in classes)]
    rule = f"hold a {', '.join(get_args(Kind)[:2])} or {get_args(Kind)[2]}, but holds a {what_is(stored)}"
    if model_type in BY_MODEL_TYPE:
        rule += ", which has no answers: train one from it with finetune.py, segment.py or detect.py"
    check("model_name_or_path", name, bool(found), rule)
    return found[0]


def what_is(stored: dict[str, Any]) -> str:
    """The class that a config.json states, or the type."""
    return ", ".join(stored.get("architectures") or [f"model of the type {stored.get('model_type')}"])


def has_our_encoder(stored: dict[str, Any]) -> bool:
    """Whether a model is one of this package, or has a backbone of it."""
    backbone = stored.get("backbone_config") or {}
    return {stored.get("model_type"), backbone.get("model_type")} & set(BY_MODEL_TYPE) != set()


def load_other(settings: ModelSettings, kind: Kind, stored: dict[str, Any]) -> StoredModel:
    """Load a model of Transformers that has nothing of this package, with its image processor."""
    name, revision = settings.model_name_or_path or "", settings.model_revision
    for setting in ("image_size", "num_channels", "image_mean", "image_std"):
        rule = f"not be given for a {what_is(stored)}: only its own image processor is known to fit"
        check(setting, getattr(settings, setting), is_as_stored(settings) or not getattr(settings, setting), rule)
    model_class: Any = SEGMENTERS.get(str(stored.get("model_type")), AUTO_CLASSES[kind])
    with convnextv2_supported():
        arguments: dict[str, Any] = {"revision": revision, "dtype": torch.float32, "trust_remote_code": False}
        model = load_pretrained(model_class, name, NOTHING, **arguments)
    with model_named(name):
        processor = AutoImageProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)
    if kind != "classifier":
        keep_borders(processor)
    return StoredModel(kind, model, processor)


def keep_borders(processor: Any) -> None:
    """Leave a center crop out, and say so: masks and boxes are those of whole images, as MobileViT's are not."""
    if not getattr(processor, "do_center_crop", False):
        return
    processor.do_center_crop = False
    if is_first_process():
        print(f"The center crop of {type(processor).__name__} is left out: answers are on whole images.", flush=True)
