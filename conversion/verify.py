"""Running source and result on the same photograph, each by the library that its layout is for."""

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ConvNextConfig as StockV1Config
from transformers import ConvNextV2Config as StockConfig

import hf_convnextv2
from conversion import official_convmae
from conversion.checkpoint_reader import StoredCheckpoint
from conversion.command_line import one_line
from conversion.convmae_layouts import CONVMAE_CODE, EASYCV
from conversion.families import CONVMAE
from conversion.layouts import MMPRETRAIN, OFFICIAL, OURS, TIMM, Layout
from conversion.model_weights import ModelWeights
from conversion.timm_models import timm_model
from hf_convnextv2 import ConvNextV2Config, ConvNextV2ForPreTraining, create_image_processor
from hf_convnextv2.shared_config import height_and_width

# Differences that rounding explains, as shares of the largest value: of the weights that were cast to another type, and
# of the computation.
CAST_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
FLOAT32_TOLERANCE = 1e-4
ENCODER_PREFIX = r"^convnext(v2)?\."  # where a head stands beside the encoder
OUTPUTS = {"classifier": "logits", "encoder": "last map", "fcmae": "painted cells", "convmae": "painted tokens"}


def compare_outputs(
    source: StoredCheckpoint,
    weights: ModelWeights,
    layout: Layout,
    folder: Path,
    photo: Path | None,
    cast: torch.dtype | None = None,
) -> str:
    """How much the outputs of source and result differ on a photograph, in one line.

    The outputs are the logits, the last map of a model without a head, or the cells that a pre-training model paints.

    Raises:
        ValueError: if they differ by more than float32 explains, or than the rounding to the type `cast` explains.
    """
    pixel_values = _pixel_values(_photograph(photo), weights.config)
    result = load_file(folder / "model.safetensors")
    outputs, not_run = [], []
    for side, used, tensors in (("source", weights.layout, source.tensors), ("result", layout, result)):
        try:
            outputs.append(_forward(used, _relevant(tensors, used, weights.kind), weights, pixel_values))
        except ImportError as error:
            not_run.append(f"{side} ({used.name}: {error})")
    if not_run:
        return f"not run: {', '.join(not_run)}"
    difference = (outputs[0] - outputs[1]).abs().max().item() / max(outputs[0].abs().max().item(), 1e-30)
    said = f"{OUTPUTS[weights.kind]} of source and result differ by {difference:.1e} of the largest value"
    tolerance = _tolerance(source, cast)
    if not difference <= tolerance:  # also if it is NaN
        raise ValueError(f"`--verify`: {said}, more than {tolerance:.0e}.")
    return said


def _tolerance(source: StoredCheckpoint, cast: torch.dtype | None) -> float:
    """The largest difference that rounding explains."""
    is_rounded = any(tensor.dtype != cast for tensor in source.tensors.values())
    if cast is None or not is_rounded:
        return FLOAT32_TOLERANCE
    return CAST_TOLERANCE.get(cast, FLOAT32_TOLERANCE)


def _forward(layout: Layout, tensors: Mapping[str, Tensor], weights: ModelWeights, pixel_values: Tensor) -> Tensor:
    """Logits or last map of the model that the tensors are for."""
    if layout.library not in RUNNERS:
        raise ImportError("MinkowskiEngine is a library for CUDA alone")
    runner = _convmae if weights.family is CONVMAE and layout.library == OURS else RUNNERS[layout.library]
    with torch.no_grad():
        return runner(layout, tensors, weights)(pixel_values)


def _transformers(layout: Layout, tensors: Mapping[str, Tensor], weights: ModelWeights) -> Callable[[Tensor], Tensor]:
    """Stock Transformers; this package where stock has no such model: FCMAE, and blocks with GRN and LayerScale."""
    config: Any = weights.config
    if weights.kind == "fcmae":
        fcmae = ConvNextV2ForPreTraining(config).eval()
        _load(fcmae, tensors)
        return lambda pixel_values: fcmae(pixel_values, noise=_noise(pixel_values, config)).logits
    library, name, settings = _stock(config)
    if weights.kind == "classifier":
        model = getattr(library, f"{name}ForImageClassification")(settings).eval()
        _load(model, {re.sub(ENCODER_PREFIX, f"{model.base_model_prefix}.", n): t for n, t in tensors.items()})
        return lambda pixel_values: model(pixel_values).logits
    model = getattr(library, f"{name}Model")(settings).eval()
    _load_encoder(model, {re.sub(ENCODER_PREFIX, "", n): t for n, t in tensors.items()}, norm="layernorm.")
    return lambda pixel_values: model(pixel_values).last_hidden_state


def _stock(config: Any) -> tuple[Any, str, Any]:
    """The library that builds the model, with the start of its classes' names and the configuration for them."""
    if config.use_grn and config.has_layer_scale:
        return hf_convnextv2, "ConvNextV2", config
    if config.use_grn:
        return transformers, "ConvNextV2", StockConfig.from_dict(config.to_dict())
    settings = {**config.to_dict(), "layer_scale_init_value": config.layer_scale_init_value}
    return transformers, "ConvNext", StockV1Config.from_dict(settings)


def _convmae(layout: Layout, tensors: Mapping[str, Tensor], weights: ModelWeights) -> Callable[[Tensor], Tensor]:
    """This package's ConvMAE, which sees one set of tokens where it is a pre-training model."""
    config: Any = copy.deepcopy(weights.config)
    config.num_visible_sets, config.mask_ratio, config.cell_size = 1, config.default_mask_ratio, config.target_size
    model: Any = weights.family.models[weights.kind](config).eval()
    if weights.kind == "encoder":
        _load_encoder(model, {n.removeprefix("convmae."): t for n, t in tensors.items()}, norm="layernorm.")
        return lambda pixel_values: model(pixel_values).last_hidden_state
    _load(model, tensors)
    if weights.kind == "classifier":
        return lambda pixel_values: model(pixel_values).logits
    return lambda pixel_values: model(pixel_values, bool_masked_pos=_hidden_tokens(config)).logits


def _official_convmae(
    layout: Layout, tensors: Mapping[str, Tensor], weights: ModelWeights
) -> Callable[[Tensor], Tensor]:
    """The formulas of the official code, which are EasyCV's too, but for the one token that it does not average."""
    config: Any = weights.config
    if config.hidden_act != "gelu" or config.layer_norm_eps != official_convmae.EPS:
        raise ImportError("the official code builds no such model")
    named: Mapping[str, Tensor] = {name.removeprefix(layout.prefix): tensor for name, tensor in tensors.items()}
    named = official_convmae.without_easycv_names(named) if layout.library == EASYCV else named
    heads, decoder_heads = config.num_attention_heads, config.decoder_num_attention_heads
    if weights.kind == "encoder":
        return lambda pixel_values: official_convmae.last_map(named, pixel_values, heads)
    if weights.kind == "classifier":
        return lambda pixel_values: official_convmae.logits(named, pixel_values, heads)
    hidden = _hidden_tokens(config)
    return lambda pixel_values: official_convmae.predicted_tokens(named, pixel_values, hidden, heads, decoder_heads)


def _hidden_tokens(config: Any) -> Tensor:
    """Which tokens are hidden, the same for source and result."""
    height, width = (side // config.target_size for side in height_and_width(config.image_size))
    return official_convmae.hidden_tokens(height * width)


def _timm(layout: Layout, tensors: Mapping[str, Tensor], weights: ModelWeights) -> Callable[[Tensor], Tensor]:
    """timm, whose own loader also reads the dense official layout."""
    import timm
    from timm.models.convnext import checkpoint_filter_fn

    config: Any = weights.config
    if config.patch_size != 4 or len(config.depths) != 4 or config.hidden_act != "gelu":
        raise ImportError("timm builds no such model")
    name, options = timm_model(config)
    num_classes = config.num_labels if weights.kind == "classifier" else 0
    model: Any = timm.create_model(name, num_classes=num_classes, in_chans=config.num_channels, **options).eval()
    if layout.library == OFFICIAL:
        tensors = checkpoint_filter_fn(dict(tensors), model)
    if num_classes:
        _load(model, tensors)
        return model
    _load_encoder(model, tensors, norm="head.norm.")
    return model.forward_features


def _mmpretrain(layout: Layout, tensors: Mapping[str, Tensor], weights: ModelWeights) -> Callable[[Tensor], Tensor]:
    """mmpretrain's backbone, and its head's linear layer."""
    from mmpretrain.models.backbones.convnext import ConvNeXt  # pyright: ignore[reportMissingImports]

    config: Any = weights.config
    model: Any = ConvNeXt(
        arch={"depths": list(config.depths), "channels": list(config.hidden_sizes)},
        in_channels=config.num_channels,
        stem_patch_size=config.patch_size,
        use_grn=config.use_grn,
        layer_scale_init_value=config.layer_scale_init_value,
    )
    model.eval()  # which returns nothing here
    encoder = {n.removeprefix("backbone."): t for n, t in tensors.items() if not n.startswith("head.")}
    _load_encoder(model, encoder, norm=f"norm{len(config.depths) - 1}.")
    if weights.kind == "classifier":
        weight, bias = tensors["head.fc.weight"], tensors["head.fc.bias"]
        return lambda pixel_values: nn.functional.linear(model(pixel_values)[-1], weight, bias)

    def last_map(pixel_values: Tensor) -> Tensor:
        for downsample, stage in zip(model.downsample_layers, model.stages, strict=True):
            pixel_values = stage(downsample(pixel_values))
        return pixel_values

    return last_map


RUNNERS = {
    OURS: _transformers,
    TIMM: _timm,
    OFFICIAL: _timm,
    MMPRETRAIN: _mmpretrain,
    CONVMAE_CODE: _official_convmae,
    EASYCV: _official_convmae,
}


def _load_encoder(model: nn.Module, tensors: Mapping[str, Tensor], norm: str) -> None:
    """Load an encoder; where it has no final norm, the model keeps its own, which the last map does not go through."""
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(norm)}
    _load(model, {**own, **tensors})


def _load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load all tensors, also those that the library would store with the same numbers in another rank."""
    fitting = dict(tensors)
    for name, own in model.state_dict().items():
        if name in fitting and fitting[name].numel() == own.numel():
            fitting[name] = fitting[name].reshape(own.shape)
    try:
        model.load_state_dict(fitting)
    except RuntimeError as error:
        raise ValueError(f"`--verify`: {type(model).__name__} does not load it: {one_line(error)}") from error


def _relevant(tensors: Mapping[str, Tensor], layout: Layout, kind: str) -> dict[str, Tensor]:
    """The tensors in float32, without what the compared model has no place for: a head, a decoder, foreign parts."""
    dropped = [layout.foreign] if layout.foreign else []
    if kind == "encoder":
        dropped.append(r"(head\.(fc\.)?(weight|bias)$|classifier\.|decoder\.)")
    kept = [name for name in tensors if not any(re.match(pattern, name) for pattern in dropped)]
    return {name: tensors[name].float() for name in kept}


def _noise(pixel_values: Tensor, config: Any) -> Tensor:
    """Noise for the mask, the same for source and result."""
    cells = (pixel_values.shape[2] // config.cell_size) * (pixel_values.shape[3] // config.cell_size)
    return torch.rand(1, cells, generator=torch.Generator().manual_seed(0))


def _pixel_values(photograph: Image.Image, config: Any) -> Tensor:
    """The photograph as the model's input; for other than three channels its grey values in each of them."""
    processor = create_image_processor(ConvNextV2Config(image_size=config.image_size))
    pixel_values = processor(photograph, return_tensors="pt").pixel_values
    if config.num_channels == 3:
        return pixel_values
    return pixel_values.mean(1, keepdim=True).repeat(1, config.num_channels, 1, 1)


def _photograph(file: Path | None) -> Image.Image:
    """The photograph asked for, or one that comes with scikit-learn."""
    if file is not None:
        try:
            return Image.open(file).convert("RGB")
        except OSError as error:
            raise ValueError(f"`--verify` (={file}) must be a photograph: {error}") from error
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg"))
