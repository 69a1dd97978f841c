"""Means and deviations over the seeds, as a table and as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

from training.evaluation.pictures import save_figure

Scores = dict[str, dict[str, float]]  # by method, then by share of the labels and seed
Summary = dict[str, list[tuple[float, float, float]]]  # by method: share of the labels, mean and deviation
FINETUNED = "fine-tuned"  # begins the name of a fine-tuned classifier


def case_name(share: float, seed: int) -> str:
    """The name of a draw of labels, in folders and results."""
    return f"{share:g}-{seed}"


def summarise(scores: Scores, shares: Sequence[float], seeds: Sequence[int]) -> Summary:
    """Share of the labels, mean and standard deviation over the seeds, of every method."""
    summary = {}
    for name, found in scores.items():
        rows = [(share, [found[case_name(share, seed)] for seed in seeds]) for share in shares]
        summary[name] = [(share, mean(row), stdev(row) if len(row) > 1 else 0.0) for share, row in rows]
    return summary


def table(summary: Summary) -> str:
    """The figures in %, as Markdown."""
    shares = [f"{100 * share:g}%" for share, _, _ in next(iter(summary.values()))]
    lines = ["| method | " + " | ".join(shares) + " |", "|---|" + "---:|" * len(shares)]
    for name, row in summary.items():
        cells = [f"{100 * middle:.1f} ± {100 * spread:.1f}" for _, middle, spread in row]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save_plot(summary: Mapping[str, list[tuple[float, float, float]]], output: Path, num_classes: int) -> None:
    """Draw balanced accuracy against the share of the labels, with the standard deviation over the seeds.

    Args:
        num_classes: of the held-out images. A dotted line shows the balanced accuracy of answers without knowledge.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    for index, (name, rows) in enumerate(summary.items()):
        shares, means, spreads = zip(*rows, strict=True)
        style = {"linestyle": "-" if FINETUNED in name else "--", "color": f"C{index}", "capsize": 2}
        axes.errorbar([100 * share for share in shares], means, yerr=spreads, label=name, marker="o", **style)
    axes.axhline(1 / num_classes, color="0.8", linestyle=":", zorder=0)
    axes.set(xscale="log", xlabel="share of the labels, %", ylabel="balanced accuracy on held-out images")
    axes.set_xticks([100 * row[0] for row in next(iter(summary.values()))])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(color="0.92")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save_figure(figure, output)
