"""What a checkpoint notes of the model and the settings, to compare with those of a resumed run."""

import json
from typing import Any

from transformers import PreTrainedConfig

from training.settings.scripts import Record

# Settings that determine the shapes of the weights, or what is computed from them.
ARCHITECTURE = ("model_type", "hidden_sizes", "depths", "num_channels", "patch_size", "use_grn", "num_labels")
ARCHITECTURE += ("layer_scale_init_value",)
ARCHITECTURE += ("patch_sizes", "num_attention_heads", "mlp_ratio", "decoder_num_attention_heads")
ARCHITECTURE += ("window_size", "use_relative_position_bias")
ARCHITECTURE += ("decoder_hidden_size", "decoder_num_hidden_layers", "fusion_stages")
ARCHITECTURE += ("target_type", "feature_target_on", "feature_target_dim", "use_auxiliary_head")
ARCHITECTURE += ("problem_type", "label_mean", "label_std")
ARCHITECTURE += ("architecture", "num_queries", "box_head_size", "anchor_sizes")
WIDTHS = ("fpn_hidden_size", "d_model", "hidden_size")  # as models with a backbone call the width of their decoder


def describe_architecture(config: PreTrainedConfig) -> dict[str, Any]:
    """The settings that determine the weights' shapes and their use, converted to JSON types."""
    settings = {name: value_of(config, name) for name in ARCHITECTURE}
    return json.loads(json.dumps(settings))


def compared_settings(record: Record, model_config: PreTrainedConfig) -> dict[str, Any]:
    """The settings that a resumed run compares, in JSON types. The model's configuration gives those that are None."""
    given = {name: record.values[name] for name in record.compared}
    resolved = {name: value_of(model_config, name) if value is None else value for name, value in given.items()}
    return json.loads(json.dumps(resolved))


def value_of(config: PreTrainedConfig, name: str) -> Any:
    """A setting of a model or, if it has a backbone, of the backbone; None if neither has it."""
    if name == "decoder_hidden_size" and hasattr(config, "backbone_config"):
        name = next((width for width in WIDTHS if hasattr(config, width)), name)
    if name == "architecture" and hasattr(config, "backbone_config"):
        return architecture_of(config)
    if name == "num_queries":
        config = getattr(config, "decoder_config", config)  # of MaskFormer
    return getattr(config, name, getattr(encoder_config(config), name, None))


def architecture_of(config: Any) -> str:
    """The setting `architecture` of a model that has a backbone."""
    if not hasattr(config, "use_masks"):
        return config.model_type
    return "mask_rcnn" if config.use_masks else "faster_rcnn"


def encoder_config(config: Any) -> Any:
    """The configuration of a model's encoder: of its backbone, or its own."""
    return getattr(config, "backbone_config", config)
