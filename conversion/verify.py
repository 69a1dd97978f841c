"""Source and result on the same photograph, each by the library that its layout is for."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ConvNextV2Config as StockConfig

import hf_convnextv2
from conversion.sources import Source
from conversion.state_dicts import MMPRETRAIN, OFFICIAL, OURS, TIMM, Layout
from conversion.weights import Weights, size_of
from hf_convnextv2 import ConvNextV2Config, ConvNextV2ForPreTraining, create_image_processor

# Of the largest value: what rounding explains, in the computation or, where they were cast, of the weights.
TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
FLOAT32_TOLERANCE = 1e-4


def verify(
    source: Source, weights: Weights, layout: Layout, folder: Path, photo: Path | None, cast: torch.dtype | None = None
) -> str:
    """What became of a photograph's logits, or of its last map where there is no head, said in one line.

    Raises:
        ValueError: if they differ by more than float32 explains.
    """
    pixel_values = _pixel_values(_photograph(photo), weights.config)
    result = load_file(folder / "model.safetensors")
    runs, unknown = [], []
    for kind, used, tensors in (("source", weights.layout, source.tensors), ("result", layout, result)):
        try:
            runs.append(_forward(used, _relevant(tensors, used, weights.kind), weights, pixel_values))
        except ImportError as error:
            unknown.append(f"{kind} ({used.name}: {error})")
    if unknown:
        return f"not run: {', '.join(unknown)}"
    difference = (runs[0] - runs[1]).abs().max().item() / max(runs[0].abs().max().item(), 1e-30)
    what = {"classifier": "logits", "encoder": "last map", "fcmae": "painted cells"}[weights.kind]
    said = f"{what} of source and result differ by {difference:.1e} of the largest value"
    is_rounded = cast is not None and any(tensor.dtype != cast for tensor in source.tensors.values())
    allowed = TOLERANCE.get(cast, FLOAT32_TOLERANCE) if is_rounded and cast is not None else FLOAT32_TOLERANCE
    if not difference <= allowed:
        raise ValueError(f"`--verify`: {said}, more than {allowed:.0e}.")
    return said


def _forward(layout: Layout, tensors: Mapping[str, Tensor], weights: Weights, pixel_values: Tensor) -> Tensor:
    """Logits or last map of the model that the tensors are for."""
    runners = {OURS: _transformers, TIMM: _timm, OFFICIAL: _timm, MMPRETRAIN: _mmpretrain}
    if layout.column not in runners:
        raise ImportError("MinkowskiEngine is a library for CUDA alone")
    runner = runners[layout.column]
    with torch.no_grad():
        return runner(layout, tensors, weights)(pixel_values)


def _transformers(layout: Layout, tensors: Mapping[str, Tensor], weights: Weights) -> Callable[[Tensor], Tensor]:
    """Stock Transformers; this package where stock has no such model: FCMAE, and blocks without GRN."""
    config: Any = weights.config
    if weights.kind == "fcmae":
        fcmae = ConvNextV2ForPreTraining(config).eval()
        _load(fcmae, tensors)
        return lambda pixel_values: fcmae(pixel_values, noise=_noise(pixel_values, config)).logits
    library: Any = transformers if config.use_grn else hf_convnextv2
    settings = StockConfig.from_dict(config.to_dict()) if config.use_grn else config
    if weights.kind == "classifier":
        model = library.ConvNextV2ForImageClassification(settings).eval()
        _load(model, tensors)
        return lambda pixel_values: model(pixel_values).logits
    model = library.ConvNextV2Model(settings).eval()
    _load_encoder(model, {name.removeprefix("convnextv2."): t for name, t in tensors.items()}, norm="layernorm.")
    return lambda pixel_values: model(pixel_values).last_hidden_state


def _timm(layout: Layout, tensors: Mapping[str, Tensor], weights: Weights) -> Callable[[Tensor], Tensor]:
    """timm, whose own loader also reads the dense official layout."""
    import timm
    from timm.models.convnext import checkpoint_filter_fn

    config: Any = weights.config
    if config.patch_size != 4 or len(config.depths) != 4 or config.hidden_act != "gelu":
        raise ImportError("timm builds no such model")
    shape: dict[str, Any] = (
        {} if size_of(config) else {"depths": list(config.depths), "dims": list(config.hidden_sizes)}
    )
    classes = config.num_labels if weights.kind == "classifier" else 0
    model: Any = timm.create_model(
        f"convnextv2_{size_of(config) or 'tiny'}",
        num_classes=classes,
        in_chans=config.num_channels,
        **shape,
    ).eval()
    if layout.column == OFFICIAL:
        tensors = checkpoint_filter_fn(dict(tensors), model)
    if classes:
        _load(model, tensors)
        return model
    _load_encoder(model, tensors, norm="head.norm.")
    return model.forward_features


def _mmpretrain(layout: Layout, tensors: Mapping[str, Tensor], weights: Weights) -> Callable[[Tensor], Tensor]:
    """mmpretrain's backbone, and its head's linear layer."""
    from mmpretrain.models.backbones.convnext import ConvNeXt  # pyright: ignore[reportMissingImports]

    config: Any = weights.config
    model: Any = ConvNeXt(
        arch={"depths": list(config.depths), "channels": list(config.hidden_sizes)},
        in_channels=config.num_channels,
        stem_patch_size=config.patch_size,
        use_grn=True,
        layer_scale_init_value=0.0,
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


def _load_encoder(model: nn.Module, tensors: Mapping[str, Tensor], norm: str) -> None:
    """Load all but the final norm, which an encoder need not have and its last map does not see."""
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(norm)}
    _load(model, {**own, **tensors})


def _load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load all of them, also where the library would store the same numbers in another rank."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    fits = {
        n: t.reshape(shapes[n]) if n in shapes and t.numel() == shapes[n].numel() else t for n, t in tensors.items()
    }
    try:
        model.load_state_dict(fits)
    except RuntimeError as error:
        raise ValueError(
            f"`--verify`: {type(model).__name__} does not load it: {' '.join(str(error).split())}"
        ) from error


def _relevant(tensors: Mapping[str, Tensor], layout: Layout, kind: str) -> dict[str, Tensor]:
    """In float32, without what the model that is compared has no place for: another's parts, a head, a decoder."""
    dropped = [layout.foreign] if layout.foreign else []
    if kind == "encoder":
        dropped += [r"(head\.(fc\.)?(weight|bias)$|classifier\.|decoder\.)"]
    return {n: t.float() for n, t in tensors.items() if not any(re.match(pattern, n) for pattern in dropped)}


def _noise(pixel_values: Tensor, config: Any) -> Tensor:
    """The same mask for source and result."""
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
