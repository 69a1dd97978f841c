"""Layer-wise learning rates: which layer a parameter belongs to, counted from the input, by the rule of each family."""

import re
from collections.abc import Callable
from math import ceil
from typing import NamedTuple

from training.settings.checks import check
from training.settings.learning import DecayType

GROUPS_OF_BASE = 12
STEM = re.compile(r"(?:^|\.)embeddings\.")  # of the encoder; a decoder may have `query_embeddings`
STAGE = re.compile(r"encoder\.stages\.(\d+)\.(?:downsampling_layer|layers\.(\d+))\.")
CONVMAE_STAGE = re.compile(r"encoder\.stages\.(\d+)\.(?:layers\.(\d+)\.)?")


class LayerRule(NamedTuple):
    """How a family counts the layers of an encoder of certain depths: that of a parameter, and that of the head."""

    layer_id: Callable[[str, list[int], DecayType], int]
    last_layer_id: Callable[[list[int], DecayType], int]


def layer_id(name: str, depths: list[int], decay_type: DecayType) -> int:
    """The index of a parameter's layer, counted from the input. The head has the index `last_layer_id`.

    single: each block is a layer; the stem and each downsampling layer share the index of the block that follows.
    group (used by the paper for Base and Large): the stem, each stage, and every three blocks of the third stage are a
    layer. As in the official code, the last stage and the head have the indices 12 and 13 in smaller models too, so
    that their lower layers learn as slowly as those of the larger models.
    group_v1 (used by ConvNeXt's first version for detection): the same layers, but with the next indices for the last
    stage and the head: 6 and 7 in a model of tiny's depths, and 12 and 13 from 27 blocks in the third stage on.
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
    last = len(depths) + (ceil(depths[-2] / 3) if len(depths) > 1 else 0)
    return max(GROUPS_OF_BASE + 1, last) if decay_type == "group" else last


def find_block(name: str) -> tuple[int | None, int | None]:
    """Stage and block of a parameter. The stage is None for stem and head, the block is None for downsampling."""
    match = STAGE.search(name)
    if match is None:
        return None, None
    return int(match[1]), None if match[2] is None else int(match[2])


def convmae_layer_id(name: str, depths: list[int], decay_type: DecayType) -> int:
    """The index of a parameter's layer in a ConvMAE, as in the official code.

    Both stages of convolutions, all embeddings and those of positions are one layer, and so is each block of the
    transformer.
    """
    stage = CONVMAE_STAGE.search(name)
    if stage is None:
        return 0 if STEM.search(name) else last_convmae_layer_id(depths, decay_type)
    is_block_of_transformer = int(stage[1]) == len(depths) - 1 and stage[2] is not None
    return int(stage[2]) + 1 if is_block_of_transformer else 0


def last_convmae_layer_id(depths: list[int], decay_type: DecayType) -> int:
    """The index of the final norm and the head of a ConvMAE."""
    check(
        "layer_decay_type", decay_type, decay_type == "single", "be single for a ConvMAE, whose layers are its blocks"
    )
    return depths[-1] + 1


CONVNEXTV2_LAYERS = LayerRule(layer_id, last_layer_id)
CONVMAE_LAYERS = LayerRule(convmae_layer_id, last_convmae_layer_id)


def layer_scale(
    depths: list[int], decay: float, decay_type: DecayType = "single", rule: LayerRule = CONVNEXTV2_LAYERS
) -> Callable[[str], float]:
    """The learning-rate factor of a parameter: `decay` to the power of the number of layers between it and the head."""
    if decay == 1:
        return lambda name: 1.0
    last = rule.last_layer_id(depths, decay_type)
    return lambda name: decay ** (last - rule.layer_id(name, depths, decay_type))
