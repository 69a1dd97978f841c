"""AdamW's parameter groups by weight decay and learning rate, and the learning-rate schedule."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_with_min_lr_schedule_with_warmup, get_polynomial_decay_schedule_with_warmup

from training.models.averages import SHARDED
from training.settings.learning import OptimizerSettings

DECAYED_LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def decayed_parameters(model: nn.Module, decay_grn_and_mask_token: bool = False) -> set[str]:
    """Names of the parameters with weight decay: the weights of linear and convolution layers.

    The official pre-training code decays every parameter that is not a vector, which adds GRN and the mask token.
    """
    if decay_grn_and_mask_token:
        return {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    modules = dict(model.named_modules())
    layers = {f"{name}.weight" for name, module in modules.items() if isinstance(module, DECAYED_LAYERS)}
    attentions = (name for name, module in modules.items() if isinstance(module, nn.MultiheadAttention))
    return layers | {f"{name}.in_proj_weight" for name in attentions}  # the weights of three linear layers in one


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, decayed: set[str], scale: Callable[[str], float]
) -> list[dict[str, Any]]:
    """AdamW's parameter groups, by learning-rate factor and decay. Each trainable parameter is in exactly one group."""
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        key = (scale(name), name in decayed)
        settings = {"lr": learning_rate * key[0], "lr_scale": key[0], "weight_decay": weight_decay * key[1]}
        groups.setdefault(key, {"params": [], **settings})["params"].append(parameter)
    grouped = [id(parameter) for group in groups.values() for parameter in group["params"]]
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(grouped) == len(trainable) and set(grouped) == trainable
    return list(groups.values())


def create_optimizer(
    model: nn.Module,
    settings: OptimizerSettings,
    learning_rate: float,
    decayed: set[str],
    scale: Callable[[str], float] = lambda name: 1.0,
    fused: bool | None = None,
) -> AdamW:
    """Create AdamW over the groups.

    Args:
        scale: maps a parameter's name to the factor of its learning rate.
        fused: as AdamW takes it.
    """
    groups = parameter_groups(model, learning_rate, settings.weight_decay, decayed, scale)
    return AdamW(groups, lr=learning_rate, betas=(settings.adam_beta1, settings.adam_beta2), fused=fused)


def can_fuse(accelerator: Accelerator) -> bool | None:
    """Whether AdamW is told to fuse its operations, or chooses itself (None).

    On a CPU it does not choose to, and goes over memory a dozen times. On a GPU, a fused step would hide from
    Accelerate that the scaler of fp16 has left it out. A fused step rounds a part of a weight unlike the whole one.
    """
    is_fused = accelerator.device.type == "cpu" and accelerator.distributed_type not in SHARDED
    return True if is_fused else None


@contextmanager
def keep_settings(optimizer: torch.optim.Optimizer, schedule: LambdaLR) -> Iterator[None]:
    """Within the block, loading a checkpoint restores moments and step, but not learning rates, decay and betas."""
    groups = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
    base_rates = list(schedule.base_lrs)
    yield
    schedule.base_lrs = base_rates
    schedule._last_lr = [  # by the schedule's own formula
        rate * factor(schedule.last_epoch) for rate, factor in zip(base_rates, schedule.lr_lambdas, strict=True)
    ]
    for group, settings, rate in zip(optimizer.param_groups, groups, schedule._last_lr, strict=True):
        group |= {**settings, "lr": rate}


def create_schedule(
    optimizer: torch.optim.Optimizer,
    learning_rate: float,
    min_learning_rate: float,
    warmup_steps: int,
    max_steps: int,
    kind: Literal["cosine", "polynomial", "step"] = "cosine",
    lr_steps: Sequence[int] = (),
) -> LambdaLR:
    """Linear warm-up from 0, then a decay; both are scaled with each group's learning rate.

    cosine, polynomial (of power 1): to the minimum at `max_steps`.
    step: a tenth after each of `lr_steps`.
    """
    if kind == "cosine":
        minimum = min_learning_rate / learning_rate
        return get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup_steps, max_steps, min_lr_rate=minimum)
    if kind == "polynomial":
        return get_polynomial_decay_schedule_with_warmup(optimizer, warmup_steps, max_steps, lr_end=min_learning_rate)
    return LambdaLR(optimizer, lambda step: min(1, step / max(1, warmup_steps)) * 0.1 ** bisect_right(lr_steps, step))
