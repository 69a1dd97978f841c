"""The configuration of a ConvMAE as the names and shapes of its parameters show it."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from conversion.shapes import most_common, num_labels
from hf_convnextv2.configuration_convmae import CONVMAE_SIZES, NUM_STAGES, ConvMAEConfig

# Vectors as wide as their stage, or as the decoder.
BLOCK_VECTOR = re.compile(
    r"(encoder\.stages\.(?P<stage>\d+)|decoder)\.layers\.(?P<block>\d+)\."
    r"(norm[12]\.(weight|bias)|(conv[12]|attn|attn\.proj|mlp\.fc2)\.bias)"
)
POSITIONS = ("encoder.stages.2.position_embeddings.weight", "decoder.position_embeddings.weight")
WINDOWED_TABLE = "encoder.stages.2.windowed_bias.relative_position_bias_table"
PATCHES = (
    "embeddings.patch_embeddings.weight",
    *(f"encoder.stages.{stage}.patch_embed.proj.weight" for stage in range(1, NUM_STAGES)),
)


def fields_shown_by(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Depths, widths, strides, channels, image size, classes, and windows.

    Where the tensors disagree, because one is wrong, the value that most of them have is taken: the check of all
    shapes then names the wrong one.
    """
    depths, widths = _blocks(tensors)
    stages = range(NUM_STAGES)
    fields: dict[str, Any] = {
        "depths": [max(1, depths[stage]) for stage in stages],
        "hidden_sizes": [most_common(widths[stage]) for stage in stages],
        "patch_sizes": list(_patch_sizes(tensors)),
        "mlp_ratio": _mlp_ratio(tensors),
    }
    stem = tensors.get(PATCHES[0])
    if stem is not None and stem.ndim == 4:
        fields["num_channels"] = stem.shape[1]
    counts = [tensors[name].shape[1] for name in POSITIONS if name in tensors and tensors[name].ndim == 3]
    if counts:
        fields["image_size"] = _side_of_grid(most_common(counts)) * math.prod(fields["patch_sizes"])
    table = tensors.get(WINDOWED_TABLE)
    if table is not None and table.ndim == 2:  # a square of the differences of two places in a window
        side = (math.isqrt(len(table)) + 1) // 2
        fields |= {"window_size": side, "use_relative_position_bias": True, "num_attention_heads": table.shape[1]}
    if kind == "classifier":
        fields["num_labels"] = num_labels(tensors, fields["hidden_sizes"][-1])
    if kind == "convmae":
        if "decoder.mask_token" in tensors:
            widths[None].append(tensors["decoder.mask_token"].numel())
        fields |= {
            "decoder_num_hidden_layers": max(1, depths[None]),
            "decoder_hidden_size": most_common(widths[None]),
        }
    return fields


def _side_of_grid(num_tokens: int) -> int:
    """The side of a square grid, in tokens."""
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise ValueError(
            f"The position embeddings are those of {num_tokens} tokens, which fill no square: give the folder with the "
            "config.json of the model, which says how high and wide its images are."
        )
    return side


def with_heads(fields: dict[str, Any], is_pretraining: bool) -> dict[str, Any]:
    """The fields with the numbers of attention heads, which no parameter shows: those of a known size.

    Raises:
        ValueError: if the size is not known, and they are not given.
    """
    heads = _known_heads(fields["hidden_sizes"], fields.get("decoder_hidden_size"), is_pretraining)
    for name, known in heads.items():
        if fields.setdefault(name, known) is None:
            raise ValueError(
                f"`--{name}` must be given for a ConvMAE of widths {fields['hidden_sizes']}: no parameter shows it."
            )
    return fields


def unshown_heads(config: ConvMAEConfig, is_pretraining: bool) -> list[str]:
    """The settings of attention heads that do not follow from the size of the model."""
    heads = _known_heads(config.hidden_sizes, config.decoder_hidden_size, is_pretraining)
    return [name for name, known in heads.items() if getattr(config, name) != known]


def _known_heads(
    hidden_sizes: Sequence[int], decoder_hidden_size: int | None, is_pretraining: bool
) -> dict[str, int | None]:
    """The numbers of heads of a size of these widths; None where there is no such size."""
    sizes = map(ConvMAEConfig.from_size, CONVMAE_SIZES)
    size = next((size for size in sizes if list(size.hidden_sizes) == list(hidden_sizes)), None)
    heads: dict[str, int | None] = {"num_attention_heads": size.num_attention_heads if size else None}
    if is_pretraining:
        is_known = size is not None and size.decoder_hidden_size == decoder_hidden_size
        heads["decoder_num_attention_heads"] = size.decoder_num_attention_heads if size and is_known else None
    return heads


def _blocks(tensors: Mapping[str, Tensor]) -> tuple[dict[int | None, int], dict[int | None, list[int]]]:
    """Depth, and lengths of the vectors, of each stage and of the decoder, which is None."""
    depths, widths = defaultdict[int | None, int](int), defaultdict[int | None, list[int]](list)
    for name, tensor in tensors.items():
        vector = BLOCK_VECTOR.fullmatch(name)
        if vector:
            stage = None if vector["stage"] is None else int(vector["stage"])
            depths[stage] = max(depths[stage], 1 + int(vector["block"]))
            widths[stage].append(tensor.numel())
    return depths, widths


def _patch_sizes(tensors: Mapping[str, Tensor]) -> Iterator[int]:
    """The stride of each stage; where it does not show, the official model's."""
    for name, official in zip(PATCHES, ConvMAEConfig().patch_sizes, strict=True):
        weight = tensors.get(name)
        yield weight.shape[2] if weight is not None and weight.ndim == 4 else official


def _mlp_ratio(tensors: Mapping[str, Tensor]) -> float:
    """Width of the hidden layer of the MLPs as a multiple of their input's."""
    ratios = []
    for name, tensor in tensors.items():
        inputs = tensors.get(name.replace("fc1", "fc2"))
        if name.endswith("mlp.fc1.bias") and inputs is not None:
            ratios.append(tensor.numel() / inputs.numel())
    ratio = most_common(ratios)
    return int(ratio) if ratio == int(ratio) else ratio
