"""Writing a converted model: configuration, weights, image processor, provenance and card, all or nothing."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import ConvNextConfig as StockV1Config
from transformers import ConvNextV2Config as StockConfig

from conversion.checkpoint_reader import StoredCheckpoint
from conversion.families import CONVMAE
from conversion.files import atomic_path, sha256, write_json
from conversion.layouts import OURS, TIMM, V1_LAYOUT, Layout
from conversion.model_folder import CARD, PROVENANCE
from conversion.model_weights import FINAL_NORM, ModelWeights, to_state_dict
from conversion.publishing.card import write_card
from conversion.publishing.earlier_runs import has_license_of_nobody
from conversion.publishing.licenses import OFFICIAL_LICENSE, OFFICIAL_WEIGHTS, UNKNOWN, read_license, settle_license
from conversion.publishing.pretraining import FROM_FCMAE, is_from_fcmae
from conversion.publishing.publication import Publication
from conversion.publishing.sections.data import describe_data_sets
from conversion.timm_models import timm_model
from hf_convnextv2.shared_config import height_and_width

# Layouts of encoders that have no norm of pooled features.
WITHOUT_NEW_NORM = ("official-fcmae", "convmae-official", "convmae-easycv")
OUR_FIELDS = ("use_grn", "head_init_scale")  # which Transformers' own configuration lacks


def write_folder(
    output: Path,
    weights: ModelWeights,
    layout: Layout,
    processor: Any,
    source: StoredCheckpoint,
    dtype: torch.dtype | None = None,
    license: str | None = None,
    check: Callable[[Path], None] | None = None,
    with_pt: bool = False,
) -> None:
    """Write the folder under another name and move it; an error, also one of `check`, leaves nothing behind."""
    missing = [parent for parent in output.parents if not parent.exists()]
    try:
        with atomic_path(output) as partial:
            partial.mkdir(parents=True)
            write_weights(partial, weights, layout, dtype, with_pt)
            if layout.library == OURS:
                write_config(partial, weights, layout, dtype)
                processor.save_pretrained(partial)
            elif layout.library == TIMM:
                write_json(partial / "config.json", timm_config(weights, processor))
            if check is not None:
                check(partial)
            origin = provenance(weights, source, dtype, license)
            made = {"stored_as": layout.name, "made_sha256": sha256(partial / "model.safetensors")}
            write_json(partial / PROVENANCE, {**origin, **made})
            foreign_config = None if layout.library == OURS else weights.config
            write_card(partial, Publication(repo_id=output.name), foreign_config)
    finally:
        if not output.exists():
            for parent in filter(Path.exists, missing):
                parent.rmdir()


def write_weights(
    folder: Path, weights: ModelWeights, layout: Layout, dtype: torch.dtype | None, with_pt: bool = False
) -> None:
    """`model.safetensors` in the layout, and if asked for `model.pt`; what it has no place for is noted."""
    is_left_out = layout.name in WITHOUT_NEW_NORM and weights.kind == "encoder" and _is_new(weights)
    stored, left_out = to_state_dict(_without_norm(weights) if is_left_out else weights, layout)
    left_out += FINAL_NORM if is_left_out else ()
    if left_out:
        weights.notes.append(f"left out: {', '.join(left_out)}, for which {layout.name} has no place")
    if dtype is not None:
        stored = cast_tensors(stored, dtype)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    if with_pt:
        write_pt(folder / "model.pt", stored, weights, layout)


def cast_tensors(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors in another data type.

    Raises:
        ValueError: if a number is too large for it.
    """
    cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    beyond = [name for name in cast if not cast[name].isfinite().all() and tensors[name].isfinite().all()]
    if beyond:
        raise ValueError(f"`--dtype` (={_name(dtype)}) must hold every number, but not those of {', '.join(beyond)}.")
    return cast


def write_pt(file: Path, stored: dict[str, Tensor], weights: ModelWeights, layout: Layout) -> None:
    """The same tensors as the official scripts read them, `{"model": state_dict}`, and nothing else.

    `main_finetune.py --finetune`, which an encoder is for, adds two axes to GRN and only prints that it does not fit
    then: its GRN is stored as `(1, C)`. `--resume`, which a classifier is for, wants `(1, 1, 1, C)`. ConvMAE's
    `main_finetune.py --finetune` wants no norm of pooled features.
    """
    if layout.name == "official-fcmae":
        stored = {name: t.flatten(0, 2) if ".grn." in name else t for name, t in stored.items()}
    if weights.family is CONVMAE and weights.kind == "encoder":
        norm = [name for name in stored if name.startswith("fc_norm.")]
        stored = {name: t for name, t in stored.items() if name not in norm}
        if norm:
            weights.notes.append(
                f"model.pt: without {', '.join(norm)}, which main_finetune.py starts anew; model.safetensors has them"
            )
    # A part of a larger tensor would bring all of it into the file.
    parts = {name: t.clone() for name, t in stored.items() if t.untyped_storage().nbytes() != t.nbytes}
    torch.save({"model": {**stored, **parts}}, file)
    use = {"encoder": "main_finetune.py --finetune", "classifier": "main_finetune.py --resume"}
    if weights.family is not CONVMAE and not weights.config.use_grn:
        use = {kind: f"{flag.replace('main_finetune', 'main')} of ConvNeXt V1" for kind, flag in use.items()}
    weights.notes.append(f"model.pt: for {use.get(weights.kind, 'main_pretrain.py --resume')}")


def write_config(folder: Path, weights: ModelWeights, layout: Layout, dtype: torch.dtype | None) -> None:
    """`config.json`; for stock Transformers without our own fields."""
    fields = {name: value for name, value in weights.config.to_dict().items() if name != "auto_map"}
    config_class: Any = type(weights.config)
    architecture = weights.family.models[weights.kind].__name__
    if layout.name in ("transformers", V1_LAYOUT):
        fields, config_class = {n: v for n, v in fields.items() if n not in OUR_FIELDS}, StockConfig
    if layout.name == V1_LAYOUT:
        config_class, architecture = StockV1Config, architecture.replace("ConvNextV2", "ConvNext")
        fields["layer_scale_init_value"] = weights.config.layer_scale_init_value
    fields |= {"architectures": [architecture], "dtype": _name(dtype or weights.dtype)}
    config_class.from_dict(fields).save_pretrained(folder)


def timm_config(weights: ModelWeights, processor: Any) -> dict[str, Any]:
    """The settings from which `timm.create_model("local-dir:FOLDER", pretrained=True)` builds the model."""
    config: Any = weights.config
    architecture, arguments = timm_model(config)
    num_classes = config.num_labels if weights.kind == "classifier" else 0
    height, width = height_and_width(config.image_size)
    is_warped = min(height, width) >= 384
    model_args = {"in_chans": config.num_channels, "patch_size": config.patch_size, **arguments}
    settings = {
        "input_size": [config.num_channels, height, width],
        "interpolation": "bicubic",
        "crop_pct": 1.0 if is_warped else processor.crop_pct,
        "crop_mode": "squash" if is_warped else "center",
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "num_classes": num_classes,
        "pool_size": [height // 32, width // 32],
        "first_conv": "stem.0",
        "classifier": "head.fc",
    }
    if num_classes:
        settings["label_names"] = [config.id2label[number] for number in range(num_classes)]
    return {
        "architecture": architecture,
        "num_classes": num_classes,
        "num_features": config.hidden_sizes[-1],
        "model_args": model_args,
        "pretrained_cfg": settings,
    }


def provenance(
    weights: ModelWeights, source: StoredCheckpoint, dtype: torch.dtype | None, license: str | None
) -> dict[str, Any]:
    """Where the weights come from and what was done to them."""
    cast = dtype if dtype != weights.dtype else None
    name = Path(source.name).name if Path(source.name).exists() else source.name
    name = re.sub(r"[`|]", "_", name)  # which Markdown would read as its own
    return {
        "source": name,
        "hub_id": source.hub_id,
        "layout": weights.layout.name,
        "sha256": source.sha256,
        "checkpoint": source.official.name if source.official else None,
        "license": checkpoint_license(source, license),
        "dtype": _name(weights.dtype) + (f", stored here as {_name(cast)}" if cast else ""),
        "is_cast": cast is not None,
        "image_size": weights.config.image_size,
        "data": describe_data_sets(source.training) or source.provenance.get("data"),
        "data_note": source.training.get("data_note") or source.provenance.get("data_note"),
        FROM_FCMAE: is_from_fcmae(source.config, source.training, source.provenance),
        "notes": weights.notes,
    }


def checkpoint_license(source: StoredCheckpoint, asked: str | None) -> str:
    """The licence of what a checkpoint is converted into: as asked for, or as the source says.

    The licence of the official weights cannot be changed.
    """
    if source.official is not None or (source.hub_id or "").startswith(OFFICIAL_WEIGHTS):
        return settle_license(asked, OFFICIAL_LICENSE)
    if has_license_of_nobody(source.training):
        return settle_license(asked, UNKNOWN)
    stated = source.training.get("license") or source.provenance.get("license")
    if not stated and source.folder is not None:
        stated = read_license(source.folder / CARD)
    return settle_license(asked, stated or source.timm_settings.get("license"))


def _without_norm(weights: ModelWeights) -> ModelWeights:
    return replace(weights, tensors={n: t for n, t in weights.tensors.items() if n not in FINAL_NORM})


def _is_new(weights: ModelWeights) -> bool:
    """Whether the final norm changes nothing, as one that nobody has trained."""
    weight, bias = weights.tensors.get("layernorm.weight"), weights.tensors.get("layernorm.bias")
    return weight is not None and bias is not None and bool((weight == 1).all() and (bias == 0).all())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
