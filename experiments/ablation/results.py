"""The results of the ablations: a row for each arm and seed, the contrasts and intervals, and what shows collapse."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np

from experiments.ablation.arms import BLOCKS, PRIMARY, V1, V2
from experiments.ablation.cases import Case
from experiments.ablation.collapse import DEAD, DIVERSITY, mean_of
from experiments.ablation.sign_flips import holm, sign_flip_p
from experiments.ablation.study import Ablations, Row, as_classes
from training.comparison.intervals import difference
from training.comparison.summary import FINETUNED

LEVEL = 0.05  # of the corrected p-values
LESS_DIVERSE, MORE_DEAD = 0.1, 0.1  # of V1 than of V2, for collapse to be shown
COLLAPSE = {"ordinary": (V1, V2), "ten times": (f"{V1}_long", f"{V2}_long")}


def results_of(study: Ablations) -> dict[str, Any]:
    """What the results file has beside the rows, computed from them: docs/ablations.md is filled from there."""
    rows = study.done()
    return {
        "images": {split: len(part) for split, part in study.photographs.items()},
        "contrasts": contrasts(study, rows),
        "intervals": intervals(study, rows),
        "collapse shown": {name: collapse_shown(study, *pair) for name, pair in COLLAPSE.items()},
    }


def contrasts(study: Ablations, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The primary contrasts: p-values as soon as all seeds are there, corrected ones as soon as all contrasts are.

    A contrast is resolved if its corrected p-value is small, which is the chance of the seeds alone, and its interval,
    which has that of the held-out images too, excludes 0.

    Raises:
        ValueError: if the gain is exactly 0 for every one of several seeds: then both arms had the same model.
    """
    scores, found = scores_of(rows), []
    for contrast in PRIMARY:
        row: dict[str, Any] = {"first": contrast.first, "other": contrast.other, "p": None}
        seeds = BLOCKS["E1"].seeds
        if all((arm, seed) in scores for arm in (contrast.first, contrast.other) for seed in seeds):
            gains = [scores[contrast.first, seed] - scores[contrast.other, seed] for seed in seeds]
            if len(gains) > 1 and not any(gains):
                raise ValueError(
                    f"{contrast.first} and {contrast.other} must differ, but their accuracies are the same."
                )
            row |= {"seeds": list(seeds), "gains": gains, "p": sign_flip_p(gains)}
            row |= difference(*answers_of(study, contrast.first, contrast.other, seeds))._asdict()
        found.append(row)
    known = all(row["p"] is not None for row in found)
    corrected = holm([row["p"] for row in found]) if known else [None] * len(found)
    for row, value in zip(found, corrected, strict=True):
        resolved = None if value is None else value <= LEVEL and not row["low"] <= 0 <= row["high"]
        row |= {"p corrected": value, "resolved": resolved}
    return found


def intervals(study: Ablations, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each arm minus V2 from FCMAE in the blocks that have both, on the block's seeds that both have: no claims."""
    scores, found = scores_of(rows), []
    for name, block in BLOCKS.items():
        for arm in block.arms if V2 in block.arms else ():
            seeds = [seed for seed in block.seeds if {(arm, seed), (V2, seed)} <= scores.keys()]
            if arm != V2 and seeds:
                row = {"block": name, "arm": arm, "reference": V2, "seeds": seeds}
                found.append({**row, **difference(*answers_of(study, arm, V2, seeds))._asdict()})
    return found


def scores_of(rows: Sequence[Row]) -> dict[tuple[str, int], float]:
    """The balanced accuracies after fine-tuning, by arm and seed."""
    return {(row["arm"], row["seed"]): row["figures"][FINETUNED] for row in rows}


def answers_of(
    study: Ablations, first: str, other: str, seeds: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The labels `(N,)`, and the predicted classes `(S, N)` of two arms after fine-tuning."""
    labels = np.array(study.photographs["test"]["label"][:])
    return labels, by_seed(study, first, seeds), by_seed(study, other, seeds)


def by_seed(study: Ablations, arm: str, seeds: Sequence[int]) -> np.ndarray:
    """The predicted classes `(S, N)` of an arm after fine-tuning, a row for each seed."""
    return np.stack([as_classes(study.rows[Case(arm, seed)]["answers"]) for seed in seeds])


def collapse_shown(study: Ablations, v1: str, v2: str) -> bool | None:
    """Whether the pre-training of V1 ends collapsed, beside that of V2 of the same seed, for every seed.

    Its channels are less diverse by `LESS_DIVERSE`, or its share of dead channels is higher by `MORE_DEAD`, in the mean
    over the blocks. `None` where a row is missing.
    """
    seeds = BLOCKS["L"].seeds if v1 != V1 else BLOCKS["E1"].seeds
    found = []
    for seed in seeds:
        cases = [Case(name, seed) for name in (v1, v2)]
        if any(case not in study.rows for case in cases):
            return None
        found.append([list(study.rows[case]["collapse"].values())[-1] for case in cases])
    less = [mean_of(of_v2, DIVERSITY) - mean_of(of_v1, DIVERSITY) >= LESS_DIVERSE for of_v1, of_v2 in found]
    more = [mean_of(of_v1, DEAD) - mean_of(of_v2, DEAD) >= MORE_DEAD for of_v1, of_v2 in found]
    return all(less) or all(more)


def table(rows: Sequence[Row]) -> str:
    """Means of the balanced accuracies of each arm, in %, as Markdown: what the study prints."""
    lines = ["| arm | seeds | fine-tuned |", "|---|---:|---:|"]
    for key in dict.fromkeys(row["arm"] for row in rows):
        values = [row["figures"][FINETUNED] for row in rows if row["arm"] == key]
        lines.append(f"| {key} | {len(values)} | {100 * mean(values):.1f} |")
    return "\n".join(lines)
