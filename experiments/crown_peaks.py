"""Tree crowns without a network: the peaks of an index of the colours, with boxes of one size."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.feature import peak_local_max

from experiments.detection_scores import average_precision, read_truth


def brightness(colours: np.ndarray) -> np.ndarray:
    """The mean of the channels; colours are `(H, W, 3)`."""
    return colours.mean(axis=-1)


def greenness(colours: np.ndarray) -> np.ndarray:
    """Green in excess of red and blue, relative to the brightness."""
    red, green, blue = np.moveaxis(colours, -1, 0)
    return (2 * green - red - blue) / (colours.sum(axis=-1) + 1)


def yellowness(colours: np.ndarray) -> np.ndarray:
    """Red in excess of blue, relative to the brightness: high on what the sun lights, low in shadows."""
    red, _, blue = np.moveaxis(colours, -1, 0)
    return (red - blue) / (colours.sum(axis=-1) + 1)


INDICES = {"brightness": brightness, "greenness": greenness, "yellowness": yellowness}
SMOOTHING, DISTANCE = 0.25, 0.5  # deviation of the filter and least distance of peaks, in median widths of a crown
SURROUNDINGS = (1.6, 2.0)  # deviation of the filter for what is subtracted, relative to the other's
BOXES = (1.0, 1.2)  # width of the boxes, in median widths of a crown
QUANTILES = (0.0, 0.25, 0.5, 0.75)  # of the scores, below which predictions are left out


class Detector(NamedTuple):
    """A detector; the sizes are in pixels."""

    index: str
    width: float
    surroundings: float
    box: float
    least_score: float = -np.inf


def crown_peaks(folder: Path) -> dict[str, float]:
    """The figures of the peaks on the held-out tiles, with everything chosen on the training tiles."""
    detector = tuned(folder / "train")
    truth = read_truth(folder / "test")
    everything = list(detect(folder / "test", truth, detector))
    certain = [found for found in everything if found["score"] >= detector.least_score]
    return {**average_precision(truth, everything), "f1_50": average_precision(truth, certain)["f1_50"]}


def tuned(folder: Path) -> Detector:
    """The detector with the highest average precision at IoU .5, and the least score with the highest F1."""
    truth = read_truth(folder)
    width = float(np.median([found["bbox"][2:] for found in truth["annotations"]]))
    detectors = [Detector(*some) for some in product(INDICES, [width], SURROUNDINGS, [size * width for size in BOXES])]
    found = [list(detect(folder, truth, detector)) for detector in detectors]
    best = int(np.argmax([average_precision(truth, of_one)["eval_map_50"] for of_one in found]))
    thresholds = np.quantile([one["score"] for one in found[best]], QUANTILES)
    kept = [[one for one in found[best] if one["score"] >= threshold] for threshold in thresholds]
    f1 = [average_precision(truth, of_one)["f1_50"] for of_one in kept]
    return detectors[best]._replace(least_score=float(thresholds[int(np.argmax(f1))]))


def detect(folder: Path, truth: dict[str, Any], detector: Detector) -> Iterator[dict[str, Any]]:
    """The predictions for the images of a split, as in COCO's results file."""
    for image in truth["images"]:
        colours = np.asarray(Image.open(folder / image["file_name"]).convert("RGB"), dtype=np.float32)
        response = peak_response(colours, detector)
        apart = max(1, int(DISTANCE * detector.width))
        peaks = peak_local_max(response, min_distance=apart, threshold_abs=0, exclude_border=False)
        for row, column in peaks.tolist():
            box = box_around(row, column, detector.box, *response.shape)
            yield {"image_id": image["id"], "category_id": 1, "bbox": box, "score": float(response[row, column])}


def peak_response(colours: np.ndarray, detector: Detector) -> np.ndarray:
    """How much an index at a pixel exceeds that of its surroundings."""
    index, deviation = INDICES[detector.index](colours), SMOOTHING * detector.width
    return gaussian_filter(index, deviation) - gaussian_filter(index, detector.surroundings * deviation)


def box_around(row: int, column: int, size: float, height: int, width: int) -> list[float]:
    """The box of a size around a pixel, clipped to the image: left, top, width and height."""
    left, top = max(column - size / 2, 0.0), max(row - size / 2, 0.0)
    return [left, top, min(column + size / 2, width) - left, min(row + size / 2, height) - top]
