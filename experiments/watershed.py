"""Nuclei without a network: Otsu's threshold, and a watershed of the distance to the background."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from scipy.ndimage import distance_transform_edt
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label
from skimage.segmentation import watershed

from experiments.cells import coco_mask
from experiments.detection_scores import average_precision, read_truth

SMOOTHING = 1.0  # pixels, of the image and of the distances
DISTANCES, LEAST_AREAS = (6, 8, 10, 12, 15), (50, 100, 150)  # between centres, and of a nucleus, in pixels


class Segmenter(NamedTuple):
    """A segmenter; the distance of the centres and the area are in pixels."""

    threshold: float
    distance: int
    least_area: int


def watershed_nuclei(folder: Path) -> dict[str, float]:
    """The figures of the watershed on the held-out tiles, with everything chosen on the training tiles."""
    segmenter = tuned(folder / "train")
    truth = read_truth(folder / "test")
    found = list(segment(folder / "test", truth, segmenter))
    overlap = {"foreground_iou": foreground_iou(truth, found)}
    return {**average_precision(truth, found), **average_precision(truth, found, "segm"), **overlap}


def tuned(folder: Path) -> Segmenter:
    """One threshold for all tiles, as some are empty, and the sizes with the highest F1 of the masks."""
    truth = read_truth(folder)
    levels = np.stack([levels_of(folder / image["file_name"]) for image in truth["images"]])
    threshold = float(threshold_otsu(levels))
    segmenters = [Segmenter(threshold, *sizes) for sizes in product(DISTANCES, LEAST_AREAS)]
    found = [list(segment(folder, truth, segmenter)) for segmenter in segmenters]
    return segmenters[int(np.argmax([average_precision(truth, of_one, "segm")["f1_50_mask"] for of_one in found]))]


def levels_of(file: Path) -> np.ndarray:
    """The smoothed logarithm of an image's brightness, as Otsu's threshold would miss dim nuclei without it."""
    return np.log1p(gaussian(np.asarray(Image.open(file), dtype=np.float64), SMOOTHING))


def segment(folder: Path, truth: dict[str, Any], segmenter: Segmenter) -> Iterator[dict[str, Any]]:
    """The predictions for the images of a split, as in COCO's results file; the bright ones are the certain ones."""
    for image in truth["images"]:
        levels = levels_of(folder / image["file_name"])
        nuclei = separate(levels > segmenter.threshold, segmenter.distance)
        for number in np.flatnonzero(np.bincount(nuclei.ravel()) >= segmenter.least_area):
            if number:  # 0 is the background
                mask = nuclei == number
                own = {"image_id": image["id"], "category_id": 1, "score": float(levels[mask].mean())}
                yield {**own, **coco_mask(mask)}


def separate(foreground: np.ndarray, distance: int) -> np.ndarray:
    """The number of each pixel's nucleus, from 1 on. Its centre is furthest from the background."""
    depth = gaussian(distance_transform_edt(foreground), SMOOTHING)
    centres = peak_local_max(depth, min_distance=distance, labels=label(foreground), exclude_border=False)
    markers = np.zeros(foreground.shape, int)
    markers[tuple(centres.T)] = np.arange(1, len(centres) + 1)
    return watershed(-depth, markers, mask=foreground)


def foreground_iou(truth: dict[str, Any], found: list[dict[str, Any]]) -> float:
    """The IoU of the pixels of all nuclei, over all images."""
    overlap = union = 0
    for image in truth["images"]:
        true, predicted = (
            rle.merge([one["segmentation"] for one in objects if one["image_id"] == image["id"]])
            for objects in (truth["annotations"], found)
        )
        overlap += rle.area(rle.merge([true, predicted], intersect=True))
        union += rle.area(rle.merge([true, predicted]))
    return float(overlap / union)
