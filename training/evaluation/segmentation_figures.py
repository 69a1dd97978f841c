"""The table of classes, the confusion matrix and the picture of predictions of a segmentation model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor
from torch.nn import functional as F

from conversion.model_folder import CONFUSION_MATRIX, PER_CLASS, PREDICTIONS
from training.evaluation.per_class import MOST_IN_MATRIX
from training.evaluation.pictures import as_pictures, drawable, save_confusion_matrix, save_figure
from training.evaluation.segmentation import SegmentationEvaluator, Shown, class_figures
from training.evaluation.tables import format_table, write_csv

FIGURES = ("iou", "precision", "recall")
MOST_IN_LEGEND = 24  # classes
SIDE = 256  # of an image in the picture, in pixels
NO_CLASS = (0.5, 0.5, 0.5)


def class_table(confusion: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class: its true pixels, IoU, precision and recall. A share is None if its divisor is zero."""
    figures = class_figures(confusion)
    rows = []
    for label, name in enumerate(names):
        shares = {key: None if np.isnan(figures[key][label]) else float(figures[key][label]) for key in FIGURES}
        rows.append({"label": label, "class": name, "pixels": int(confusion[label].sum()), **shares})
    return rows


def table_in_words(confusion: np.ndarray, names: Sequence[str]) -> str:
    """The table as text: all classes if they are few, else those with the lowest IoU; a warning if one is true."""
    headings = {"pixels": "pixels", "iou": "IoU", "precision": "precision", "recall": "recall"}
    table = format_table(class_table(confusion, names), headings, worst_by="iou")
    true = np.flatnonzero(confusion.sum(1))
    if len(true) > 1 or len(names) == 1:
        return table
    return (
        f"{table}\nWarning: all pixels that have a class are of {names[true[0]]}, which a model that always says it "
        "gets right. See which numbers the masks hold, and `--mask_values`, `--ignore_index` and `--reduce_labels`."
    )


def save_figures(folder: Path, evaluator: SegmentationEvaluator, names: Sequence[str], processor: Any) -> None:
    """Write table and pictures of the last evaluation. Without one, delete those of an earlier run."""
    for file in (PER_CLASS, CONFUSION_MATRIX, PREDICTIONS):
        (folder / file).unlink(missing_ok=True)
    if evaluator.confusion is None:
        return
    table = class_table(evaluator.confusion, names)
    write_csv(folder / PER_CLASS, table, ("label", "class", "pixels", *FIGURES))
    if len(names) <= MOST_IN_MATRIX:
        save_confusion_matrix(evaluator.confusion, names, folder / CONFUSION_MATRIX)
    save_predictions(evaluator.shown, names, processor, folder / PREDICTIONS)


def save_predictions(shown: Sequence[Shown], names: Sequence[str], processor: Any, output: Path) -> None:
    """Draw each image with its true and its predicted classes. Pixels without a class are grey."""
    colors = class_colors(len(names))
    columns: dict[str, list[np.ndarray]] = {"image": [], "true classes": [], "prediction": []}
    for pixel_values, labels, prediction in shown:
        picture = as_pictures(pixel_values[None], processor.image_mean, processor.image_std)
        columns["image"].append(boxed(torch.from_numpy(picture)[0].permute(2, 0, 1), "bilinear"))
        for title, classes in (("true classes", labels), ("prediction", prediction)):
            known = (classes >= 0) & (classes < len(names))
            painted = colors[torch.where(known, classes, len(names)).numpy()]
            columns[title].append(boxed(torch.from_numpy(painted).permute(2, 0, 1), "nearest"))
    figure = Figure(figsize=(6.2, 2 * len(shown) + 0.3 + legend_height(names)), layout="constrained")
    for axes, (title, pictures) in zip(figure.subplots(1, 3), columns.items(), strict=True):
        axes.set_title(title, fontsize=8)
        axes.imshow(np.concatenate(pictures), vmin=0, vmax=1)
        axes.axis("off")
    add_legend(figure, colors, names)
    save_figure(figure, output)


def legend_height(names: Sequence[str]) -> float:
    """The height of `add_legend`, in inches."""
    return 0.22 * -(-min(len(names), MOST_IN_LEGEND) // 4) + 0.3


def add_legend(figure: Figure, colors: np.ndarray, names: Sequence[str]) -> None:
    """Name the colours of the classes below the pictures."""
    patches = [
        Patch(color=tuple(colors[number]), label=drawable(name, number))
        for number, name in enumerate(names[:MOST_IN_LEGEND])
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=7, frameon=False)


def class_colors(count: int) -> np.ndarray:
    """A colour `(count + 1, 3)` for each class; the last one is that of pixels without a class."""
    if count <= 20:
        table = np.asarray(colormaps["tab20"].colors)  # type: ignore[attr-defined]
        order = [*range(0, 20, 2), *range(1, 20, 2)]  # the strong colours first
        colors = table[order][:count]
    else:  # neighbouring numbers get colours far apart
        numbers = np.arange(count)
        hues = numbers * 0.618 % 1
        colors = hsv_to_rgb(np.stack([hues, 0.5 + 0.5 * (numbers % 2), 0.6 + 0.4 * (numbers // 2 % 2)], axis=1))
    return np.concatenate([colors, [NO_CLASS]]).astype(np.float32)


def boxed(picture: Tensor, mode: str) -> np.ndarray:
    """A picture `(3, H, W)` resized into the middle of a white square `(SIDE, SIDE, 3)`."""
    height, width = picture.shape[-2:]
    scale = SIDE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    resized = F.interpolate(picture[None].float(), size=size, mode=mode)[0].permute(1, 2, 0).numpy()
    box = np.ones((SIDE, SIDE, 3), np.float32)
    top, left = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    box[top : top + size[0], left : left + size[1]] = resized
    return box
