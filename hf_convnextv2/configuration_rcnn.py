"""Configuration of Mask R-CNN and Faster R-CNN on a backbone of this package (arXiv 1703.06870, 1506.01497)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_convmae import ConvMAEConfig
from .configuration_convnextv2 import ConvNextV2Config

# Of the backbones, by their `model_type`.
BACKBONE_CONFIGS: dict[str, Any] = {
    config_class.model_type: config_class for config_class in (ConvNextV2Config, ConvMAEConfig)
}


@strict
class ConvNextV2RCNNConfig(PreTrainedConfig):
    """The backbone's configuration and that of the heads. The defaults are those of Detectron2 and of mmdetection.

    Args:
        backbone_config: of the backbone, a `ConvNextV2Config`, a `ConvMAEConfig` or the settings of one; the heads see
            its `out_features`.
        use_masks: predict a mask for each object (Mask R-CNN); False: boxes alone (Faster R-CNN).
        fpn_hidden_size: channels of the feature pyramid and of the mask head.
        box_head_size: width of the two linear layers of the box head.
        anchor_sizes: side of the anchors in pixels: one for each map of the backbone, and one for a further map of half
            the size of the last.
        anchor_ratios: height / width of the anchors.
        rpn_batch_size, box_batch_size: anchors and regions of an image that are drawn for the losses.
        rpn_top_n_train, rpn_top_n_test: regions of each map before, and of an image after, non-maximum suppression.
        box_score_threshold, box_nms_threshold: least score of a detection, and the overlap from which the one with the
            lower score is dropped.
        max_detections: of an image.

    Raises:
        ValueError: if a setting breaks its rule; the message names the setting, its value and the rule.
    """

    model_type = "convnextv2_rcnn"
    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": AutoConfig}

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    use_masks: bool = True
    fpn_hidden_size: int = 256
    box_head_size: int = 1024
    anchor_sizes: list[int] | tuple[int, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: list[float] | tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_batch_size: int = 256
    box_batch_size: int = 512
    rpn_top_n_train: int = 2000
    rpn_top_n_test: int = 1000
    box_score_threshold: float = 0.05
    box_nms_threshold: float = 0.5
    max_detections: int = 100

    def __post_init__(self, **kwargs: Any) -> None:
        backbone: Any = self.backbone_config
        if not isinstance(backbone, tuple(BACKBONE_CONFIGS.values())):
            settings = {} if backbone is None else backbone if isinstance(backbone, dict) else backbone.to_dict()
            config_class = BACKBONE_CONFIGS.get(settings.get("model_type", ""), ConvNextV2Config)
            backbone = config_class.from_dict({"out_features": None, "out_indices": None, **settings})
            if not settings.get("out_features"):
                backbone.out_features = backbone.stage_names[1:]
        self.backbone_config = backbone
        if len(set(backbone.patch_sides)) > 1:
            raise ValueError(f"`patch_size` (={backbone.patch_size}) of the backbone must be square for an R-CNN.")
        names = ("fpn_hidden_size", "box_head_size", "rpn_batch_size", "box_batch_size", "max_detections")
        for name in (*names, "rpn_top_n_train", "rpn_top_n_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 1.")
        maps: list[str] = list(backbone.out_features or ())
        levels = len(maps) + 1
        if len(self.anchor_sizes) != levels:
            raise ValueError(
                f"`anchor_sizes` (={list(self.anchor_sizes)}) must be {levels} numbers: one for each of the maps "
                f"{', '.join(maps)} and one for a further map."
            )
        for name in ("anchor_sizes", "anchor_ratios"):
            numbers = list(getattr(self, name))
            if not numbers or min(numbers) <= 0:
                raise ValueError(f"`{name}` (={numbers}) must be positive numbers.")
        super().__post_init__(**kwargs)
