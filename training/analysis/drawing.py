"""Pictures of the analyses."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from training.evaluation.pictures import COLORS, HIDDEN_GRAY, as_pictures, drawable, save_figure

SIDE = 3.2  # inches of a panel
CLIPPED = (1, 99)  # percentiles that are drawn as black and as white, so that a few outliers do not hide the rest
PANELS_IN_ROW = 5  # of activation maps
MOST_TICKS = 18  # names of blocks on an axis
WIDE_TITLE, OUTPUT_TITLE = "channels of the MLP, after GRN or GELU", "channels of the output"


def save_diversity(models: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Draw the cosine distance of the channels against the depth, a curve for each model; lighter is later."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    colors = colors_of(models)
    for axes, key, title in zip(panels, ("wide", "output"), (WIDE_TITLE, OUTPUT_TITLE), strict=True):
        for model, color in zip(models, colors, strict=True):
            values = [block[key] for block in model["blocks"]]
            depth = np.linspace(0, 1, len(values)) if len(values) > 1 else [0.5]
            axes.plot(depth, values, label=short_name(model), color=color, marker="o", markersize=3, linewidth=1.4)
        axes.axhline(0.5, color="0.6", linestyle=":", label="orthogonal")
        axes.set(title=title, xlabel="depth of the block (0: the first, 1: the last)")
        soften(axes)
    panels[0].set_ylabel("mean cosine distance of the channels")
    panels[0].set_ylim(0, 1.05 * max(axes.dataLim.y1 for axes in panels))
    panels[1].legend(frameon=False, fontsize=8)
    save_figure(figure, output)


def colors_of(models: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A colour for each model: checkpoints, and many models, go from dark to light in their order."""
    if len(models) > len(COLORS) or any(model["step"] is not None for model in models):
        return [colormaps["viridis"](share) for share in np.linspace(0, 0.9, len(models))]
    return list(COLORS[: len(models)])


def short_name(model: Mapping[str, Any]) -> str:
    """The name of a model in the legend: the end of a long path."""
    return drawable(model["model"][-27:], 0, "model")


def save_activations(
    photograph: Tensor, processor: Any, titles: Sequence[str], maps: Sequence[np.ndarray], output: Path
) -> None:
    """Draw the photograph `(1, C, H, W)`, and the maps `(channels, h, w)` of each block as a square of small maps."""
    columns, rows = min(1 + len(maps), PANELS_IN_ROW), math.ceil((1 + len(maps)) / PANELS_IN_ROW)
    figure = Figure(figsize=(SIDE * columns, (SIDE + 0.3) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    panels[0].imshow(as_picture(photograph, processor))
    panels[0].set_title("the photograph", fontsize=8)
    for axes, title, channels in zip(panels[1:], titles, maps, strict=False):
        low, high = np.percentile(channels, CLIPPED)
        grid, high = in_a_square(channels), max(high, low + 1e-12)
        axes.imshow(grid, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(title, fontsize=8)
    save_figure(figure, output)


def in_a_square(maps: np.ndarray) -> np.ndarray:
    """Maps `(channels, h, w)` row after row as one image, with gaps that are not a number."""
    count, height, width = maps.shape
    columns = math.ceil(math.sqrt(count))
    rows, gap = math.ceil(count / columns), max(height // 10, 1)
    grid = np.full((rows * columns, height + gap, width + gap), np.nan)
    grid[:count, :height, :width] = maps
    whole = grid.reshape(rows, columns, height + gap, width + gap).transpose(0, 2, 1, 3)
    return whole.reshape(rows * (height + gap), columns * (width + gap))[:-gap, :-gap]


def save_context(photograph: Tensor, processor: Any, found: Mapping[str, Any], output: Path) -> None:
    """Draw the photograph `(1, C, H, W)`, what is visible of it, the shares of the cells, and those by distance."""
    figure = Figure(figsize=(4 * SIDE + 0.8, SIDE + 0.3), layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=(1, 1, 1.15, 1))
    side, picture = found["cell_size"], as_picture(photograph, processor)
    hidden = ~np.array(found["visible"]).repeat(side, 0).repeat(side, 1)
    visible = np.where(hidden[..., None], HIDDEN_GRAY, picture)
    panels[0].imshow(picture)
    panels[1].imshow(visible)
    shares = np.array(found["photograph"]["shares"]).repeat(side, 0).repeat(side, 1)
    panels[2].imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=1)
    heat = panels[2].imshow(
        np.ma.array(shares, mask=hidden), cmap="inferno", vmin=0, alpha=0.8, interpolation="nearest"
    )
    figure.colorbar(heat, ax=panels[2], shrink=0.85, format="{x:.0%}")
    titles = ("the photograph", "visible to the encoder, and the hidden cell", "share of each visible cell")
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(title, fontsize=8)
        axes.axis("off")
    for axes in panels[:3]:
        outline(axes, found["hidden_cell"], side)
    draw_distances(panels[3], found)
    save_figure(figure, output)


def outline(axes: Axes, cell: Sequence[int], side: int) -> None:
    """Draw the border of a cell, by row and column from 1 on."""
    row, column = cell
    corner = ((column - 1) * side - 0.5, (row - 1) * side - 0.5)
    axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="#00d0ff", linewidth=2))


def draw_distances(axes: Axes, found: Mapping[str, Any]) -> None:
    """Draw the shares at each distance, of the photograph and of the images."""
    of_photograph, of_images = found["photograph"]["by_distance"], found["images"]["by_distance"]
    distances = np.array([row["distance"] for row in of_photograph])
    number = found["images"]["number"]
    axes.bar(distances - 0.2, [row["share"] for row in of_photograph], 0.4, label="the photograph", color=COLORS[0])
    axes.bar(distances + 0.2, [row["share"] for row in of_images], 0.4, label=f"{number} images", color=COLORS[1])
    axes.set_xticks(distances)
    axes.set(xlabel="distance from the hidden cell, in cells")
    axes.set_title("share of all visible cells there", fontsize=8)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.legend(frameon=False, fontsize=8)
    soften(axes)


def save_layers(found: Mapping[str, Any], methods: Sequence[str], output: Path) -> None:
    """Draw the balanced accuracy of each method against the blocks, a curve for each pooling."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    rows = found["layers"]
    blocks, poolings = (list(dict.fromkeys(row[key] for row in rows)) for key in ("block", "pooling"))
    step = math.ceil(len(blocks) / MOST_TICKS)
    panels = figure.subplots(1, len(methods), sharey=True)
    for axes, method in zip(panels, methods, strict=True):
        for pooling, color in zip(poolings, COLORS, strict=False):
            values = [row[method]["balanced_accuracy"] for row in rows if row["pooling"] == pooling]
            axes.plot(range(len(blocks)), values, label=pooling, color=color, marker="o", markersize=3, linewidth=1.4)
        axes.axhline(
            found["pixels"]["balanced_accuracy"], color="0.5", linestyle="--", label="statistics of the pixels"
        )
        axes.set_xticks(range(0, len(blocks), step), blocks[::step])
        axes.set(title=method, xlabel="block")
        axes.yaxis.set_major_formatter("{x:.0%}")
        soften(axes)
    panels[0].set_ylabel("balanced accuracy on held-out images")
    panels[-1].legend(frameon=False, fontsize=8)
    save_figure(figure, output)


def as_picture(photograph: Tensor, processor: Any) -> np.ndarray:
    """A prepared photograph `(1, C, H, W)` as `(H, W, 3)` in [0, 1]."""
    return as_pictures(photograph, processor.image_mean, processor.image_std)[0]


def soften(axes: Axes) -> None:
    """Set the common style."""
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
