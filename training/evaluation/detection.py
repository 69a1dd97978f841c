"""Evaluates object detection and instance segmentation at the images' original sizes, by COCO's average precision."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from training.evaluation.average_precision import (
    Detections,
    EvaluatedImage,
    as_evaluated,
    class_figures,
    evaluate,
    mean_figures,
)
from training.evaluation.loop import collate_lists, pass_over
from training.evaluation.tables import percent
from training.settings.evaluation import ShownSettings

__all__ = ["DetectionEvaluator", "Detections", "Shown", "collate_objects"]

COLUMNS = ("pixel_values", "size", "objects")  # of a batch
NUM_SHOWN = 8  # images in the picture of predictions
# The detections in an image `(C, h, w)`, whose original size is `(H, W)`.
Detect = Callable[[nn.Module, Tensor, tuple[int, int]], Detections]


class Shown(NamedTuple):
    """An evaluated image for a picture: normalised `(C, h, w)`, its objects and the detections."""

    pixel_values: Tensor
    image: EvaluatedImage


def collate_objects(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of images of different sizes and their objects, as lists."""
    return collate_lists(samples, COLUMNS)


class DetectionEvaluator:
    """Evaluates a detector on a loader of images of any size and their objects.

    `per_class` are the rows of the last evaluation's table: for each class its objects, AP, AP50 and the AP of masks.
    `shown` are the first of its images that this process evaluated.
    """

    def __init__(self, names: list[str], detect: Detect, with_masks: bool, settings: ShownSettings) -> None:
        self.names, self.detect, self.with_masks = names, detect, with_masks
        self.shown_score = settings.shown_score
        self.per_class: list[dict[str, Any]] = []
        self.shown: list[Shown] = []

    def __call__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        loader: DataLoader[Any],
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """`eval_map` and COCO's other figures of boxes and masks, `eval_objects` and `eval_samples`.

        They are those of all processes; each image counts once. What no object was there to measure is left out. The
        result is empty if `is_stopped` becomes true after a batch, in all processes.
        """
        images: list[EvaluatedImage] = []
        shown: list[Shown] = []

        def measure(batch: dict[str, Any]) -> list[EvaluatedImage]:
            measured = []
            for pixel_values, size, objects in zip(*(batch[name] for name in COLUMNS), strict=True):
                with accelerator.autocast():
                    found = self.detect(model, pixel_values.to(accelerator.device), size)
                measured.append(as_evaluated(size, objects, found, self.with_masks))
                if len(shown) < NUM_SHOWN:
                    shown.append(Shown(pixel_values.cpu(), measured[-1]))
            return measured

        if not pass_over(accelerator, model, loader, measure, images.extend, is_stopped):
            return {}
        self.shown = shown
        return {f"eval_{name}": value for name, value in self.figures(images).items()}

    def figures(self, images: list[EvaluatedImage]) -> dict[str, Any]:
        """The figures of all images; `per_class` becomes those of each class."""
        labels = (row["category_id"] for image in images for row in image.annotations if not row["iscrowd"])
        counts = Counter(labels)
        boxes = evaluate(images, self.names, "bbox")
        figures, columns = mean_figures(boxes), class_figures(boxes)
        if self.with_masks:
            masks = evaluate(images, self.names, "segm")
            figures |= mean_figures(masks)
            columns["mask_ap"] = class_figures(masks)["ap"]
        self.per_class = [
            {"label": label, "class": name, "objects": counts[label], **{key: of[label] for key, of in columns.items()}}
            for label, name in enumerate(self.names)
        ]
        return {**figures, "objects": counts.total(), "samples": len(images)}

    @staticmethod
    def in_words(results: dict[str, Any]) -> str:
        """The results of an evaluation as one line of text."""
        words = []
        for kind, name in {"box": "map", "mask": "map_mask"}.items():
            if f"eval_{name}" in results:
                mean, half = percent(results[f"eval_{name}"]), percent(results[f"eval_{name}_50"])
                words.append(f"{kind} AP {mean} (AP50 {half})")
        counts = f"{results['eval_objects']:,} objects, {results['eval_samples']:,} images"
        return ", ".join([*(words or ["no AP"]), counts])
