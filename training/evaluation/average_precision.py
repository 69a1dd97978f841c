"""COCO's average precision of boxes and masks, computed by pycocotools."""

import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, Literal, NamedTuple

import numpy as np
import pycocotools.mask
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from training.data.detection.objects import Objects

Kind = Literal["bbox", "segm"]  # what is compared, in COCO's words
# The figures of `COCOeval.summarize`, by their place.
FIGURES = {0: "map", 1: "map_50", 2: "map_75", 3: "map_small", 4: "map_medium", 5: "map_large", 8: "mar_100"}
AREA, MOST_DETECTIONS, HALF = 0, -1, 0  # places in COCOeval's arrays: any area, 100 detections, an IoU of 0.5


class Detections(NamedTuple):
    """The N objects that a model finds in an image, in pixels of the original image.

    boxes: `(N, 4)` float32: left, top, right, bottom.
    scores: `(N,)`.
    labels: `(N,)` int64, classes from 0 on.
    masks: `(N, H, W)` uint8, 1 where the object is; None of a model without masks.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None


class EvaluatedImage(NamedTuple):
    """The annotations of an image and what a model detects in it, as entries of COCO's files.

    Their `mask` is COCO's `segmentation`, run-length encoded. A detection has no area: its box and its mask have one.
    """

    height: int
    width: int
    annotations: list[dict[str, Any]]
    detections: list[dict[str, Any]]

    @property
    def num_objects(self) -> int:
        """The objects that are to be found: crowds are not."""
        return sum(not annotation["iscrowd"] for annotation in self.annotations)


def as_evaluated(size: Sequence[int], objects: Objects, found: Detections, with_masks: bool) -> EvaluatedImage:
    """The record of an image of the size `(H, W)`.

    A detection with numbers that are not finite becomes an empty box of the score 0, which counts as wrong.
    """
    height, width = size
    finite = found.boxes.isfinite().all(1) & found.scores.isfinite()
    boxes, scores = found.boxes.where(finite[:, None], 0), found.scores.where(finite, 0)
    truth = {
        "category_id": objects.labels.tolist(),
        "bbox": to_xywh(objects.boxes),
        "area": objects.areas.tolist(),
        "iscrowd": objects.crowds.int().tolist(),
    }
    guesses = {"category_id": found.labels.tolist(), "bbox": to_xywh(boxes), "score": scores.tolist()}
    if with_masks:
        truth["mask"], guesses["mask"] = encode_masks(objects.masks), encode_masks(found.masks)
    return EvaluatedImage(height, width, as_rows(truth), as_rows(guesses))


def to_xywh(boxes: Tensor) -> list[list[float]]:
    """Boxes `(N, 4)` as left, top, width and height, which are 0 of a box that ends before it begins.

    COCO ignores detections of a negative area.
    """
    start, end = boxes.cpu().double().split(2, dim=1)
    return torch.cat([start, (end - start).clamp(min=0)], dim=1).tolist()


def encode_masks(masks: Tensor | None) -> list[dict[str, Any]]:
    """COCO's run-length encoding of masks `(N, H, W)`."""
    assert masks is not None
    if not len(masks):
        return []
    encoded: Any = pycocotools.mask.encode(np.asfortranarray(masks.cpu().numpy().transpose(1, 2, 0)))
    return encoded


def decode_mask(encoded: Any) -> np.ndarray:
    """The mask `(H, W)` uint8 of its run-length encoding."""
    with warnings.catch_warnings():  # pycocotools 2.0.11 lacks an argument of numpy 2
        warnings.simplefilter("ignore", DeprecationWarning)
        return pycocotools.mask.decode(encoded)


def as_rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The rows of a table."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def evaluate(images: Sequence[EvaluatedImage], names: Sequence[str], kind: Kind) -> COCOeval:
    """Match detections and objects, and accumulate precision and recall."""
    with redirect_stdout(io.StringIO()):
        truth = as_coco(images, [image.annotations for image in images], names, kind)
        detected = as_coco(images, [with_areas(image.detections, kind) for image in images], names, kind)
        evaluation = COCOeval(truth, detected, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def with_areas(detections: Sequence[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    """The detections with the areas of what is compared.

    `COCO.loadRes` would fail without a detection, and would take the areas of the boxes for masks too.
    """
    if kind == "bbox":
        return [{**row, "area": row["bbox"][2] * row["bbox"][3]} for row in detections]
    return [{**row, "area": float(pycocotools.mask.area(row["mask"]))} for row in detections]


def as_coco(
    images: Sequence[EvaluatedImage], rows: Sequence[Sequence[dict[str, Any]]], names: Sequence[str], kind: Kind
) -> COCO:
    """COCO's index of the entries of each image."""
    coco: Any = COCO()
    annotations: list[dict[str, Any]] = []
    for number, of_image in enumerate(rows):
        for row in of_image:
            row = {**row, "id": len(annotations) + 1, "image_id": number}  # an id of 0 means "not matched"
            annotations.append({**row, "segmentation": row["mask"]} if kind == "segm" else row)
    sizes = [{"id": number, "height": image.height, "width": image.width} for number, image in enumerate(images)]
    categories = [{"id": label, "name": name} for label, name in enumerate(names)]
    coco.dataset = {"images": sizes, "annotations": annotations, "categories": categories}
    coco.createIndex()
    return coco


def mean_figures(evaluation: COCOeval) -> dict[str, float]:
    """COCO's means over classes and thresholds of IoU; those of masks are `map_mask` and so on.

    A figure without an object to measure it on, e.g. `map_small` without small objects, is left out: COCO gives -1.
    """
    infix = "_mask" if evaluation.params.iouType == "segm" else ""
    means = {name: float(evaluation.stats[place]) for place, name in FIGURES.items()}
    return {f"{name[:3]}{infix}{name[3:]}": value for name, value in means.items() if value >= 0}


def class_figures(evaluation: COCOeval) -> dict[str, list[float | None]]:
    """For each class, AP at IoUs of 0.50 to 0.95 and AP at 0.5; None of a class without an object."""
    precision = evaluation.eval["precision"][..., AREA, MOST_DETECTIONS]  # (thresholds, points of recall, classes)
    means = {"ap": precision.mean((0, 1)), "ap50": precision[HALF].mean(0)}
    return {name: [None if value < 0 else float(value) for value in values] for name, values in means.items()}
