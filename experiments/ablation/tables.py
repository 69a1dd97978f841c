"""The tables of docs/ablations.md, from the JSON file of the results; what is missing there is "not yet run"."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from conversion.files import read_json
from experiments.ablation.arms import ARMS, BLOCKS, GATE, GATE_SEEDS, PRETRAININGS, PRIMARY
from experiments.ablation.cases import Length
from experiments.ablation.estimate import hours_of, runs_of
from experiments.rows import Row, spread

RESULTS = Path(__file__).parents[2] / "docs/benchmarks/ablations.json"
NOT_RUN = "not yet run"
FINETUNED, PROBE, NEIGHBOURS = "fine-tuned", "linear probe", "20 nearest neighbours"
COLLAPSE_OF = ("v2_fcmae", "v1_fcmae", "dense", "lrn", "batch_norm", "layer_norm", "v2_fcmae_long", "v1_fcmae_long")


def read(results: Path = RESULTS) -> dict[str, Any]:
    """The results; empty before the first run."""
    return read_json(results)


def points(value: float) -> str:
    """A share in percentage points, with its sign."""
    return f"{100 * value + 0.0:+.1f}"


def interval(row: Row) -> str:
    """The ends of an interval."""
    return f"{points(row['low'])} to {points(row['high'])}"


def contrasts(results: Path = RESULTS) -> list[Row]:
    """The five primary contrasts."""
    found = {(row["first"], row["other"]): row for row in read(results).get("contrasts", [])}
    return [contrast_row(contrast, found.get((contrast.first, contrast.other), {})) for contrast in PRIMARY]


def contrast_row(contrast: Any, row: Row) -> Row:
    """A primary contrast; `row` is empty, or has no p-value, before all of its seeds are there."""
    shown: Row = {"contrast": contrast.title, "paper": f"{contrast.published:+.1f}"}
    if row.get("p") is None:
        return shown | {"here": NOT_RUN, "95 % interval": "", "p": "", "p, Holm": "", "conclusion": NOT_RUN}
    corrected = row["p corrected"]
    shown |= {"here": points(row["gain"]), "95 % interval": interval(row), "p": f"{row['p']:.3f}"}
    shown["p, Holm"] = "" if corrected is None else f"{corrected:.3f}"
    return shown | {"conclusion": conclusion(row)}


def conclusion(row: Row) -> str:
    """What may be said of a contrast."""
    if row["resolved"] is None:
        return "open until all five are there"
    if not row["resolved"]:
        return "not resolved"
    return "higher" if row["gain"] > 0 else "lower"


def arms(block: str, results: Path = RESULTS) -> list[Row]:
    """The arms of a block: balanced accuracies in %, and the difference to V2 from FCMAE."""
    found = read(results)
    differences = {row["arm"]: row for row in found.get("intervals", []) if row["block"] == block}
    return [arm_row(arm, BLOCKS[block].seeds, found.get("rows", []), differences) for arm in BLOCKS[block].arms]


def arm_row(arm: str, seeds: tuple[int, ...], rows: list[Row], differences: dict[str, Row]) -> Row:
    """An arm of a block, on the block's seeds."""
    done = [row["figures"] for row in rows if row["arm"] == arm and row["seed"] in seeds]
    shown: Row = {"arm": ARMS[arm].title, "seeds": f"{len(done)} of {len(seeds)}"}
    shown |= {"fine-tuned": spread([figures[FINETUNED] for figures in done]) or NOT_RUN}
    for method in (PROBE, NEIGHBOURS):
        known = [figures[method] for figures in done if method in figures]
        shown[method] = spread(known)
    difference = differences.get(arm)
    return shown | {"minus V2, FCMAE": f"{points(difference['gain'])} ({interval(difference)})" if difference else ""}


def rates(results: Path = RESULTS) -> list[Row]:
    """Block G: each start at each learning rate, on training images whose labels it did not get."""
    rows = read(results).get("rows", [])
    shown: dict[str, Row] = {}
    for key, gate in GATE.items():
        found = [row["figures"][FINETUNED] for row in rows if row["arm"] == key and row["seed"] in GATE_SEEDS]
        shown.setdefault(gate.arm.start, {"start": gate.arm.title})[f"{gate.rate:g}"] = spread(found) or NOT_RUN
    return list(shown.values())


def collapse(results: Path = RESULTS) -> list[Row]:
    """Diversity and dead channels over the pre-trainings that collapse is looked for in."""
    rows = read(results).get("rows", [])
    return [
        shown
        for name in COLLAPSE_OF
        for shown in collapse_rows(name, [row["collapse"] for row in rows if row["arm"] == name])
    ]


def collapse_rows(name: str, figures_of_seeds: list[Row]) -> list[Row]:
    """A pre-training at each step that was looked at: means over the seeds, of all blocks and of the worst one."""
    shown: Row = {"pre-training": ARMS[name].title}
    if not figures_of_seeds:
        return [shown | {"step": NOT_RUN, "distance, mean": "", "least block": "", "dead, mean": "", "worst block": ""}]
    found = []
    for step in dict.fromkeys(step for figures in figures_of_seeds for step in figures):
        at_step = [figures[step] for figures in figures_of_seeds if step in figures]
        distances, dead = ([row[name] for row in at_step] for name in ("diversity", "dead channels"))
        figures = {"distance, mean": mean(map(mean, distances)), "least block": mean(map(min, distances))}
        shares = {"dead, mean": mean(map(mean, dead)), "worst block": mean(map(max, dead))}
        texts = {key: f"{value:.3f}" for key, value in figures.items()}
        texts |= {key: f"{100 * value:.1f} %" for key, value in shares.items()}
        found.append(shown | {"step": f"{int(step):,}", **texts})
    return found


def verdicts(results: Path = RESULTS) -> list[Row]:
    """Whether collapse was shown, by the rule of the plan."""
    found = read(results).get("collapse shown", {})
    lengths = {"ordinary": "600 steps, eight seeds", "ten times": "6,000 steps, one seed"}
    words = {None: NOT_RUN, True: "shown", False: "not shown"}
    return [{"pre-training": text, "collapse of V1": words[found.get(name)]} for name, text in lengths.items()]


def blocks() -> list[Row]:
    """The runs and hours of each block, by the estimate that the study prints."""
    runs = runs_of(list(BLOCKS), Length())
    rows: list[Row] = [
        {
            "block": name,
            "what": block.title,
            "seeds": len(block.seeds),
            "runs": sum(run.block == name for run in runs),
            "core-hours": f"{hours_of(runs, name):.1f}",
        }
        for name, block in BLOCKS.items()
    ]
    total = f"{sum(run.seconds for run in runs) / 3600:.1f}"
    return [*rows, {"block": "all", "what": "", "seeds": "", "runs": len(runs), "core-hours": total}]


def settings() -> list[Row]:
    """The pre-trainings, as flags on top of the recipe."""
    return [
        {
            "pre-training": name,
            "flags": " ".join(f"`{flag}`" for flag in each.flags),
            "replaced": each.replacement or "",
            "steps": f"{Length().of_pretraining(name):,}",
        }
        for name, each in PRETRAININGS.items()
    ]


TABLES: dict[str, Callable[[], list[Row]]] = {
    "ablation_contrasts": contrasts,
    "ablation_rates": rates,
    **{f"ablation_{block}": partial(arms, block) for block in BLOCKS if block != "G"},
    "ablation_collapse": collapse,
    "ablation_verdicts": verdicts,
    "ablation_blocks": blocks,
    "ablation_settings": settings,
}
