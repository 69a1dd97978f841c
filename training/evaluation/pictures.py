"""Pictures of a run: loss curves, reconstructions, confusion matrices and images with labels."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # pyplot needs figures closed, has global state and may open windows
from matplotlib.font_manager import findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional as F

from hf_convnextv2.masked_pretraining import MaskedAutoencoderOutput, MaskedPreTrainingModel

COLORS = ("#1f6f8b", "#d1682c", "#6b4c9a", "#4b8b3b")
# Figures that are drawn beside the loss, by the label of their axis; each run has those of one.
MEASURED = {
    "evaluation accuracy": {"eval_accuracy": "top-1", "eval_accuracy_top5": "top-5"},
    "evaluation of all classes": {
        "eval_mean_average_precision": "mean average precision",
        "eval_f1_micro": "micro F1",
        "eval_f1_macro": "macro F1",
    },
    "R2, evaluation": {"eval_r2": "R2"},
}
HIDDEN_GRAY = 0.5
WITH_SHARES = 10  # up to this many classes, a confusion matrix shows shares as well as counts
MOST_PAIRS = 25  # pairs of confused classes in a picture
LONGEST_NAME = 28  # characters of a class name in a label
PICTURES_IN_ROW = 5
PICTURE_SIDE = 256  # largest side of a labelled picture, in pixels


def read_metrics(metrics_jsonl: Path) -> list[dict[str, Any]]:
    """The logged lines of a run, in file order."""
    return [json.loads(line) for line in Path(metrics_jsonl).read_text(encoding="utf-8").splitlines() if line.strip()]


def series(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the lines that hold `key`."""
    found = [line for line in lines if line.get(key) is not None]
    return [line["step"] for line in found], [line[key] for line in found]


def save_loss_curves(metrics_jsonl: Path, output: Path) -> None:
    """Draw the loss of a run against its steps, with the learning rate and, where measured, its figures beside it."""
    lines = read_metrics(metrics_jsonl)
    measured = next((title for title, curves in MEASURED.items() if series(lines, next(iter(curves)))[0]), None)
    figure = Figure(figsize=(6.5 if measured is None else 11, 4), layout="constrained")
    axes = figure.subplots(1, 1 if measured is None else 2, squeeze=False)[0]
    plot_series(axes[0], lines, "loss", "training loss", COLORS[0])
    plot_series(axes[0], lines, "eval_loss", "evaluation loss", COLORS[1], marker="o")
    label_axes(axes[0], "loss")
    rate = axes[0].twinx()
    plot_series(rate, lines, "learning_rate", "learning rate", "0.65", linestyle="--")
    rate.set_ylabel("learning rate (dashed)", color="0.45")
    rate.spines["top"].set_visible(False)
    if measured is not None:
        for (key, label), color in zip(MEASURED[measured].items(), COLORS, strict=False):
            # With five classes or fewer, the top-5 accuracy is always 1.
            if key != "eval_accuracy_top5" or min(series(lines, key)[1], default=1) < 1:
                plot_series(axes[1], lines, key, label, color, marker="o")
        label_axes(axes[1], measured)
    save_figure(figure, output)


def save_reconstructions(
    model: MaskedPreTrainingModel,
    outputs: MaskedAutoencoderOutput,
    pixel_values: Tensor,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    output: Path,
) -> None:
    """Draw one row for each image: the visible cells of its first view, the reconstruction of the rest, the original.

    `outputs` are the model's outputs for the normalised `pixel_values` (B, C, H, W).
    """
    assert outputs.logits is not None and outputs.mask is not None
    mask = outputs.mask[: len(pixel_values)]
    reconstruction = model.reconstruct(pixel_values, outputs.logits[: len(pixel_values)], mask)
    hidden = _upsample_mask(mask, pixel_values.shape[-2:], model.config.target_size)
    original = as_pictures(pixel_values, image_mean, image_std)
    masked = np.where(hidden.numpy()[..., None], HIDDEN_GRAY, original)
    columns = {
        f"visible to the encoder ({1 - mask.float().mean().item():.0%})": masked,
        "reconstruction of the rest": as_pictures(reconstruction, image_mean, image_std),
        "original": original,
    }
    save_figure(_picture_grid(columns), output)


def plot_series(axes: Axes, lines: Sequence[Mapping[str, Any]], key: str, label: str, color: str, **style: Any) -> None:
    """Draw the values of `key` against their steps. Draw nothing if no line holds `key`."""
    steps, values = series(lines, key)
    if steps:
        axes.plot(steps, values, label=label, color=color, **{"markersize": 3, "linewidth": 1.4, **style})


def label_axes(axes: Axes, label: str) -> None:
    """Label the axes of a curve over steps, and set the common style."""
    axes.set(xlabel="step", ylabel=label)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top"]].set_visible(False)
    if len(axes.get_lines()) > 1:
        axes.legend(frameon=False)


def save_confusion_matrix(counts: np.ndarray, names: Sequence[str], output: Path) -> None:
    """Draw a confusion matrix `(C, C)`, with a row for each true class. Readable for up to about fifty classes."""
    side = 2.5 + 0.55 * len(names) if len(names) <= WITH_SHARES else 3 + 0.34 * len(names)
    figure = Figure(figsize=(side, side), layout="constrained")
    draw_confusion(figure.subplots(), counts, names)
    save_figure(figure, output)


def draw_confusion(axes: Axes, counts: np.ndarray, names: Sequence[str]) -> None:
    """Draw the counts on a colour that shows their share of the row. With few classes, write the share as well."""
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    is_small = len(names) <= WITH_SHARES
    for row, column in np.argwhere(counts >= (0 if is_small else 1)):
        count, share = counts[row, column], shares[row, column]
        text, color = f"{count}\n{share:.1%}" if is_small else f"{count}", "white" if share > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8 if is_small else 7)
    labels = [drawable(name, number) for number, name in enumerate(names)]
    is_short = len(names) == 2 and max(map(len, labels)) <= 12
    axes.set_xticks(range(len(names)), labels, rotation=0 if is_short else 90)
    axes.set_yticks(range(len(names)), labels, rotation=90 if is_short else 0, va="center")
    axes.set(xlabel="predicted", ylabel="true")


def save_most_confused(confused: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Draw the most frequent confusions. Each row of `confused` has names and numbers of both classes, and `images`."""
    shown = confused[:MOST_PAIRS]
    figure = Figure(figsize=(9, 1 + 0.26 * len(shown)), layout="constrained")
    axes = figure.subplots()
    pairs = [(drawable(row["class"], row["label"]), drawable(row["taken_for"], row["taken_label"])) for row in shown]
    labels = [f"{true} \N{RIGHTWARDS ARROW} {taken}" for true, taken in pairs]
    axes.barh(range(len(shown)), [row["images"] for row in shown], color=COLORS[0])
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.set(xlabel="images", title="true class \N{RIGHTWARDS ARROW} predicted class")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, output)


def save_labelled_pictures(pictures: Sequence[Tensor], labels: Sequence[str], output: Path) -> None:
    """Draw images `(C, H, W)` of any sizes, uint8 or floats, in rows, each under its label."""
    rows, columns = math.ceil(len(pictures) / PICTURES_IN_ROW), min(PICTURES_IN_ROW, len(pictures))
    figure = Figure(figsize=(2 * columns, 2.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, picture, label in zip(grid, pictures, labels, strict=False):
        axes.imshow(reduced(picture), vmin=0, vmax=1)
        axes.set_title(label, fontsize=8)
    save_figure(figure, output)


def reduced(picture: Tensor) -> np.ndarray:
    """An image `(C, H, W)` for a small picture, `(h, w, 3)` in [0, 1]; floats are scaled to that range."""
    values = picture.float() / 255 if picture.dtype == torch.uint8 else picture.float() - picture.min()
    values = values / values.max().clamp(min=1)
    scale = min(1.0, PICTURE_SIDE / max(values.shape[1:]))
    size = [max(1, round(side * scale)) for side in values.shape[1:]]
    values = F.interpolate(values[None], size, mode="bilinear", antialias=True)
    return as_pictures(values, [0.0], [1.0])[0]


def drawable(name: str, number: int, kind: str = "class") -> str:
    """A name as a label, or the number of the class (or another `kind`) if the font lacks characters of the name."""
    text = " ".join(name.split())
    font = get_font(findfont("DejaVu Sans"))
    if not all(font.get_char_index(ord(letter)) for letter in text):
        return f"{kind} {number}"
    short = text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
    return short.replace("$", r"\$")  # a bare $ would start a formula


def save_figure(figure: Figure, output: Path) -> None:
    """Write the picture, and create its folder if needed."""
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


def _picture_grid(columns: Mapping[str, np.ndarray]) -> Figure:
    """Draw each column of pictures in a single axes: with an axes for each, drawing eight took twice as long."""
    rows, height, width = next(iter(columns.values())).shape[:3]
    side = 2.0  # inches
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure = Figure(figsize=(side * len(columns), side * height / width * rows + 0.3), layout=layout)
    gap = max(height // 50, 1)
    for axes, (title, pictures) in zip(figure.subplots(1, len(columns)), columns.items(), strict=True):
        axes.set_title(title, fontsize=8)
        spaced = np.pad(pictures, ((0, 0), (0, gap), (0, 0), (0, 0)), constant_values=1)
        axes.imshow(spaced.reshape(-1, *spaced.shape[2:])[:-gap], vmin=0, vmax=1)
        axes.axis("off")
    return figure


def as_pictures(pixel_values: Tensor, image_mean: Sequence[float], image_std: Sequence[float]) -> np.ndarray:
    """Convert normalised (B, C, H, W) to displayable (B, H, W, 3): the first three channels, or the first as grey."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (image_mean, image_std))
    pictures = (pixel_values.detach().float().cpu() * std + mean).clamp(0, 1)
    shown = pictures[:, :3] if pictures.shape[1] >= 3 else pictures[:, :1].expand(-1, 3, -1, -1)
    return shown.permute(0, 2, 3, 1).numpy()  # (B, H, W, 3)


def _upsample_mask(mask: Tensor, size: Sequence[int], cell_size: int) -> Tensor:
    """Convert a mask (B, L), 1 = hidden, to a bool mask (B, H, W), True = hidden."""
    height, width = size
    grid = mask.detach().cpu().bool().view(-1, height // cell_size, width // cell_size)
    return grid.repeat_interleave(cell_size, 1).repeat_interleave(cell_size, 2)
