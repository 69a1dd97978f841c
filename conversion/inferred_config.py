"""The kind and configuration of a model as the names and shapes of its parameters show them.

What those of a ConvNeXt V2 show is here, of a ConvMAE in convmae_config.py.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from conversion import convmae_config
from conversion.command_line import one_line
from conversion.families import CONVMAE, CONVNEXTV2, Family
from conversion.shapes import most_common, num_labels
from hf_convnextv2.configuration_convnextv2 import V1_LAYER_SCALE, as_model_type

MODELS = CONVNEXTV2.models
OFFICIAL_EPS = 1e-6  # of the final norm; Transformers' own default is 1e-12
LAYER_SCALE = ".layer_scale_parameter"
# Vectors as wide as their stage, four in each block of the encoder or decoder.
BLOCK_VECTOR = re.compile(
    r"(encoder\.stages\.(?P<stage>\d+)|decoder)\.layers\.(?P<block>\d+)\."
    r"(layernorm\.weight|(dwconv|layernorm|pwconv2)\.bias)"
)


def kind_of(names: Iterable[str], family: Family = CONVNEXTV2) -> str:
    """The kind of model, a key of the family's models, that has parameters of these names of ours."""
    names = list(names)
    if any(name.startswith("decoder.") for name in names):
        return family.pretraining
    return "classifier" if any(name.startswith("classifier.") for name in names) else "encoder"


def config_of(
    kind: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], family: Family = CONVNEXTV2
) -> Any:
    """The configuration of a model: as the tensors show it, or, if `settings` are a whole one, that one."""
    model_class = family.models[kind]
    fields = dict(settings)
    if "model_type" not in fields:
        fields = _complete(kind, tensors, fields, family)
    fields["architectures"] = [model_class.__name__]
    if family is CONVNEXTV2:
        fields = as_model_type(fields, model_class.config_class)
    try:
        return model_class.config_class.from_dict(fields)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"The configuration beside the weights is not valid: {one_line(error)}") from error


def _complete(kind: str, tensors: Mapping[str, Tensor], fields: dict[str, Any], family: Family) -> dict[str, Any]:
    """Single fields with what the tensors show of the others."""
    if family is CONVMAE:
        shown = {**convmae_config.fields_shown_by(kind, tensors), **fields}
        return convmae_config.with_heads(shown, kind == family.pretraining)
    return {"layer_norm_eps": OFFICIAL_EPS, **fields_shown_by(kind, tensors), **fields}


def fields_shown_by(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Depths, widths, channels and classes, and whether the blocks are ConvNeXt V1's.

    Where the tensors disagree, because one is wrong, the value that most of them have is taken: the check of all
    shapes then names the wrong one.
    """
    depths, hidden_sizes = _stages(tensors)
    fields: dict[str, Any] = {"depths": depths, "hidden_sizes": hidden_sizes}
    if any(name.endswith(LAYER_SCALE) for name in tensors):
        fields |= {"layer_scale_init_value": V1_LAYER_SCALE, "use_grn": any(".grn." in name for name in tensors)}
    stem = tensors.get("embeddings.patch_embeddings.weight")
    if stem is not None and stem.ndim == 4:
        height, width = stem.shape[2:]
        fields |= {"num_channels": stem.shape[1], "patch_size": height if height == width else [height, width]}
    if kind == "classifier":
        fields["num_labels"] = num_labels(tensors, hidden_sizes[-1])
    if kind == "fcmae":
        fields |= _decoder(tensors)
    return fields


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
    return [max(1, depths[stage]) for stage in stages], [most_common(widths[stage]) for stage in stages]


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
    return {"decoder_num_hidden_layers": depth, "decoder_hidden_size": most_common(widths)}
