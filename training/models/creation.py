"""What both training scripts ask of a model before it is trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedType, PartialState
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from hf_convnextv2 import ConvNextV2Config, create_image_processor
from hf_convnextv2.images import DEFAULT_BACKGROUND, background_color
from training.settings.config import DataConfig, TrainingConfig, check

Model = TypeVar("Model", bound=PreTrainedModel)
Config = TypeVar("Config", bound=DataConfig)
BACKGROUND = "background"  # its name in preprocessor_config.json
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def load_arguments(config: TrainingConfig) -> dict[str, Any]:
    """Arguments of `from_size` for a new model, of `from_pretrained` for a stored one: only what is given."""
    given = {"image_size": config.image_size, "num_channels": config.num_channels}
    if config.model_name_or_path is None:
        given |= {"patch_size": config.patch_size, "num_stages": config.num_stages}
    else:
        for name in ("patch_size", "num_stages"):
            value = getattr(config, name)
            check(name, value, value is None, "not be given with `model_name_or_path`: it follows from the weights")
        # A checkpoint in half precision is trained in single precision all the same.
        given |= {"revision": config.model_revision, "dtype": torch.float32}
    return {name: value for name, value in given.items() if value is not None}


def image_size_of(model_config: ConvNextV2Config) -> int:
    """Side of the square that the model is trained on."""
    size = model_config.image_size
    if not isinstance(size, int):
        check("image_size", size, size[0] == size[1], "be square for training; give `--image_size`")
        return size[0]
    return size


def with_background(config: Config) -> Config:
    """The settings with the background of transparent images: as given, else that of the weights, else white.

    Says so where one is given that is not that of the weights.
    """
    stored = stored_processor(config).get(BACKGROUND) if config.model_name_or_path else None
    given = config.background or stored or DEFAULT_BACKGROUND
    differs = stored is not None and background_color(given) != background_color(stored)
    if differs and PartialState().is_main_process:
        print(f"`background` is {given}; {config.model_name_or_path} was trained with {stored}.", flush=True)
    return replace(config, background=given)


def create_processor(config: DataConfig, model_config: ConvNextV2Config) -> Any:
    """The image processor that training follows and that is saved with the model.

    Mean and deviation are those given, else those saved with the weights to start from, else ImageNet's. A stock class
    that does not know the background keeps it all the same: who loads the folder finds it there.
    """
    stored = stored_processor(config) if config.model_name_or_path else {}
    overrides: dict[str, Any] = {BACKGROUND: config.background or DEFAULT_BACKGROUND}
    for name in ("image_mean", "image_std"):
        values = getattr(config, name)
        if values is None and len(stored.get(name, [])) == model_config.num_channels:
            overrides[name] = stored[name]
        elif values is not None:
            fits = len(values) == model_config.num_channels
            check(name, values, fits, f"have one number for each of the {model_config.num_channels} channels")
            overrides[name] = values
    return create_image_processor(model_config, **overrides)


def stored_processor(config: DataConfig) -> dict[str, Any]:
    """The image processor's settings in a model's folder or repository, if it has any."""
    file = cached_file(
        config.model_name_or_path or "",
        "preprocessor_config.json",
        revision=config.model_revision,
        _raise_exceptions_for_missing_entries=False,
    )
    return {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def create_ema(model: nn.Module, decay: float, accelerator: Accelerator) -> AveragedModel | None:
    """An exponential moving average of the weights, if there is to be one; make it before the model is prepared."""
    if not decay:
        return None
    kind = accelerator.distributed_type
    check(
        "ema_decay", decay, kind not in SHARDED, f"be 0 with {kind.value}, which leaves a process parts of the weights"
    )
    return AveragedModel(model.to(accelerator.device), multi_avg_fn=get_ema_multi_avg_fn(decay))


def update_average(ema: AveragedModel | None, model: nn.Module) -> None:
    """Take the weights of the model into the average, if there is one."""
    if ema is not None:
        ema.update_parameters(model)


def final_model(
    model_class: type[Model], accelerator: Accelerator, trained: nn.Module, ema: AveragedModel | None
) -> Model:
    """What a run saves: the averaged weights, or the trained ones, gathered where they are spread over processes.

    To be called in every process; the main process gets the whole model.
    """
    if ema is not None:
        return ema.module  # type: ignore[return-value]
    unwrapped: Any = accelerator.unwrap_model(trained, keep_fp32_wrapper=False)
    if accelerator.distributed_type not in SHARDED:
        return unwrapped
    weights = accelerator.get_state_dict(trained)
    whole = model_class(unwrapped.config)
    if accelerator.is_main_process:
        whole.load_state_dict(weights)
    return whole.to(accelerator.device)  # type: ignore[arg-type]
