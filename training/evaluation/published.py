"""Comparison of a measured figure with those that others measured with the same checkpoint or recipe."""

from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from conversion.checkpoints import Checkpoint, checkpoint_table, find_repository
from conversion.model_folder import read_provenance
from hf_convnextv2.configuration_convmae import CONVMAE_SIZES, ConvMAEConfig
from hf_convnextv2.configuration_convnextv2 import SIZES
from training.settings.evaluation import SegmentPredictionSettings

NAMES = {"eval_accuracy": "top-1", "eval_accuracy_top5": "top-5"}
# Mean IoU of UPerNet on ADE20K in %: the paper's Table 7 and the repositories of ConvNeXt and ConvMAE.
UPERNET_ON_ADE20K = {
    "tiny": {"ConvNeXt, ImageNet-1k": 46.7},
    "ConvMAE base": {"ConvMAE": 51.7},
    "base": {
        "ConvNeXt, ImageNet-1k": 49.9,
        "ConvNeXt, ImageNet-22k, 640 pixels": 53.1,
        "ConvNeXt V2, supervised": 50.5,
        "ConvNeXt V2, FCMAE": 52.1,
    },
    "large": {
        "ConvNeXt, ImageNet-22k, 640 pixels": 53.7,
        "ConvNeXt V2, supervised": 51.6,
        "ConvNeXt V2, FCMAE": 53.7,
    },
    "huge": {"ConvNeXt V2, FCMAE": 55.0, "ConvNeXt V2, FCMAE, ImageNet-22k, 640 pixels": 57.0},
}
# Box and mask AP of Mask R-CNN on COCO in %: the paper's Table 6 and the repositories of ConvNeXt and ConvMAE.
MASK_RCNN_ON_COCO = {
    "ConvMAE base": {"ConvMAE": (53.2, 47.1)},
    "tiny": {"ConvNeXt": (46.2, 41.7)},
    "base": {"ConvNeXt V2, supervised": (51.0, 45.6), "ConvNeXt V2, FCMAE": (52.9, 46.6)},
    "large": {"ConvNeXt V2, supervised": (51.5, 45.8), "ConvNeXt V2, FCMAE": (54.4, 47.7)},
    "huge": {"ConvNeXt V2, FCMAE": (55.7, 48.9)},
}
CLASSES_OF_ADE20K, CLASSES_OF_COCO = 150, 80


def known_checkpoint(name: str) -> Checkpoint | None:
    """The official checkpoint of a Hub id, or of a folder that `conversion.convert` wrote."""
    if Path(name).is_dir():
        return checkpoint_table().get(str(read_provenance(Path(name)).get("checkpoint")))
    return find_repository(name)


def intervals(results: dict[str, float]) -> dict[str, list[float]]:
    """The 95 % confidence interval (Wilson) of each accuracy, as shares."""
    samples = int(results["eval_samples"])
    found = {}
    for name in NAMES:
        if name in results:
            test = binomtest(round(results[name] * samples), samples)
            interval = test.proportion_ci(confidence_level=0.95, method="wilson")
            found[f"{name}_ci95"] = [float(interval.low), float(interval.high)]
    return found


def comparison(results: dict[str, float], checkpoint: Checkpoint | None) -> str:
    """A table of the measured accuracy with its interval, and others' on ImageNet-1k's 50,000 validation images."""
    bounds, samples = intervals(results), int(results["eval_samples"])
    header = f"{'accuracy in %':34}" + "".join(f"{NAMES[name]:>26}" for name in NAMES if name in results)
    cells = [
        f"{100 * results[name]:.2f} ({100 * bounds[f'{name}_ci95'][0]:.2f} to {100 * bounds[f'{name}_ci95'][1]:.2f})"
        for name in NAMES
        if name in results
    ]
    lines = [header, f"{f'measured, {samples:,} images':34}" + "".join(f"{cell:>26}" for cell in cells)]
    for source, values in (checkpoint.accuracy if checkpoint else {}).items():
        reference = f"{source}, ImageNet-1k at {checkpoint.image_size}" if checkpoint else source
        lines.append(f"{reference:34}" + "".join(f"{value:>26.2f}" for value in values))
    return "\n".join(lines)


def segmentation_comparison(results: dict[str, float], config: Any, prediction: SegmentPredictionSettings) -> str:
    """A table of the measured mean IoU and the published ones, for UPerNet of a published size with 150 classes.

    It is empty for any other model.
    """
    size = size_of(config.backbone_config)
    is_upernet = config.model_type == "upernet" and config.num_labels == CLASSES_OF_ADE20K
    published = UPERNET_ON_ADE20K.get(size, {}) if is_upernet else {}
    if not published:
        return ""
    rows = {
        f"measured, {int(results['eval_samples']):,} images, {in_words(prediction)}": 100 * results["eval_mean_iou"]
    }
    how = (
        "one scale, sliding windows"
        if isinstance(config.backbone_config, ConvMAEConfig)
        else "several scales, mirrored"
    )
    rows |= {f"{source}, {how}": value for source, value in published.items()}
    head = f"mean IoU in % (published: UPerNet, size {size}, ADE20K)"
    return "\n".join([head, *(f"{name:72}{value:8.2f}" for name, value in rows.items())])


def in_words(prediction: SegmentPredictionSettings) -> str:
    """How a segmentation model was evaluated, in the words for published figures."""
    count = len(prediction.eval_scales)
    windows = ", sliding windows" if prediction.eval_window else ""
    return f"{'one scale' if count == 1 else f'{count} scales'}{windows}{', mirrored' if prediction.eval_flip else ''}"


def detection_comparison(results: dict[str, float], config: Any) -> str:
    """A table of the measured AP and the published ones, for Mask R-CNN of a published size with COCO's 80 classes.

    It is empty for any other model.
    """
    size, is_mask_rcnn = size_of(config.backbone_config), getattr(config, "use_masks", False)
    published = MASK_RCNN_ON_COCO.get(size, {}) if is_mask_rcnn and config.num_labels == CLASSES_OF_COCO else {}
    if not published or "eval_map_mask" not in results:
        return ""
    measured = (100 * results["eval_map"], 100 * results["eval_map_mask"])
    rows = {f"measured, {int(results['eval_samples']):,} images": measured, **published}
    lines = [f"{f'AP in % (published: Mask R-CNN, size {size}, COCO)':52}     box    mask"]
    return "\n".join(lines + [f"{name:52}{box:8.2f}{mask:8.2f}" for name, (box, mask) in rows.items()])


def size_of(encoder: Any) -> str:
    """The name of an encoder's size, after that of a family other than ConvNeXt; empty if it has none."""
    shape = (tuple(encoder.depths), tuple(encoder.hidden_sizes))
    if isinstance(encoder, ConvMAEConfig):
        configs = {f"ConvMAE {name}": ConvMAEConfig.from_size(name) for name in CONVMAE_SIZES}
        shapes = {name: (config.depths, config.hidden_sizes) for name, config in configs.items()}
    else:
        shapes = SIZES
    return next((name for name, (depths, widths) in shapes.items() if (tuple(depths), tuple(widths)) == shape), "")
