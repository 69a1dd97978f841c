"""The tables of docs/payoff.md: what is tried, what the search has found, and what it gains on held-out images."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t

from experiments.arms import UNTRAINED
from experiments.arrangements import AXES, HALF, KNOWN, PIXELS, REFERENCE
from experiments.payoff import FINETUNED, KEYS, OUTPUT
from experiments.payoff_final import AFTER, RESULTS, SHARES, UNTRAINED_SHAPE
from experiments.payoff_final import KEYS as FINAL_KEYS
from experiments.readings import mean_scores
from experiments.rows import Row, Rows, spread
from training.comparison.frozen import NEIGHBOURS, PROBE
from training.comparison.intervals import CONFIDENCE, Difference

ROOT = Path(__file__).parents[1]
METHODS = (NEIGHBOURS, PROBE, FINETUNED)
AIM, AIMED_SHARES = 0.05, (0.05, 0.1)  # of fine-tuning, above random weights


def not_yet_run(module: str) -> list[Row]:
    """What stands in place of a table without figures."""
    return [{"Result": f"not yet run: `python -m experiments.{module}`"}]


def arrangements() -> list[Row]:
    """All that the search tries, with the flags on top of the recipe's."""
    of_axes = [(axis, name) for axis, tried in AXES.items() for name in tried]
    return [
        {"axis": axis, "arrangement": name, "flags": flags_of(name), "share of the time": KNOWN[name].share}
        for axis, name in [(REFERENCE, PIXELS), (REFERENCE, HALF), *of_axes]
    ]


def flags_of(name: str) -> str:
    """The flags of an arrangement, as code."""
    flags = " ".join(KNOWN[name].flags(Path("...")))
    return f"`{flags}`" if flags else ""


def search(file: Path = ROOT / OUTPUT) -> list[Row]:
    """The scores of every arrangement on the validation part, the best first."""
    rows = sorted(Rows(file, KEYS).rows, key=lambda row: -row["score"])
    return [of_search(row) for row in rows] or not_yet_run("payoff")


def of_search(row: Row) -> Row:
    frozen = mean_scores(row["frozen"])
    figures = [*(frozen[method] for method in (NEIGHBOURS, PROBE)), mean(row[FINETUNED].values()), row["score"]]
    named = {"arrangement": row["arrangement"], "epochs": f"{row['epochs']:g}", "steps": row.get("steps", 0)}
    return {**named, "read from": row["reading"], **dict(zip((*METHODS, "mean"), map(percent, figures), strict=True))}


def readings(file: Path = ROOT / OUTPUT) -> list[Row]:
    """The mean of both methods on frozen features for each way to read them, of FCMAE and of random weights."""
    rows = Rows(file, KEYS)
    asked = {"FCMAE": rows.find(arrangement=PIXELS), UNTRAINED: rows.find(arrangement=UNTRAINED)}
    if None in asked.values():
        return not_yet_run("payoff")
    found: dict[str, dict[str, Any]] = {title: row["readings"] for title, row in asked.items() if row is not None}
    names = [name for name in found["FCMAE"] if name in found[UNTRAINED]]
    methods = (NEIGHBOURS, PROBE)
    columns = {f"{title}, {method}": (title, method) for title in found for method in methods}
    return [
        {"read from": name, **{column: percent(found[title][name][way]) for column, (title, way) in columns.items()}}
        for name in names
    ]


def final(photographs: str, file: Path = ROOT / RESULTS) -> list[Row]:
    """Balanced accuracies on held-out images, mean and deviation over the seeds, by method and start."""
    rows = [row for row in Rows(file, FINAL_KEYS).rows if row["photographs"] == photographs]
    starts = dict.fromkeys(row["arm"] for row in rows)
    found: list[Row] = []
    for method in METHODS:
        for start in starts:
            by_share = {share: values_of(rows, start, method, share) for share in SHARES}
            if any(by_share.values()):
                cells = {f"{share:.0%}": spread([*values.values()]) for share, values in by_share.items()}
                found.append({"method": method, "start": start, **cells})
    return found or not_yet_run("payoff_final")


def aims(photographs: str, file: Path = ROOT / RESULTS) -> list[Row]:
    """Whether the chosen arrangement reaches what was aimed at: its gains in percentage points over random weights, of
    the two shapes that are compared the one with the higher mean.
    """
    stored = Rows(file, FINAL_KEYS)
    rows = [row for row in stored.rows if row["photographs"] == photographs]
    untrained = [name for name in (UNTRAINED, UNTRAINED_SHAPE) if name in stored.head.get("readings", {})]
    found: list[Row] = []
    for method in METHODS:
        for share in AIMED_SHARES if method == FINETUNED else SHARES:
            after = values_of(rows, AFTER, method, share)
            others = {name: values_of(rows, name, method, share) for name in untrained}
            if len(after) < 2 or any(values.keys() != after.keys() for values in others.values()):
                continue
            best = max(others, key=lambda name: mean(others[name].values()))
            gains = [value - others[best][seed] for seed, value in after.items()]
            found.append(
                {"method": method, "labels": f"{share:.0%}", "random weights": best, **of_gains(method, gains)}
            )
    return found or not_yet_run("payoff_final")


def of_gains(method: str, gains: list[float]) -> Row:
    """The cells on the gains of all seeds: their mean, the aim, and what may be said by the interval."""
    aim, found = AIM if method == FINETUNED else stdev(gains), seed_interval(gains)
    gain, low, high = found.points
    row: Row = {"gain": f"{gain:+.1f}", "aim: more than": f"{100 * aim:.1f}", "reached": found.gain > aim}
    above = found.gain > 0 and not found.holds_zero
    return {**row, "95 % interval": f"{low:.1f} to {high:.1f}", "above random weights": above}


def seed_interval(gains: list[float]) -> Difference:
    """The mean of the gains of all seeds with its interval by Student's t distribution, on the same held-out images."""
    middle, error = mean(gains), stdev(gains) / len(gains) ** 0.5
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(gains) - 1)) * error
    return Difference(middle, middle - half, middle + half)


def values_of(rows: list[Row], start: str, method: str, share: float) -> dict[int, float]:
    """The values by seed, in the order of the seeds; of frozen features in the way that the start is read."""
    mine = sorted((row for row in rows if (row["arm"], row["share"]) == (start, share)), key=lambda row: row["seed"])
    read = {row["seed"]: row if method == FINETUNED else row["frozen"][row["reading"]] for row in mine}
    return {seed: figures[method] for seed, figures in read.items() if method in figures}


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


PLANNED: dict[str, Callable[[], list[Row]]] = {"payoff_arrangements": arrangements}
MEASURED: dict[str, Callable[[], list[Row]]] = {
    "payoff_search": search,
    "payoff_readings": readings,
    **{f"payoff_{name}": lambda name=name: final(name) for name in ("solar", "natural")},
    **{f"payoff_aims_{name}": lambda name=name: aims(name) for name in ("solar", "natural")},
}
