"""The kind and configuration of a model as the names and shapes of its parameters show them."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from conversion.command_line import one_line
from hf_convnextv2 import (
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
    ConvNextV2PreTrainedModel,
)
from hf_convnextv2.configuration_convnextv2 import SIZES, as_model_type

# The kinds of a model, here and in what is printed: the encoder alone, with a head, with the decoder of pre-training.
MODELS: dict[str, type[ConvNextV2PreTrainedModel]] = {
    "encoder": ConvNextV2Model,
    "classifier": ConvNextV2ForImageClassification,
    "fcmae": ConvNextV2ForPreTraining,
}
OFFICIAL_EPS = 1e-6  # of the final norm; Transformers' own default is 1e-12
# Vectors as wide as their stage, four in each block of the encoder or decoder.
BLOCK_VECTOR = re.compile(
    r"(encoder\.stages\.(?P<stage>\d+)|decoder)\.layers\.(?P<block>\d+)\."
    r"(layernorm\.weight|(dwconv|layernorm|pwconv2)\.bias)"
)


def kind_of(names: Iterable[str]) -> str:
    """The kind of model, a key of MODELS, that has parameters of these names of ours."""
    names = list(names)
    if any(name.startswith("decoder.") for name in names):
        return "fcmae"
    return "classifier" if any(name.startswith("classifier.") for name in names) else "encoder"


def config_of(kind: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> ConvNextV2Config:
    """The configuration of a model: as the tensors show it, or, if `settings` are a whole one, that one."""
    config_class = MODELS[kind].config_class
    fields = dict(settings)
    if "model_type" not in fields:
        fields = {"layer_norm_eps": OFFICIAL_EPS, **fields_shown_by(kind, tensors), **fields}
    fields["architectures"] = [MODELS[kind].__name__]
    try:
        return config_class.from_dict(as_model_type(fields, config_class))
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"The configuration beside the weights is not valid: {one_line(error)}") from error


def fields_shown_by(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Depths, widths, channels and classes.

    Where the tensors disagree, because one is wrong, the value that most of them have is taken: the check of all
    shapes then names the wrong one.
    """
    depths, hidden_sizes = _stages(tensors)
    fields: dict[str, Any] = {"depths": depths, "hidden_sizes": hidden_sizes}
    stem = tensors.get("embeddings.patch_embeddings.weight")
    if stem is not None and stem.ndim == 4:
        height, width = stem.shape[2:]
        fields |= {"num_channels": stem.shape[1], "patch_size": height if height == width else [height, width]}
    if kind == "classifier":
        fields["num_labels"] = _num_labels(tensors, hidden_sizes[-1])
    if kind == "fcmae":
        fields |= _decoder(tensors)
    return fields


def size_of(config: ConvNextV2Config) -> str | None:
    """The name of the published size that the model has, if any."""
    shape = (tuple(config.depths or ()), tuple(config.hidden_sizes or ()))
    return next((name for name, size in SIZES.items() if size == shape), None)


def describe_size(config: ConvNextV2Config) -> str:
    """The name of the size, or else depths and widths."""
    return size_of(config) or f"depths {list(config.depths or ())} and widths {list(config.hidden_sizes or ())}"


def _stages(tensors: Mapping[str, Tensor]) -> tuple[list[int], list[int]]:
    """Depth and width of each stage of the encoder."""
    depths, widths = defaultdict[int, int](int), defaultdict[int, list[int]](list)
    for name, tensor in tensors.items():
        vector = BLOCK_VECTOR.match(name)
        if vector and vector["stage"] is not None:
            stage = int(vector["stage"])
            depths[stage] = max(depths[stage], 1 + int(vector["block"]))
            widths[stage].append(tensor.numel())
    stages = range(1 + max(depths, default=0))
    return [max(1, depths[stage]) for stage in stages], [_most_common(widths[stage]) for stage in stages]


def _decoder(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Depth and width of the decoder."""
    depth, widths = 1, []
    if "decoder.mask_token" in tensors:
        widths.append(tensors["decoder.mask_token"].numel())
    for name, tensor in tensors.items():
        vector = BLOCK_VECTOR.match(name)
        if vector and vector["stage"] is None:
            depth = max(depth, 1 + int(vector["block"]))
            widths.append(tensor.numel())
    return {"decoder_num_hidden_layers": depth, "decoder_hidden_size": _most_common(widths)}


def _num_labels(tensors: Mapping[str, Tensor], width: int) -> int:
    """The number of classes of a head that fits the encoder's width."""
    found = []
    for name, tensor in tensors.items():
        is_weight = name == "classifier.weight" and tensor.ndim == 2 and tensor.shape[1] == width
        is_bias = name == "classifier.bias" and tensor.ndim == 1
        if is_weight or is_bias:
            found.append(len(tensor))
    return _most_common(found)


def _most_common(numbers: list[int]) -> int:
    return Counter(numbers or [1]).most_common(1)[0][0]
