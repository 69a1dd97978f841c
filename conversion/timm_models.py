"""timm's models of ConvNeXt V1 and V2: the name and the arguments by which it builds the model of a configuration."""

from typing import Any

from conversion.families import size_of
from hf_convnextv2.configuration_convnextv2 import V1_LAYER_SCALE

# Those of ConvNeXt V1 that timm has.
V1_SIZES = ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "xlarge")


def timm_model(config: Any) -> tuple[str, dict[str, Any]]:
    """The architecture and those of its arguments that are not its defaults, channels and patches left out."""
    size, arguments = size_of(config), {}
    is_v1 = config.has_v1_blocks and size in (None, *V1_SIZES)
    usual_scale = V1_LAYER_SCALE if is_v1 else 0
    if size is None:
        arguments |= {"depths": list(config.depths), "dims": list(config.hidden_sizes)}
    if not config.use_grn and not is_v1:
        arguments["use_grn"] = False
    if config.layer_scale_init_value != usual_scale:
        arguments["ls_init_value"] = config.layer_scale_init_value
    return f"{'convnext' if is_v1 else 'convnextv2'}_{size or 'tiny'}", arguments
