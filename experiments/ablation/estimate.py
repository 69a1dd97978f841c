"""The runs of the ablations and the core-hours that they take, by the measured seconds of their steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.ablation.arms import BLOCKS, FINETUNING_SECONDS, PRETRAININGS
from experiments.ablation.cases import Case, Length, cases_of, pretrainings_of
from training.run.dry_run import duration

BESIDE = 40.0  # seconds of a run on one core beside its steps: its start, its evaluation, pictures and the answers


class Run(NamedTuple):
    """A run of a script: its folder in the study's, and its core-seconds."""

    block: str
    folder: Path
    seconds: float


def runs_of(blocks: Sequence[str], length: Length, seeds: Sequence[int] | None = None) -> list[Run]:
    """All runs of blocks; what several of them need counts in the first one."""
    found: dict[Path, Run] = {}
    for block in blocks:
        cases = cases_of([block], seeds)
        for name, seed in pretrainings_of(cases):
            folder = Path("pretrain", f"{name}-{seed}")
            seconds = length.of_pretraining(name) * PRETRAININGS[name].seconds + BESIDE
            found.setdefault(folder, Run(block, folder, seconds))
        for case in cases:
            folder = Path("finetune", str(case))
            found.setdefault(folder, Run(block, folder, finetuning_seconds(case, length)))
    return list(found.values())


def folders_of(cases: Sequence[Case]) -> set[Path]:
    """The folders of the runs that cases need."""
    pretrainings = {Path("pretrain", f"{name}-{seed}") for name, seed in pretrainings_of(cases)}
    return pretrainings | {Path("finetune", str(case)) for case in cases}


def finetuning_seconds(case: Case, length: Length) -> float:
    """Of fine-tuning and the answers."""
    pretraining = PRETRAININGS.get(case.arm.pretraining or "")
    seconds = length.finetuning * (FINETUNING_SECONDS if pretraining is None else pretraining.finetuning_seconds)
    if case.arm.same_time:
        seconds += length.pretraining * PRETRAININGS["v2_fcmae"].seconds
    return seconds + BESIDE


def hours_of(runs: Sequence[Run], block: str) -> float:
    """The core-hours of the runs that count in a block."""
    return sum(run.seconds for run in runs if run.block == block) / 3600


def estimate(runs: Sequence[Run], done: set[Path], jobs: int) -> str:
    """The runs and hours of each block, and the time of what is left, as text."""
    lines = []
    for block in dict.fromkeys(run.block for run in runs):
        folders = [run.folder for run in runs if run.block == block]
        finished = sum(folder in done for folder in folders)
        hours = f"{hours_of(runs, block):5.1f} core-hours"
        lines.append(f"  {block:3}{len(folders):4} runs, {finished:3} done, {hours}   {BLOCKS[block].title}")
    left = [run.seconds for run in runs if run.folder not in done]
    total = (
        f"{len(left)} runs are left: {sum(left) / 3600:.1f} core-hours, {duration(sum(left) / jobs)} with --jobs {jobs}"
    )
    return "\n".join([*lines, f"  {total}"])


def listed(runs: Sequence[Run], done: set[Path]) -> str:
    """A line for each run."""
    return "\n".join(
        f"  {run.block:3}{duration(run.seconds):>14}  {'done' if run.folder in done else '':5}{run.folder}"
        for run in runs
    )
