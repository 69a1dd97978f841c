"""What is known of a model's configuration beside the tensors."""

from typing import Any

from conversion.checkpoint_reader import StoredCheckpoint
from conversion.families import CONVMAE, CONVNEXT_V1, CONVNEXTV2, Family
from conversion.layouts import recognise_layout
from hf_convnextv2 import ConvMAEConfig
from hf_convnextv2.configuration_convnextv2 import V1_MODEL_TYPE

STORED = ("mask_ratio", "norm_pix_loss")  # of the official trainers' arguments
HEADS = ("num_attention_heads", "decoder_num_attention_heads")


def known_settings(source: StoredCheckpoint, model_size: str | None, asked: dict[str, int | None]) -> dict[str, Any]:
    """A stored configuration, the training's arguments and what the user asks for (None: not asked for).

    Raises:
        ValueError: if the user asks for what models of this family do not have.
    """
    family = recognise_layout(source.tensors).family
    if family is CONVNEXTV2 and not any(".grn." in name for name in source.tensors):
        family = CONVNEXT_V1
    settings: dict[str, Any] = {}
    if str(source.config.get("model_type", "")).startswith((V1_MODEL_TYPE, ConvMAEConfig.model_type)):
        settings |= source.config
    for name in STORED:
        if name in source.arguments:
            settings.setdefault(name, source.arguments[name])
    if model_size is not None:
        of_size = _settings_of_size(model_size, family)
        _check_size(model_size, of_size, source.config)
        settings |= of_size
    given = {name: value for name, value in asked.items() if value is not None}
    _check_heads(given, source.config, family)
    return {**settings, **given}


def _check_heads(given: dict[str, int], stored: dict[str, Any], family: Family) -> None:
    """Raise for attention heads of a model that has none, or whose configuration says another number of them."""
    for name in HEADS:
        if name in given and family is not CONVMAE:
            raise ValueError(f"`--{name}` must be left out for a {family.name}, which has no attention.")
        said = _stored_heads(name, stored)
        if name in given and said not in (None, given[name]):
            raise ValueError(
                f"`--{name}` (={given[name]}) must be {said}, as the configuration beside the weights says. Leave it "
                "out."
            )


def _check_size(model_size: str, of_size: dict[str, Any], stored: dict[str, Any]) -> None:
    """Raise if a ConvMAE's configuration says another number of attention heads, which no shape of a weight shows."""
    said = _stored_heads(HEADS[0], stored)
    heads = of_size.get(HEADS[0], said)
    if said not in (None, heads):
        raise ValueError(
            f"`--model_size` (={model_size}) must be a size with {said} attention heads, as the configuration beside "
            f"the weights says, not {heads}. Leave it out."
        )


def _stored_heads(name: str, stored: dict[str, Any]) -> int | None:
    """The attention heads in the configuration of a ConvMAE; None if it is of another model, or there is none."""
    is_convmae = stored.get("model_type") == ConvMAEConfig.model_type
    return stored.get(name, getattr(ConvMAEConfig, name)) if is_convmae else None


def _settings_of_size(model_size: str, family: Family) -> dict[str, Any]:
    """Depths and widths of a size, and the attention heads if it has any."""
    if model_size not in family.sizes:
        raise ValueError(f"`--model_size` (={model_size}) must be {', '.join(family.sizes)} for a {family.name}.")
    depths, widths = family.sizes[model_size]
    settings: dict[str, Any] = {"depths": list(depths), "hidden_sizes": list(widths)}
    if family is CONVMAE:
        settings["num_attention_heads"] = ConvMAEConfig.from_size(model_size).num_attention_heads
    return settings
