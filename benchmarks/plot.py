"""Draw what the benchmarks wrote to docs/benchmarks: docs/speed.png, docs/scaling.png and docs/endurance.png.

python -m benchmarks.plot
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
# Result file, the columns of the ratio and of the compared library's name, and the rows to draw.
PEERS = (
    ("classifier", "times Transformers", "Transformers"),
    ("classifier", "times timm", "timm"),
    ("fcmae_step", "times masked-dense", "masked-dense"),
    ("views", "of four masked-dense", "masked-dense"),
)


def main() -> None:
    draw_speed(DOCS / "speed.png")
    draw_scaling(DOCS / "scaling.png")
    draw_endurance(DOCS / "endurance.png")


def draw_speed(path: Path) -> None:
    """Draw a bar for each case and compared library, with the smallest and largest ratio of the rounds."""
    bars = [(label(row), peer, row[column]) for file, column, peer in PEERS for row in rows(file) if shown(row)]
    names = list(dict.fromkeys(name for name, _, _ in bars))
    colors = {"Transformers": "tab:orange", "timm": "tab:blue", "masked-dense": "tab:green"}
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(names) + 1.4), layout="constrained")
    for name, peer, ratio in bars:
        peers = [p for n, p, _ in bars if n == name]
        height = 0.8 / len(peers)
        place = names.index(name) - 0.4 + height * (peers.index(peer) + 0.5)
        spread = [[ratio["median"] - ratio["least"]], [ratio["greatest"] - ratio["median"]]]
        axes.barh(place, ratio["median"], height, color=colors[peer], xerr=spread, error_kw={"lw": 0.8})
    for peer, color in colors.items():
        axes.barh(0, 0, color=color, label=f"against {peer}")
    axes.axvline(1, color="black", lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast (median, least and greatest of the rounds)")
    figure.legend(loc="outside upper center", ncols=len(colors))
    figure.savefig(path, dpi=120, metadata={"Source": digest_of_speeds()})


def digest_of_speeds() -> str:
    """What the picture of speeds stores of the figures that it was drawn from: other figures have another one."""
    figures = [rows(file) for file in dict.fromkeys(file for file, _, _ in PEERS)]
    return hashlib.sha256(json.dumps(figures).encode()).hexdigest()


def shown(row: dict[str, Any]) -> bool:
    return row["what"] != "checkpointing"


def label(row: dict[str, Any]) -> str:
    what = f"FCMAE {row['what']}" if row["what"] in ("encoder", "step", "4 views") else row["what"]
    return f"{row['size']}, {what}, batch {row['batch']}"


def draw_scaling(path: Path) -> None:
    """Draw milliseconds and MiB of a step against each quantity that grows, with a line for the bound."""
    measured = rows("scaling")
    axes_of = list(dict.fromkeys(row["grown"] for row in measured))
    figure, axes = plt.subplots(2, len(axes_of), figsize=(4 * len(axes_of), 5.6), layout="constrained", squeeze=False)
    for column, axis in enumerate(axes_of):
        points = [row for row in measured if row["grown"] == axis]
        x = [row[axis] for row in points]
        time, memory = axes[:, column]
        time.plot(x, [row["ms"] for row in points], "o-", label="step")
        time.plot(x, [row["bound, ms"] for row in points], "k--", label="its products alone (bound)")
        memory.plot(x, [row["peak MiB"] for row in points], "o-", color="tab:purple")
        memory.set_xlabel(axis)
        for plot, unit in ((time, "ms"), (memory, "peak MiB")):
            plot.set_ylim(0)
            plot.set_ylabel(unit)
            plot.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.savefig(path, dpi=120)


def draw_endurance(path: Path) -> None:
    """Draw MiB of a long run and its data loader worker, and the share of the time spent waiting for data."""
    measured = rows("endurance")
    steps = [row["step"] for row in measured]
    figure, (memory, waiting) = plt.subplots(2, 1, figsize=(8, 4.5), layout="constrained", sharex=True)
    memory.plot(steps, [row["MiB, most"] for row in measured], color="tab:purple", label="most")
    memory.plot(steps, [row["MiB, mean"] for row in measured], color="tab:blue", label="mean")
    memory.set_ylabel("MiB, run and workers")
    memory.legend(loc="lower right")
    waiting.plot(steps, [100 * row["waiting for data"] for row in measured], color="tab:orange")
    waiting.set_ylabel("waiting for data, %")
    waiting.set_xlabel("optimizer steps")
    for axes in (memory, waiting):
        axes.set_ylim(0)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def rows(name: str) -> list[dict[str, Any]]:
    path = DOCS / "benchmarks" / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


if __name__ == "__main__":
    main()
