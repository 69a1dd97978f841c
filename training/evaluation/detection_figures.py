"""The table of classes and the picture of predictions of a detector."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F

from conversion.model_folder import PER_CLASS, PREDICTIONS
from training.evaluation.average_precision import EvaluatedImage, decode_mask
from training.evaluation.detection import DetectionEvaluator
from training.evaluation.pictures import as_pictures, drawable, save_figure
from training.evaluation.segmentation_figures import add_legend, class_colors, legend_height
from training.evaluation.tables import format_table, write_csv

HEADINGS = {"objects": "objects", "ap": "AP", "ap50": "AP50", "mask_ap": "mask AP"}
SIDE = 512  # of an image in the picture, in pixels
GAP = 8  # between images
TEXT_HEIGHT = 14  # in pixels
MOST_WITH_TEXT = 20  # objects in an image: the names of more would hide it
MOST_COLORS = 10  # of the objects of a single class
TINT = 0.45  # opacity of a mask


class Place(NamedTuple):
    """Where an image lies in the picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def table_in_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of an evaluation as text: all classes if they are few, else those with the lowest AP."""
    return format_table(rows, {key: HEADINGS[key] for key in columns_of(rows)}, worst_by="ap")


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures in the table of an evaluation."""
    return [key for key in HEADINGS if key in rows[0]]


def save_figures(folder: Path, evaluator: DetectionEvaluator, names: Sequence[str], processor: Any) -> None:
    """Write table and picture of the last evaluation. Without one, delete those of an earlier run."""
    for file in (PER_CLASS, PREDICTIONS):
        (folder / file).unlink(missing_ok=True)
    if not evaluator.shown:
        return
    write_csv(folder / PER_CLASS, evaluator.per_class, ("label", "class", *columns_of(evaluator.per_class)))
    save_predictions(evaluator, names, processor, folder / PREDICTIONS)


def save_predictions(evaluator: DetectionEvaluator, names: Sequence[str], processor: Any, output: Path) -> None:
    """Draw each image with its objects, and with the detections that have a score of `shown_score` or more.

    A colour stands for a class; of a single class, for an object. Crowds have dashed boxes.
    """
    images = [image for _, image in evaluator.shown]
    places = places_of(images)
    canvas = np.ones((places[-1].top + places[-1].height, SIDE, 3), np.float32)
    for (pixel_values, _), place in zip(evaluator.shown, places, strict=True):
        part_of(canvas, place)[:] = picture_of(pixel_values, place, processor)
    columns = {
        "objects": [image.annotations for image in images],
        "detections": [[row for row in image.detections if row["score"] >= evaluator.shown_score] for image in images],
    }
    is_single = len(names) == 1
    colors = class_colors(MOST_COLORS if is_single else len(names))
    legend = 0 if is_single else legend_height(names)
    figure = Figure(figsize=(8.2, 4 * len(canvas) / SIDE + 0.3 + legend), layout="constrained")
    for axes, (title, of_images) in zip(figure.subplots(1, 2), columns.items(), strict=True):
        axes.set_title(title, fontsize=8)
        painted = canvas.copy()
        for rows, image, place in zip(of_images, images, places, strict=True):
            chosen = colors[[i % MOST_COLORS if is_single else row["category_id"] for i, row in enumerate(rows)]]
            tint(part_of(painted, place), rows, chosen)
            draw_boxes(axes, rows, chosen, names, place, place.width / image.width)
        axes.imshow(painted, vmin=0, vmax=1)
        axes.axis("off")
    if not is_single:
        add_legend(figure, colors, names)
    save_figure(figure, output)


def places_of(images: Sequence[EvaluatedImage]) -> list[Place]:
    """Places below each other, in the shapes of the original images."""
    places, top = [], 0
    for image in images:
        scale = SIDE / max(image.height, image.width)
        height, width = max(1, round(image.height * scale)), max(1, round(image.width * scale))
        places.append(Place(top, (SIDE - width) // 2, height, width))
        top += height + GAP
    return places


def part_of(canvas: np.ndarray, place: Place) -> np.ndarray:
    """The pixels of a place."""
    return canvas[place.top : place.top + place.height, place.left : place.left + place.width]


def picture_of(pixel_values: Tensor, place: Place, processor: Any) -> np.ndarray:
    """A normalised image `(C, h, w)` as a picture `(place.height, place.width, 3)`."""
    picture = torch.from_numpy(as_pictures(pixel_values[None], processor.image_mean, processor.image_std))
    size = (place.height, place.width)
    resized = F.interpolate(picture.permute(0, 3, 1, 2), size=size, mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).clamp(0, 1).numpy()


def tint(picture: np.ndarray, rows: Sequence[Mapping[str, Any]], colors: np.ndarray) -> None:
    """Paint the masks of the objects, if they have any, over a picture in their colours."""
    for row, color in zip(rows, colors, strict=True):
        if "mask" in row:
            mask = torch.from_numpy(decode_mask(row["mask"]))[None, None].float()
            is_object = F.interpolate(mask, size=picture.shape[:2], mode="nearest")[0, 0].numpy() > 0
            picture[is_object] = (1 - TINT) * picture[is_object] + TINT * color


def draw_boxes(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    colors: np.ndarray,
    names: Sequence[str],
    place: Place,
    scale: float,
) -> None:
    """Draw the boxes of an image that is shown at this scale, with names and scores unless there are too many."""
    for row, color in zip(rows, colors, strict=True):
        left, top, width, height = (scale * number for number in row["bbox"])
        left, top = place.left + left, place.top + top
        style = "dashed" if row.get("iscrowd") else "solid"
        axes.add_patch(Rectangle((left, top), width, height, fill=False, color=tuple(color), linestyle=style))
        if len(rows) <= MOST_WITH_TEXT:
            label: int = row["category_id"]
            name = drawable(names[label], label)
            text = f"{name} {row['score']:.2f}" if "score" in row else name
            background = {"facecolor": tuple(color), "edgecolor": "none", "pad": 0.8}
            inside = max(top, place.top + TEXT_HEIGHT)
            axes.text(left, inside, text, fontsize=6, color="white", va="bottom", bbox=background, clip_on=True)
