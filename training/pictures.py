"""Pictures of a run: its loss curves and its reconstructions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no window system, no global state, nothing to close
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from hf_convnextv2 import ConvNextV2ForPreTraining
from hf_convnextv2.modeling_fcmae import ConvNextV2ForPreTrainingOutput

COLORS = ("#1f6f8b", "#d1682c", "#6b4c9a", "#4b8b3b")
HIDDEN_GRAY = 0.5


def read_metrics(metrics_jsonl: Path) -> list[dict[str, Any]]:
    """The logged lines of a run, in file order."""
    return [json.loads(line) for line in Path(metrics_jsonl).read_text(encoding="utf-8").splitlines() if line.strip()]


def series(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the lines that hold `key`."""
    found = [line for line in lines if line.get(key) is not None]
    return [line["step"] for line in found], [line[key] for line in found]


def save_loss_curves(metrics_jsonl: Path, output: Path) -> None:
    """Draw the loss of a run against its steps, with the learning rate and, where measured, the accuracy beside it."""
    lines = read_metrics(metrics_jsonl)
    has_accuracy = bool(series(lines, "eval_accuracy")[0])
    figure = Figure(figsize=(11 if has_accuracy else 6.5, 4), layout="constrained")
    axes = figure.subplots(1, 2 if has_accuracy else 1, squeeze=False)[0]
    plot_series(axes[0], lines, "loss", "training loss", COLORS[0])
    plot_series(axes[0], lines, "eval_loss", "evaluation loss", COLORS[1], marker="o")
    label_axes(axes[0], "loss")
    rate = axes[0].twinx()
    plot_series(rate, lines, "learning_rate", "learning rate", "0.65", linestyle="--")
    rate.set_ylabel("learning rate (dashed)", color="0.45")
    rate.spines["top"].set_visible(False)
    if has_accuracy:
        plot_series(axes[1], lines, "eval_accuracy", "top-1", COLORS[0], marker="o")
        if min(series(lines, "eval_accuracy_top5")[1], default=1) < 1:  # with five classes or fewer it is always 1
            plot_series(axes[1], lines, "eval_accuracy_top5", "top-5", COLORS[1], marker="o")
        label_axes(axes[1], "evaluation accuracy")
    save_figure(figure, output)


def save_reconstructions(
    model: ConvNextV2ForPreTraining,
    outputs: ConvNextV2ForPreTrainingOutput,
    pixel_values: Tensor,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    output: Path,
) -> None:
    """Draw one row an image: what the encoder sees in its first view, the reconstruction of the rest, and the original.

    `outputs` are the model's for `pixel_values` (B, C, H, W), which are normalised.
    """
    assert outputs.logits is not None and outputs.mask is not None
    mask = outputs.mask[: len(pixel_values)]
    reconstruction = model.reconstruct(pixel_values, outputs.logits[: len(pixel_values)], mask)
    hidden = _upsample_mask(mask, pixel_values.shape[-2:], model.config.cell_size)
    original = _as_pictures(pixel_values, image_mean, image_std)
    masked = np.where(hidden.numpy()[..., None], HIDDEN_GRAY, original)
    columns = {
        f"visible to the encoder ({1 - mask.float().mean().item():.0%})": masked,
        "reconstruction of the rest": _as_pictures(reconstruction, image_mean, image_std),
        "original": original,
    }
    save_figure(_picture_grid(columns), output)


def plot_series(axes: Axes, lines: Sequence[Mapping[str, Any]], key: str, label: str, color: str, **style: Any) -> None:
    """Draw what the lines hold of `key` against their steps; nothing if no line holds it."""
    steps, values = series(lines, key)
    if steps:
        axes.plot(steps, values, label=label, color=color, **{"markersize": 3, "linewidth": 1.4, **style})


def label_axes(axes: Axes, label: str) -> None:
    """Name the axes of a curve over steps and set the house look."""
    axes.set(xlabel="step", ylabel=label)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top"]].set_visible(False)
    if len(axes.get_lines()) > 1:
        axes.legend(frameon=False)


def save_figure(figure: Figure, output: Path) -> None:
    """Write the picture, making its folder."""
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


def _picture_grid(columns: Mapping[str, np.ndarray]) -> Figure:
    """Each column in one axes: with an axes for each picture, drawing eight took twice as long."""
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


def _as_pictures(pixel_values: Tensor, image_mean: Sequence[float], image_std: Sequence[float]) -> np.ndarray:
    """Normalised (B, C, H, W) to displayable (B, H, W, 3): the first three channels, or the first one in grey."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (image_mean, image_std))
    pictures = (pixel_values.detach().float().cpu() * std + mean).clamp(0, 1)
    shown = pictures[:, :3] if pictures.shape[1] >= 3 else pictures[:, :1].expand(-1, 3, -1, -1)
    return shown.permute(0, 2, 3, 1).numpy()  # (B, H, W, 3)


def _upsample_mask(mask: Tensor, size: Sequence[int], cell_size: int) -> Tensor:
    """(B, L), 1 = hidden, to bool (B, H, W), True = hidden."""
    height, width = size
    grid = mask.detach().cpu().bool().view(-1, height // cell_size, width // cell_size)
    return grid.repeat_interleave(cell_size, 1).repeat_interleave(cell_size, 2)
