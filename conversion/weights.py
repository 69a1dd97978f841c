"""What a state dict holds: its layout, the model it belongs to, and every parameter accounted for."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from conversion.state_dicts import Layout, our_name, read, recognise, stored_shape, their_name, write
from hf_convnextv2 import (
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
    ConvNextV2PreTrainedModel,
)
from hf_convnextv2.configuration_convnextv2 import SIZES, as_model_type

MODELS: dict[str, type[ConvNextV2PreTrainedModel]] = {
    "encoder": ConvNextV2Model,
    "classifier": ConvNextV2ForImageClassification,
    "fcmae": ConvNextV2ForPreTraining,
}
FINAL_NORM = ("layernorm.weight", "layernorm.bias")
CONV_MLP_SIZES = ("atto", "femto", "pico", "nano")  # timm builds these with 1x1 convolutions
OFFICIAL_EPS = 1e-6
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_SHOWN = 20


@dataclass
class Weights:
    """A model's parameters under our names, without the prefix `convnextv2.`, and its configuration."""

    kind: str  # a key of MODELS
    tensors: dict[str, Tensor]
    config: ConvNextV2Config
    layout: Layout  # in which they were stored
    notes: list[str]  # what was left out or added on purpose

    @property
    def dtype(self) -> torch.dtype:
        """The type of most of the parameters."""
        return Counter(tensor.dtype for tensor in self.tensors.values()).most_common(1)[0][0]


def understand(stored: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> Weights:
    """A stored state dict as weights of one of our models; nothing is copied but what is stored in another order.

    Args:
        settings: the configuration stored beside it (a `config.json`), or single fields of one; what is not given
            follows from the tensors.

    Raises:
        ValueError: for another model's weights, and for a missing, unexpected or misshapen parameter, with the names.
    """
    layout = recognise(stored)
    foreign = [name for name in stored if layout.foreign and re.match(layout.foreign, name)]
    kept = {name: tensor for name, tensor in stored.items() if name not in set(foreign)}
    num_stages = _num_stages(kept)
    found = {name: our_name(name, layout, num_stages) for name in kept}
    tensors = {ours: kept[name] for name, ours in found.items() if ours is not None}
    twice = [name for name, ours in found.items() if ours is not None and tensors[ours] is not kept[name]]
    if twice:
        raise ValueError(
            f"The source (layout {layout.name}) must hold each parameter once, but has {_listed(twice)} twice."
        )
    odd = [name for name, tensor in tensors.items() if tensor.dtype not in DTYPES or tensor.layout != torch.strided]
    if odd:
        kinds = ", ".join(sorted({str(tensors[name].dtype) for name in odd}))
        raise ValueError(
            f"The source must hold dense numbers of a floating type, but {_listed(odd)} are not ({kinds})."
        )
    kind = _kind(tensors)
    config = _config(kind, tensors, layout, dict(settings or {}))
    expected = parameter_shapes(kind, config)
    if kind == "encoder" and not any(name in tensors for name in FINAL_NORM):
        expected = {name: shape for name, shape in expected.items() if name not in FINAL_NORM}
    as_read = {name: read(tensors[name], name, layout, expected[name]) for name in expected if name in tensors}
    complete = {name: tensor for name, tensor in as_read.items() if tensor is not None}
    unexpected = [name for name, ours in found.items() if ours not in expected]
    if unexpected or len(complete) < len(expected):
        is_conv = any(name.endswith("mlp.fc1.weight") and tensor.ndim == 4 for name, tensor in kept.items())
        shapes = {name: stored_shape(name, shape, layout, is_conv) for name, shape in expected.items()}
        theirs = {name: their_name(name, layout, num_stages, kind == "encoder") or name for name in expected}
        theirs |= {ours: name for name, ours in found.items() if ours is not None}
        faults = {
            "missing": [f"{theirs[name]} {shapes[name]}" for name in expected if name not in tensors],
            "unexpected": unexpected,
            "of the wrong shape": [
                f"{theirs[name]} {tuple(tensors[name].shape)} instead of {shapes[name]}"
                for name, tensor in as_read.items()
                if tensor is None
            ],
        }
        said = "; ".join(f"{len(names)} {fault}: {_listed(names)}" for fault, names in faults.items() if names)
        raise ValueError(f"The source (layout {layout.name}, {kind}, {describe(config)}) does not fit: {said}.")
    notes = [f"left out: {_listed(foreign)}, which no model here has"] if foreign else []
    return Weights(kind, complete, config, layout, notes)


def with_final_norm(weights: Weights) -> Weights:
    """An encoder with the LayerNorm after pooling: where it was not stored, a new one, which changes nothing yet."""
    if weights.kind != "encoder" or FINAL_NORM[0] in weights.tensors:
        return weights
    dim, dtype = weights.config.hidden_sizes[-1], weights.dtype
    norm = {FINAL_NORM[0]: torch.ones(dim, dtype=dtype), FINAL_NORM[1]: torch.zeros(dim, dtype=dtype)}
    note = "added: `layernorm` (weight 1, bias 0), which the source does not have: no one has trained it"
    return Weights(weights.kind, {**weights.tensors, **norm}, weights.config, weights.layout, [*weights.notes, note])


def encoder_of(weights: Weights) -> Weights:
    """The encoder alone, of a pre-training model without its decoder, of a classifier without its head."""
    kept = {name: t for name, t in weights.tensors.items() if not name.startswith(("decoder.", "classifier."))}
    left_out = [name for name in weights.tensors if name not in kept]
    fields = as_model_type(weights.config.to_dict(), ConvNextV2Config)
    fields = {name: value for name, value in fields.items() if name not in ("id2label", "label2id", "problem_type")}
    config = ConvNextV2Config.from_dict({**fields, "architectures": [ConvNextV2Model.__name__]})
    note = f"left out: {_listed(left_out)}"
    return Weights("encoder", kept, config, weights.layout, [*weights.notes, note])


def store(weights: Weights, layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """The parameters as the layout stores them, and our names of those that it has no place for."""
    if not weights.config.use_grn and layout.name != "ours":
        raise ValueError(f"`--to` (={layout.name}) must be ours for a model without GRN (`use_grn` is False).")
    num_stages = len(weights.config.depths or ())
    conv_mlp = size_of(weights.config) in CONV_MLP_SIZES
    is_encoder = weights.kind == "encoder"
    stored, left_out = {}, []
    for name, tensor in weights.tensors.items():
        theirs = their_name(name, layout, num_stages, is_encoder)
        if theirs is None:
            left_out.append(name)
        else:
            stored[theirs] = write(tensor, name, layout, conv_mlp)
    return stored, left_out


def parameter_shapes(kind: str, config: ConvNextV2Config) -> dict[str, tuple[int, ...]]:
    """Our names, without prefix, and shapes of all parameters of a model; no memory is taken for them."""
    try:
        with torch.device("meta"):
            model = MODELS[kind](config)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"The configuration beside the weights makes no model: {error}") from error
    return {name.removeprefix("convnextv2."): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def size_of(config: ConvNextV2Config) -> str | None:
    """The name of the published size that the model has, if any."""
    shape = (tuple(config.depths or ()), tuple(config.hidden_sizes or ()))
    return next((name for name, size in SIZES.items() if size == shape), None)


def describe(config: ConvNextV2Config) -> str:
    """The size in words."""
    return size_of(config) or f"depths {list(config.depths or ())} and widths {list(config.hidden_sizes or ())}"


def _num_stages(stored: Mapping[str, Tensor]) -> int:
    """One more than the highest stage that has a block."""
    blocks = (re.search(r"stages\.(\d+)\.(layers\.|blocks\.)?\d+\.", name) for name in stored)
    return 1 + max(int(block[1]) for block in blocks if block)


def _kind(names: Mapping[str, Tensor]) -> str:
    if any(name.startswith("decoder.") for name in names):
        return "fcmae"
    return "classifier" if any(name.startswith("classifier.") for name in names) else "encoder"


def _config(kind: str, tensors: Mapping[str, Tensor], layout: Layout, settings: dict[str, Any]) -> ConvNextV2Config:
    """The configuration that the tensors have; where one was stored beside them, that one, which they must fit."""
    config_class = MODELS[kind].config_class
    if "model_type" not in settings:
        # Transformers' own default of the final norm's epsilon is 1e-12.
        settings = {"layer_norm_eps": OFFICIAL_EPS, **_inferred(kind, tensors), **settings}
    settings["architectures"] = [MODELS[kind].__name__]
    try:
        return config_class.from_dict(as_model_type(settings, config_class))
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"The configuration beside the weights is not valid: {' '.join(str(error).split())}"
        ) from error


def _inferred(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Depths, widths, channels, classes: what the names and shapes say, the most of them where one is wrong."""
    depths, widths = defaultdict[int, int](int), defaultdict[int, list[int]](list)
    decoder_depth, decoder_widths = 1, [tensors[n].numel() for n in ("decoder.mask_token",) if n in tensors]
    # Vectors as wide as the stage: four in each block.
    vector = r"(encoder\.stages\.(\d+)|decoder)\.layers\.(\d+)\.(layernorm\.weight|(dwconv|layernorm|pwconv2)\.bias)"
    for found in filter(None, (re.match(vector, name) for name in tensors)):
        depth, width = 1 + int(found[3]), tensors[found.string].numel()
        if found[2] is None:
            decoder_depth = max(decoder_depth, depth)
            decoder_widths.append(width)
        else:
            depths[int(found[2])] = max(depths[int(found[2])], depth)
            widths[int(found[2])].append(width)
    stages = range(1 + max(depths, default=0))
    hidden_sizes = [_most_common(widths[stage]) for stage in stages]
    settings: dict[str, Any] = {"depths": [max(1, depths[stage]) for stage in stages], "hidden_sizes": hidden_sizes}
    stem = tensors.get("embeddings.patch_embeddings.weight")
    if stem is not None and stem.ndim == 4:
        sides = tuple(stem.shape[2:])
        settings |= {"num_channels": stem.shape[1], "patch_size": sides[0] if sides[0] == sides[1] else list(sides)}
    if kind == "classifier":
        fits = {"classifier.weight": (2, hidden_sizes[-1]), "classifier.bias": (1, None)}
        heads = [
            len(t) for n, t in tensors.items() if n in fits and (t.ndim, t.shape[1] if t.ndim > 1 else None) == fits[n]
        ]
        settings["num_labels"] = _most_common(heads)
    if kind == "fcmae":
        settings |= {"decoder_num_hidden_layers": decoder_depth, "decoder_hidden_size": _most_common(decoder_widths)}
    return settings


def _most_common(numbers: list[int]) -> int:
    return Counter(numbers or [1]).most_common(1)[0][0]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more
