"""Settings of a model and its image processor, resolved before training by both training scripts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from transformers.utils.hub import cached_file

from conversion.files import read_json
from hf_convnextv2 import create_image_processor
from hf_convnextv2.configuration_convnextv2 import V1_LAYER_SCALE
from hf_convnextv2.image_processing import imagenet_statistics
from hf_convnextv2.images import DEFAULT_BACKGROUND, background_color
from training.models.families import EncoderConfig, chosen_family
from training.settings.checks import check
from training.settings.data import DataSettings
from training.settings.model import ModelSettings, TrainedModelSettings

Data = TypeVar("Data", bound=DataSettings)
RESIZE = ("crop_pct", "resample")  # of ConvNextImageProcessor
BACKGROUND = "background"  # its name in preprocessor_config.json
SET_BY_WEIGHTS = ("patch_size", "num_stages", "use_grn", "layer_scale_init_value")  # where a model is not new


def load_arguments(settings: TrainedModelSettings) -> dict[str, Any]:
    """Arguments of `from_size` for a new model, or of `from_pretrained` for a stored one. Omits unset settings."""
    given: dict[str, Any] = {"image_size": settings.image_size, "num_channels": settings.num_channels}
    if settings.model_name_or_path is None:
        given |= {name: getattr(settings, name) for name in SET_BY_WEIGHTS if name != "patch_size"}
        if settings.use_grn is False and settings.layer_scale_init_value is None:
            given["layer_scale_init_value"] = V1_LAYER_SCALE
        if settings.patch_size is not None:
            given |= chosen_family(settings).patch_settings(settings.patch_size)
    else:
        for name in SET_BY_WEIGHTS:
            value = getattr(settings, name)
            check(name, value, value is None, "not be given with `model_name_or_path`: it follows from the weights")
        # A checkpoint in half precision is also trained in single precision.
        given |= {"revision": settings.model_revision, "dtype": torch.float32}
    return {name: value for name, value in given.items() if value is not None}


def image_size_of(model_config: EncoderConfig) -> int:
    """Side length in pixels of the square images that the model is trained on."""
    size = model_config.image_size
    if not isinstance(size, int):
        check("image_size", size, size[0] == size[1], "be square for training; give `--image_size`")
        return size[0]
    return size


def with_background(data: Data, settings: ModelSettings) -> Data:
    """The settings with a resolved background for transparent images: as given, else that of the weights, else white.

    Prints a message if the given background differs from the one that the weights were trained with.
    """
    stored = stored_processor(settings).get(BACKGROUND) if settings.model_name_or_path else None
    given = data.background or stored or DEFAULT_BACKGROUND
    differs = stored is not None and background_color(given) != background_color(stored)
    if differs and PartialState().is_main_process:
        print(f"`background` is {given}; {settings.model_name_or_path} was trained with {stored}.", flush=True)
    return replace(data, background=given)


def create_processor(
    settings: ModelSettings, background: str | None, model_config: EncoderConfig, keeps_resize: bool = False
) -> Any:
    """Create the image processor that training uses and saves with the model.

    Mean and standard deviation are those given, else those saved with the initial weights, else ImageNet's. The
    background is saved even by a stock class that does not use it, so that it can be read from the folder. With
    `keeps_resize`, the share of an image that a square keeps and the filter are those saved with the weights.
    """
    overrides = processor_overrides(settings, background, model_config)
    if keeps_resize and is_square(model_config.image_size):
        stored = stored_processor(settings)
        is_alike = str(stored.get("image_processor_type", "")).startswith("ConvNext")
        overrides |= {name: stored[name] for name in RESIZE if is_alike and name in stored}
    return create_image_processor(model_config, **overrides)


def is_square(size: int | Sequence[int]) -> bool:
    """Whether a size of images, a number or height and width, is that of a square."""
    return isinstance(size, int) or size[0] == size[1]


def processor_overrides(settings: ModelSettings, background: str | None, model_config: EncoderConfig) -> dict[str, Any]:
    """The statistics and the background of an image processor: as given, else as stored, else ImageNet's and white."""
    stored = stored_processor(settings) if settings.model_name_or_path else {}
    overrides: dict[str, Any] = {BACKGROUND: background or DEFAULT_BACKGROUND}
    overrides |= imagenet_statistics(model_config.num_channels)
    for name in ("image_mean", "image_std"):
        values = getattr(settings, name)
        if values is None and len(stored.get(name, [])) == model_config.num_channels:
            overrides[name] = stored[name]
        elif values is not None:
            fits = len(values) == model_config.num_channels
            check(name, values, fits, f"have one number for each of the {model_config.num_channels} channels")
            overrides[name] = values
    return overrides


def stored_processor(settings: ModelSettings) -> dict[str, Any]:
    """The image processor's settings from a model's folder or repository. Empty if it has none."""
    file = cached_file(
        settings.model_name_or_path or "",
        "preprocessor_config.json",
        revision=settings.model_revision,
        _raise_exceptions_for_missing_entries=False,
    )
    return {} if file is None else read_json(Path(file))
