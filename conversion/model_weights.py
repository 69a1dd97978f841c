"""The parameters of a model under our names: made of a state dict of any layout, and stored in any layout again.

Every parameter is accounted for: a missing, unexpected or misshapen one is an error that names it.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.initialization import no_init_weights

from conversion.convmae_layouts import BEFORE_DECODER
from conversion.families import CONVMAE, CONVNEXTV2, Family, describe_size, family_of, size_of
from conversion.inferred_config import config_of, kind_of
from conversion.layout_tables import Layout, our_name, their_name
from conversion.layouts import BLOCKS, LAYOUTS, Shape, read_parameter, recognise_layout, stored_shape, write_parameter
from hf_convnextv2 import ConvNextV2Config
from hf_convnextv2.configuration_convmae import NUM_STAGES
from hf_convnextv2.configuration_convnextv2 import as_model_type

FINAL_NORM = ("layernorm.weight", "layernorm.bias")
CONV_MLP_SIZES = ("atto", "femto", "pico", "nano")  # timm builds these with 1x1 convolutions
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_SHOWN = 20


@dataclass
class ModelWeights:
    """A model's parameters under our names, without the encoder's prefix, and its configuration."""

    kind: str  # a key of the family's models
    tensors: dict[str, Tensor]
    config: Any
    layout: Layout  # in which they were stored
    notes: list[str]  # what was left out or added on purpose

    @property
    def family(self) -> Family:
        """The family of models that it belongs to."""
        return self.layout.family

    @property
    def dtype(self) -> torch.dtype:
        """The type of most of the parameters."""
        return Counter(tensor.dtype for tensor in self.tensors.values()).most_common(1)[0][0]


@dataclass
class NamedTensors:
    """The parameters of a state dict beside our names of them."""

    layout: Layout
    num_stages: int
    stored: dict[str, Tensor]  # by their names
    our_names: dict[str, str | None]  # by their names; None: the layout has no such parameter
    tensors: dict[str, Tensor]  # by our names


def from_state_dict(state_dict: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> ModelWeights:
    """The weights of one of our models; nothing is copied but what is stored in another order.

    Args:
        settings: the configuration stored beside the state dict (a `config.json`), or single fields of one; what is
            not given follows from the tensors.

    Raises:
        ValueError: for another model's weights, and for a missing, unexpected or misshapen parameter, with the names.
    """
    layout = recognise_layout(state_dict)
    foreign = [name for name in state_dict if layout.foreign and re.match(layout.foreign, name)]
    kept = {name: tensor for name, tensor in state_dict.items() if name not in set(foreign)}
    named, of_decoder = _without_lone_parts(_name_tensors(kept, layout))
    _check_numbers({theirs: named.stored[theirs] for theirs, ours in named.our_names.items() if ours is not None})
    kind = kind_of(named.tensors, layout.family)
    known = layout.settings if kind == layout.family.pretraining else {}
    config = config_of(kind, named.tensors, {**known, **(settings or {})}, layout.family)
    expected = parameter_shapes(kind, config)
    if kind == "encoder" and not any(name in named.tensors for name in FINAL_NORM):
        expected = {name: shape for name, shape in expected.items() if name not in FINAL_NORM}
    complete, misshapen = _read_parameters(named, expected)
    unexpected = [theirs for theirs, ours in named.our_names.items() if ours not in expected]
    if unexpected or len(complete) < len(expected):
        faults = _describe_faults(named, expected, unexpected, misshapen, kind == "encoder")
        raise ValueError(f"The source (layout {layout.name}, {kind}, {describe_size(config)}) does not fit: {faults}.")
    left_out = {"no model here has": foreign, "only a decoder sees": of_decoder}
    notes = [f"left out: {_listed(names)}, which {why}" for why, names in left_out.items() if names]
    return ModelWeights(kind, complete, config, layout, notes)


def to_state_dict(weights: ModelWeights, layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """The parameters as the layout stores them, and our names of those that it has no place for."""
    if weights.family is CONVNEXTV2:
        _check_blocks(weights.config, layout)
    num_stages = len(weights.config.depths or ())
    conv_mlp = size_of(weights.config) in CONV_MLP_SIZES
    state_dict, left_out = {}, []
    for name, tensor in weights.tensors.items():
        theirs = their_name(name, layout, num_stages, is_encoder=weights.kind == "encoder")
        if theirs is None:
            left_out.append(name)
        else:
            state_dict[theirs] = write_parameter(tensor, name, layout, conv_mlp)
    return state_dict, left_out


def with_final_norm(weights: ModelWeights) -> ModelWeights:
    """An encoder with the LayerNorm after pooling: where it was not stored, a new one, which changes nothing yet."""
    if weights.kind != "encoder" or FINAL_NORM[0] in weights.tensors:
        return weights
    dim, dtype = weights.config.hidden_sizes[-1], weights.dtype
    norm = {FINAL_NORM[0]: torch.ones(dim, dtype=dtype), FINAL_NORM[1]: torch.zeros(dim, dtype=dtype)}
    note = "added: `layernorm` (weight 1, bias 0), which the source does not have: no one has trained it"
    return replace(weights, tensors={**weights.tensors, **norm}, notes=[*weights.notes, note])


def encoder_of(weights: ModelWeights) -> ModelWeights:
    """The encoder alone: a pre-training model without its decoder, a classifier without its head."""
    kept = {name: t for name, t in weights.tensors.items() if not name.startswith(("decoder.", "classifier."))}
    left_out = [name for name in weights.tensors if name not in kept]
    model_class = weights.family.models["encoder"]
    fields = weights.config.to_dict()
    if weights.family is CONVNEXTV2:
        fields = as_model_type(fields, ConvNextV2Config)
    fields = {name: value for name, value in fields.items() if name not in ("id2label", "label2id", "problem_type")}
    config = model_class.config_class.from_dict({**fields, "architectures": [model_class.__name__]})
    note = f"left out: {_listed(left_out)}"
    return ModelWeights("encoder", kept, config, weights.layout, [*weights.notes, note])


def parameter_shapes(kind: str, config: Any) -> dict[str, Shape]:
    """Our names, without prefix, and shapes of all parameters of a model; no memory is taken for them.

    Fixed position embeddings, which are a buffer, are among them.
    """
    family = family_of(config)
    try:
        with torch.device("meta"), no_init_weights():
            model = family.models[kind](config)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"The configuration beside the weights makes no model: {error}") from error
    return {name.removeprefix(family.prefix): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _check_blocks(config: Any, layout: Layout) -> None:
    """Raise if the library of the layout builds no blocks with GRN and LayerScale, or without, as the model has."""
    found = (config.use_grn, config.has_layer_scale)
    if found in BLOCKS.get(layout.name, (found,)):
        return
    fitting = [
        name for name, each in LAYOUTS.items() if each.family is CONVNEXTV2 and found in BLOCKS.get(name, [found])
    ]
    has = ["with" if each else "without" for each in found]
    raise ValueError(
        f"`--to` (={layout.name}) must be one of {', '.join(fitting)} for a model {has[0]} GRN and {has[1]} LayerScale "
        f"(`use_grn` is {config.use_grn}, `layer_scale_init_value` {config.layer_scale_init_value:g})."
    )


def _name_tensors(stored: dict[str, Tensor], layout: Layout) -> NamedTensors:
    """The stored parameters beside our names; raise if two of them are the same parameter of ours."""
    num_stages = NUM_STAGES if layout.family is CONVMAE else _num_stages(stored)
    our_names = {theirs: our_name(theirs, layout, num_stages) for theirs in stored}
    tensors = {ours: stored[theirs] for theirs, ours in our_names.items() if ours is not None}
    twice = [theirs for theirs, ours in our_names.items() if ours is not None and tensors[ours] is not stored[theirs]]
    if twice:
        raise ValueError(
            f"The source (layout {layout.name}) must hold each parameter once, but has {_listed(twice)} twice."
        )
    return NamedTensors(layout, num_stages, stored, our_names, tensors)


def _without_lone_parts(named: NamedTensors) -> tuple[NamedTensors, list[str]]:
    """Without what only a decoder sees, where there is no decoder; also the stored names of what is left out."""
    of_decoder = [name for name in named.tensors if name.startswith("decoder.")]
    if named.layout.family is not CONVMAE or not all(re.match(BEFORE_DECODER, name) for name in of_decoder):
        return named, []
    left_out = [theirs for theirs, ours in named.our_names.items() if ours in set(of_decoder)]
    our_names = {theirs: ours for theirs, ours in named.our_names.items() if theirs not in left_out}
    tensors = {ours: tensor for ours, tensor in named.tensors.items() if ours not in set(of_decoder)}
    return replace(named, our_names=our_names, tensors=tensors), left_out


def _check_numbers(tensors: dict[str, Tensor]) -> None:
    """Raise unless all, by their names in the source, are dense tensors of a floating type, and finite."""
    odd = [
        name for name, tensor in tensors.items() if tensor.dtype not in FLOAT_DTYPES or tensor.layout != torch.strided
    ]
    if odd:
        kinds = ", ".join(sorted({str(tensors[name].dtype) for name in odd}))
        raise ValueError(
            f"The source must hold dense numbers of a floating type, but {_listed(odd)} are not ({kinds})."
        )
    infinite = [name for name, tensor in tensors.items() if not tensor.is_meta and not tensor.isfinite().all()]
    if infinite:
        raise ValueError(f"The source must hold finite numbers, but {_listed(infinite)} have NaN or infinity in them.")


def _read_parameters(named: NamedTensors, expected: Mapping[str, Shape]) -> tuple[dict[str, Tensor], list[str]]:
    """The expected parameters in our shapes, and the names of those whose stored shape does not fit."""
    complete, misshapen = {}, []
    for name, shape in expected.items():
        if name in named.tensors:
            tensor = read_parameter(named.tensors[name], name, named.layout, shape)
            if tensor is None:
                misshapen.append(name)
            else:
                complete[name] = tensor
    return complete, misshapen


def _describe_faults(
    named: NamedTensors, expected: Mapping[str, Shape], unexpected: list[str], misshapen: list[str], is_encoder: bool
) -> str:
    """What is missing, unexpected or of the wrong shape, by the names under which it is stored."""
    conv_mlp = any(name.endswith("mlp.fc1.weight") and tensor.ndim == 4 for name, tensor in named.stored.items())
    theirs = {name: their_name(name, named.layout, named.num_stages, is_encoder) or name for name in expected}
    theirs |= {ours: name for name, ours in named.our_names.items() if ours is not None}  # as they are really stored
    shapes = {name: stored_shape(name, shape, named.layout, conv_mlp) for name, shape in expected.items()}
    missing = [f"{theirs[name]} {shapes[name]}" for name in expected if name not in named.tensors]
    wrong = [f"{theirs[name]} {tuple(named.tensors[name].shape)} instead of {shapes[name]}" for name in misshapen]
    faults = {"missing": missing, "unexpected": unexpected, "of the wrong shape": wrong}
    return "; ".join(f"{len(names)} {fault}: {_listed(names)}" for fault, names in faults.items() if names)


def _num_stages(stored: Mapping[str, Tensor]) -> int:
    """One more than the highest stage that has a block."""
    blocks = (re.search(r"stages\.(\d+)\.(layers\.|blocks\.)?\d+\.", name) for name in stored)
    return 1 + max(int(block[1]) for block in blocks if block)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more
