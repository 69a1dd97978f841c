"""The detectors that a ConvNeXt V2 backbone is trained in."""

from typing import Any, NamedTuple

from hf_convnextv2.configuration_rcnn import ConvNextV2RCNNConfig


class Detector(NamedTuple):
    """A detector: its name and paper, and where its backbone's weights lie."""

    name: str
    paper: str
    backbone: str = "model.backbone."


RCNN = ConvNextV2RCNNConfig.model_type  # this package's; the others are Transformers' own
MASK_RCNN = Detector("Mask R-CNN", "https://arxiv.org/abs/1703.06870", "backbone.")
# By their `model_type`.
DETECTORS = {
    RCNN: Detector("Faster R-CNN", "https://arxiv.org/abs/1506.01497", "backbone."),
    "rt_detr": Detector("RT-DETR", "https://arxiv.org/abs/2304.08069"),
    "rt_detr_v2": Detector("RT-DETRv2", "https://arxiv.org/abs/2407.17140"),
    "d_fine": Detector("D-FINE", "https://arxiv.org/abs/2410.13842"),
    "deformable_detr": Detector("Deformable DETR", "https://arxiv.org/abs/2010.04159"),
    "conditional_detr": Detector("Conditional DETR", "https://arxiv.org/abs/2108.06152"),
    "detr": Detector("DETR", "https://arxiv.org/abs/2005.12872"),
}


def detector_of(config: dict[str, Any]) -> Detector | None:
    """The detector that a config.json describes, if it describes one."""
    return MASK_RCNN if has_masks(config) else DETECTORS.get(config.get("model_type", ""))


def has_masks(config: dict[str, Any]) -> bool:
    """Whether a config.json describes a detector that predicts masks."""
    return config.get("model_type") == RCNN and config.get("use_masks", True)
