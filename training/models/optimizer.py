"""AdamW's parameter groups (weight decay by layer type, layer-wise learning rates) and the learning-rate schedule."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_with_min_lr_schedule_with_warmup, get_polynomial_decay_schedule_with_warmup

from training.settings.learning import OptimizerSettings

DECAYED_LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
GROUPS_OF_BASE = 12
DecayType = Literal["single", "group", "stage"]
STEM = re.compile(r"(?:^|\.)embeddings\.")  # of the encoder; a decoder may have `query_embeddings`
STAGE = re.compile(r"encoder\.stages\.(\d+)\.(?:downsampling_layer|layers\.(\d+))\.")


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


def layer_id(name: str, depths: list[int], decay_type: DecayType) -> int:
    """The index of a parameter's layer, counted from the input. The head has the index `last_layer_id`.

    single: each block is a layer; the stem and each downsampling layer share the index of the block that follows.
    group (used by the paper for Base and Large): the stem, each stage, and every three blocks of the third stage are a
    layer. As in the official code, the last stage and the head have the indices 12 and 13 in smaller models too, so
    that their lower layers learn as slowly as those of the larger models.
    stage (used by ConvNeXt's first version for UPerNet): all downsampling layers have the index 0, a stage is a layer,
    and the head comes after as many layers as `group` would count.
    """
    stage, block = find_block(name)
    if decay_type == "stage":
        is_downsampling = bool(STEM.search(name)) or (stage is not None and block is None)
        return 0 if is_downsampling else last_layer_id(depths, decay_type) if stage is None else stage + 1
    if stage is None:
        is_stem = bool(STEM.search(name))
        return (1 if decay_type == "single" else 0) if is_stem else last_layer_id(depths, decay_type)
    if decay_type == "single":
        return sum(depths[:stage]) + (block or 0) + 1
    long_stage, last_stage = len(depths) - 2, len(depths) - 1
    if stage == last_stage:
        return last_layer_id(depths, decay_type) - 1
    if block is None:  # downsampling: in the first group of its stage
        return stage + 1
    return stage + 1 + block // 3 if stage == long_stage else stage + 1


def last_layer_id(depths: list[int], decay_type: DecayType) -> int:
    """The index of the final norm and the head, whose learning rate is not reduced."""
    if decay_type == "single":
        return sum(depths) + 1
    groups = ceil(depths[-2] / 3) if len(depths) > 1 else 0
    if decay_type == "stage":
        return len(depths) + groups
    return max(GROUPS_OF_BASE + 1, len(depths) + groups)


def find_block(name: str) -> tuple[int | None, int | None]:
    """Stage and block of a parameter. The stage is None for stem and head, the block is None for downsampling."""
    match = STAGE.search(name)
    if match is None:
        return None, None
    return int(match[1]), None if match[2] is None else int(match[2])


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
) -> AdamW:
    """Create AdamW over the groups. `scale` maps a parameter's name to the factor of its learning rate."""
    groups = parameter_groups(model, learning_rate, settings.weight_decay, decayed, scale)
    return AdamW(groups, lr=learning_rate, betas=(settings.adam_beta1, settings.adam_beta2))


def layer_scale(depths: list[int], decay: float, decay_type: DecayType = "single") -> Callable[[str], float]:
    """The learning-rate factor of a parameter: `decay` to the power of the number of layers between it and the head."""
    last = last_layer_id(depths, decay_type)
    return lambda name: decay ** (last - layer_id(name, depths, decay_type))


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
