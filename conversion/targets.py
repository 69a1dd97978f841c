"""What a layout that is asked for has a place for, and which layout of a family it is."""

from typing import Any

from conversion.convmae_config import unshown_heads
from conversion.families import CONVMAE
from conversion.inferred_config import OFFICIAL_EPS
from conversion.layouts import LAYOUTS, V1_LAYOUT, V2_BLOCK, Layout
from conversion.model_weights import ModelWeights, encoder_of, with_final_norm
from hf_convnextv2.configuration_convmae import ConvMAEConfig
from hf_convnextv2.shared_config import height_and_width

CONVMAE_TARGETS = ("ours", "official", "easycv")
EASYCV = "easycv"
EASYCV_CLASSIFIER = "convmae-easycv-classifier"
# Settings of pre-training that change no shape; the last is always 4 in EasyCV.
UNSTORED_BY_CONVMAE = ("cell_size", "mask_ratio", "norm_pix_loss", "num_visible_sets")
POOLED_BY_EASYCV = "EasyCV leaves the first one out, as if it were a class token"


def fit_to_target(weights: ModelWeights, to: str | None) -> ModelWeights:
    """The model that the target has a place for: most know no decoder, the official trainer no classifier.

    Raises:
        ValueError: if the target has no such models.
    """
    _check_family(weights, to)
    if to in (None, "ours"):
        return with_final_norm(weights)
    if weights.family is CONVMAE:
        return weights
    without_place = "classifier" if to == "official-minkowski" else "fcmae"
    if weights.kind == without_place:
        weights = encoder_of(weights)
    return with_final_norm(weights) if to in ("transformers", "timm") else weights


def check_target(weights: ModelWeights, to: str | None) -> None:
    """Raise where another library cannot build the model, and note what it has no place for."""
    if to is None and target_layout(weights, to) is LAYOUTS["ours"] and weights.kind != "fcmae":
        weights.notes.append("Transformers has no model with GRN and LayerScale: this package alone loads the result")
    if to in (None, "ours", "transformers"):
        return
    buildable = _buildable_convmae(weights) if weights.family is CONVMAE else _buildable_convnextv2(weights, str(to))
    for name, (value, holds, rule) in buildable.items():
        if not holds:
            raise ValueError(f"`{name}` (={value}) must be {rule} for `--to {to}`, which has no other.")
    config = weights.config
    if config.layer_norm_eps != OFFICIAL_EPS and weights.kind == "classifier":
        weights.notes.append(f"the final norm's epsilon, {config.layer_norm_eps:g}, is {OFFICIAL_EPS:g} in {to}")
    if weights.kind == "classifier" and to != "timm":
        weights.notes.append(f"class names and image statistics: {to} has no place for them")
    if weights.family is CONVMAE:
        _note_unstored(weights, str(to))


def target_layout(weights: ModelWeights, to: str | None) -> Layout:
    """The layout of the result."""
    if weights.family is CONVMAE:
        if to == EASYCV:
            return LAYOUTS[EASYCV_CLASSIFIER if weights.kind == "classifier" else "convmae-easycv"]
        return LAYOUTS["convmae-official" if to == "official" else "convmae"]
    if to in (None, "ours", "transformers"):
        return LAYOUTS[_own_layout(weights, to)]
    return LAYOUTS["official-fcmae" if to == "official" and weights.kind == "encoder" else to]


def _own_layout(weights: ModelWeights, to: str | None) -> str:
    """Of the layouts with Transformers' names, the one that is asked for, or else that Transformers loads, if any."""
    config = weights.config
    if weights.kind == "fcmae":
        return "ours"
    if config.is_convnext_v1 or (to != "ours" and not config.use_grn):
        return V1_LAYOUT
    return to or ("transformers" if (config.use_grn, config.has_layer_scale) == V2_BLOCK else "ours")


def _check_family(weights: ModelWeights, to: str | None) -> None:
    """Raise if the target is a library without models of this family."""
    is_convmae = weights.family is CONVMAE
    if is_convmae and to not in (None, *CONVMAE_TARGETS):
        raise ValueError(f"`--to` (={to}) must be {', '.join(CONVMAE_TARGETS)} or left out for a ConvMAE.")
    if to == EASYCV and not is_convmae:
        raise ValueError(f"`--to` (={to}) must be another for a {weights.family.name}: EasyCV has none.")


def _buildable_convnextv2(weights: ModelWeights, to: str) -> dict[str, tuple[Any, bool, str]]:
    """Settings, their values, whether the target can build models of them, and of which it can."""
    config = weights.config
    buildable = {
        "hidden_act": (config.hidden_act, config.hidden_act == "gelu", "gelu"),
        "depths": (config.depths, len(config.depths) == 4, "those of four stages"),
        "patch_size": (config.patch_size, config.patch_size == 4 or to == "mmpretrain", "4"),
    }
    if weights.kind == "fcmae":
        buildable["fusion_stages"] = (config.fusion_stages, not config.fusion_stages, "empty")
        buildable["target_type"] = (config.target_type, config.target_type != "feature", "one with pixels")
    return buildable


def _buildable_convmae(weights: ModelWeights) -> dict[str, tuple[Any, bool, str]]:
    """The same for the official code and EasyCV, which build alike."""
    config = weights.config
    height, width = height_and_width(config.image_size)
    stride = config.target_size
    buildable: dict[str, tuple[Any, bool, str]] = {
        "image_size": (config.image_size, height // stride == width // stride, "square"),
        "hidden_act": (config.hidden_act, config.hidden_act == "gelu", "gelu"),
        "layer_norm_eps": (config.layer_norm_eps, config.layer_norm_eps == OFFICIAL_EPS, f"{OFFICIAL_EPS:g}"),
        "window_size": (config.window_size, config.window_size is None, "None"),
        "use_relative_position_bias": (
            config.use_relative_position_bias,
            not config.use_relative_position_bias,
            "False",
        ),
    }
    if weights.kind == CONVMAE.pretraining:
        stages, sides = list(config.fusion_stages), list(config.token_sides)
        buildable |= {
            "fusion_stages": (stages, sorted(stages) == ["stage1", "stage2"], "stage1 and stage2"),
            "patch_sizes": (list(config.patch_sizes), sides == [4, 2, 1], "2 in the second and in the third stage"),
            "target_type": (config.target_type, config.target_type != "feature", "one with pixels"),
        }
    return buildable


def _note_unstored(weights: ModelWeights, to: str) -> None:
    """Note what neither names nor shapes of a ConvMAE say."""
    config = weights.config
    for name in unshown_heads(config, weights.kind == CONVMAE.pretraining):
        weights.notes.append(f"`{name}` is {getattr(config, name)}, which {to} does not store")
    if weights.kind == "classifier" and to == EASYCV:
        weights.notes.append(f"the features of all tokens were averaged; {POOLED_BY_EASYCV}")
    if weights.kind != CONVMAE.pretraining:
        return
    defaults, names = ConvMAEConfig(), UNSTORED_BY_CONVMAE[:-1] if to == EASYCV else UNSTORED_BY_CONVMAE
    changed = (name for name in names if getattr(config, name) != getattr(defaults, name))
    weights.notes.extend(f"`{name}` is {getattr(config, name)}, which {to} does not store" for name in changed)
    if to == EASYCV and config.num_visible_sets != 4:
        weights.notes.append(f"`num_visible_sets` is {config.num_visible_sets}, but always 4 in EasyCV")
