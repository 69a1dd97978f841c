"""Which pre-training pays on few images: arrangements at equal time, scored on a validation part.

    python -m experiments.payoff --dry_run
    python -m experiments.payoff --jobs 2
    python -m experiments.payoff --jobs 2 --parts reference masks

The search sees the training photographs of the solar cells alone: three tenths of them are the validation part, models
are trained on the others. `experiments/arrangements.py` has what is tried, an axis after the other. Every arrangement
of an axis has the time in which the recipe's FCMAE trains for `--epochs` epochs: its speed is measured in turns with
that of FCMAE. The best of each axis are put together; these, and FCMAE, are trained for `--lengths` epochs too. Each is
scored by nearest neighbours and a linear probe on its frozen features, read in the way that is best for it, and by
fine-tuning with a tenth of the labels. After a stop, the same command goes on, on another machine too if the results
file is there: what has a row is not run again. A model without its folder is trained again only where a run that is
left needs its weights.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch
from datasets import Dataset

from experiments.arms import BATCH_SIZE, Arm
from experiments.arrangements import (
    AXES,
    COMBINED,
    HALF,
    KNOWN,
    LENGTH,
    PARTS,
    PIXELS,
    REFERENCE,
    SHAPES,
    Arrangement,
    best_of_each,
    combine,
)
from experiments.label_efficiency import RECIPE, finetune, photographs_of, pretrain, save_untrained
from experiments.readings import READINGS, best_reading, mean_scores, pooled_stages, read_every_way, scores_of
from experiments.rows import Row, Rows
from experiments.search import write_validation_part
from experiments.solar_cells import normalization_flags, scratch_flags
from experiments.views import RATE_ROUNDS, RATE_STEPS, last_figures, measure_rates, name_of, pretrained_folder
from training.comparison.drawing import draw, finetuning_steps
from training.comparison.records import keep_apart
from training.comparison.runner import side_by_side
from training.comparison.subsets import write_subset
from training.comparison.summary import case_name

OUTPUT = Path("docs/benchmarks/payoff_search.json")
SHARES, READING_SHARES, FINETUNED_SHARE = (0.05, 0.1, 0.25, 1.0), (0.1, 1.0), 0.1
DRAWS, FINETUNED_DRAWS = (0, 1, 2), (0, 1)
FINETUNED, NOT_KNOWN = "fine-tuned", "the best of each axis"
KEYS = ("arrangement", "epochs", "seed")
# For the estimate of `--dry_run`, on one core: images of 96 pixels that a model of the size atto takes in a second in
# FCMAE and in fine-tuning, and seconds that a run needs to start, and all readings of frozen features.
PRETRAINED_RATE, FINETUNED_RATE, START, READ = 87, 33, 20, 30
NUM_TRAIN = 1377  # photographs


@dataclass(frozen=True)
class Run:
    """An arrangement to train, for the time of so many epochs of FCMAE; `arrangement` is None of random weights."""

    part: str
    name: str
    epochs: float
    seed: int
    arrangement: Arrangement | None

    @property
    def key(self) -> Row:
        """What tells its row from others."""
        return dict(zip(KEYS, (self.name, self.epochs, self.seed), strict=True))


def main() -> None:
    """Train and score what is asked for and not done yet, axis after axis, and write all rows and what is best."""
    options = parse_options()
    if options.dry_run:
        print(plan(options))
        return
    torch.set_num_threads(max(torch.get_num_threads() // options.jobs, 1))
    output = Path(options.output_dir)
    keep_apart(output, {"epochs": options.epochs})
    if not (output / "data/labelled/test.parquet").is_file():
        write_validation_part(output)
    search = Search(output, options, Rows(Path(options.output), KEYS))
    untrained: list[Run] = []  # of the stage before, whose models have the shapes
    for stage in (REFERENCE,), tuple(AXES), (COMBINED,), (LENGTH,), ():
        parts = [part for part in stage if part in options.parts]
        runs = [run for part in parts for run in search.runs(part) if search.rows.find(**run.key) is None]
        trained = [run for run in runs if run.arrangement is not None]
        search.measure(trained)
        side_by_side(options.jobs, [lambda run=run: search.row_of(run) for run in (*trained, *untrained)])
        untrained = [run for run in runs if run.arrangement is None]
        search.save_untrained(untrained)
    search.conclude()


def parse_options() -> argparse.Namespace:
    """The search's flags."""
    parser = argparse.ArgumentParser(prog="python -m experiments.payoff", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output_dir", default="out/payoff")
    parser.add_argument("--output", default=str(OUTPUT), help=f"file for the rows (default: {OUTPUT})")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="axes to search (default: all)")
    parser.add_argument("--epochs", type=float, default=50, help="of FCMAE, whose time all of an axis take")
    parser.add_argument("--lengths", type=float, nargs="+", default=[100, 300], help="longer times, in epochs of FCMAE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, which share the cores (default: 2)")
    parser.add_argument("--dry_run", action="store_true", help="print the runs and the hours they take, and stop")
    return parser.parse_args()


class Search:
    """The folder of the search, its photographs and its rows."""

    def __init__(self, output: Path, options: argparse.Namespace, rows: Rows) -> None:
        self.output, self.options, self.rows = output, options, rows
        self.photographs: dict[str, Dataset] = {split: photographs_of(output, split) for split in ("train", "test")}
        counts = {"train": len(self.photographs["train"]), "validation": len(self.photographs["test"])}
        self.rows.keep(photographs="solar cells", **counts, epochs=options.epochs)

    def runs(self, part: str) -> list[Run]:
        """The runs of a part; those of `combined` and `length` follow from the rows of the others.

        Raises:
            SystemExit: if the reference has not been trained, which all others need.
        """
        scores = self.scores()
        if part != REFERENCE and not {PIXELS, HALF} <= scores.keys():
            raise SystemExit(f"`parts` (={part}) must come after {REFERENCE}, of which {self.rows.file} has no rows.")
        return runs_of(part, self.options, scores)

    def scores(self) -> dict[str, float]:
        """The mean score over the seeds of each arrangement, in the time of an axis."""
        found = [row for row in self.rows.rows if row["epochs"] == self.options.epochs]
        names = dict.fromkeys(row["arrangement"] for row in found)
        return {name: mean(row["score"] for row in found if row["arrangement"] == name) for name in names}

    def measure(self, runs: Iterable[Run]) -> None:
        """Measure the speeds of arrangements whose speed is not known, in turns with FCMAE, and store them."""
        new = {run.name: run for run in runs if run.name not in self.speeds()}
        if not new:
            return
        for run in new.values():
            self.train_teacher(run)
        beside = f"{PIXELS} beside {next(iter(new))}"
        arms = {beside: Arm(), **{name: Arm((), self.flags_of(run)) for name, run in new.items()}}
        rates = measure_rates(self.output, arms, normalization_flags(), self.options.jobs)
        self.rows.state(speeds={**self.speeds(), **{name: rates[name] / rates[beside] for name in new}})

    def speeds(self) -> dict[str, float]:
        """The speeds that are known, relative to FCMAE's."""
        return self.rows.head.get("speeds", {PIXELS: 1.0, HALF: 1.0})

    def speed_of(self, name: str) -> float:
        """The speed of an arrangement, relative to FCMAE's.

        Raises:
            SystemExit: if it has not been measured.
        """
        if name not in self.speeds():
            raise SystemExit(f"`speeds` in {self.rows.file} must have that of {name!r}: take out its rows, and go on.")
        return self.speeds()[name]

    def steps(self, run: Run) -> int:
        """The steps of the run, from the time in epochs of FCMAE and the speed relative to FCMAE's."""
        assert run.arrangement is not None
        of_pixels = run.epochs * len(self.photographs["train"]) / BATCH_SIZE
        return max(round(run.arrangement.share * self.speed_of(run.name) * of_pixels), 10)

    def flags_of(self, run: Run) -> tuple[str, ...]:
        """The flags of pre-training, with the folder of its frozen teacher if there is one."""
        assert run.arrangement is not None
        teacher = teacher_of(run)
        return run.arrangement.flags(None if teacher is None else self.folder(teacher))

    def folder(self, run: Run) -> Path:
        """The folder of a model."""
        return pretrained_folder(self.output, f"{run.name} {run.epochs:g}", run.seed)

    def save_untrained(self, runs: Iterable[Run]) -> None:
        """The models without pre-training. One after the other: a seed is that of the whole process."""
        for run in runs:
            _, shape = SHAPES[run.name]
            save_untrained(self.train(replace(run, name=shape, arrangement=KNOWN[shape])), self.folder(run), run.seed)

    def train(self, run: Run) -> Path:
        """The folder of a model; it and its frozen teacher are pre-trained unless they are there."""
        self.train_teacher(run)
        steps, folder = self.steps(run), self.folder(run)
        length = [f"--max_train_steps={steps}", f"--warmup_steps={steps // 9}", f"--seed={run.seed}"]
        pretrain(self.output, folder, [*self.flags_of(run), *length, *normalization_flags()], self.options.jobs)
        return folder

    def train_teacher(self, run: Run) -> None:
        if (teacher := teacher_of(run)) is not None:
            self.train(teacher)

    def row_of(self, run: Run) -> None:
        """Train a model, score it and write its row."""
        folder, arrangement = self.folder(run), run.arrangement
        row: Row = {"part": run.part, **run.key}
        if arrangement is None:
            _, shape = SHAPES[run.name]
            start = [*scratch_flags(RECIPE), *KNOWN[shape].arm.model]
        else:
            self.train(run)
            row |= {"flags": list(self.flags_of(run)), "model": list(arrangement.arm.model), "share": arrangement.share}
            row |= {"steps": self.steps(run), "teacher": arrangement.teacher, **last_figures(folder)}
            start = [f"--model_name_or_path={folder}"]
        self.rows.add({**row, **self.figures(run, folder, start)})

    def figures(self, run: Run, folder: Path, start: list[str]) -> Row:
        """The scores of a model on the validation part."""
        stages = pooled_stages(folder, self.photographs)
        readings = read_every_way(stages, READING_SHARES, DRAWS)
        best = best_reading(readings)
        found: Row = {"readings": readings, "reading": best}
        found["frozen"] = scores_of(stages.read(READINGS[best]), SHARES, DRAWS)
        found[FINETUNED] = {}
        for number in FINETUNED_DRAWS:
            chosen, case = draw(self.photographs["train"]["label"], FINETUNED_SHARE, number), (FINETUNED_SHARE, number)
            subset = write_subset(self.output, self.photographs["train"], chosen, case_name(*case))
            name, flags = f"{run.name} {run.epochs:g} {run.seed}", [*start, *normalization_flags()]
            value = finetune(subset, self.photographs["test"], name_of(name), number, flags, self.options.jobs)
            found[FINETUNED][case_name(*case)] = value
        found["score"] = score_of(found)
        return found

    def conclude(self) -> None:
        """Write what is best, and print all scores."""
        trained = [row for row in self.rows.rows if row["arrangement"] not in SHAPES]
        if trained:
            best = max(trained, key=lambda row: row["score"])
            names = ("arrangement", "epochs", "flags", "model", "share", "teacher", "reading", "score")
            chosen = {name: best[name] for name in names}
            self.rows.state(chosen={**chosen, "speed": self.speed_of(best["arrangement"])})
        for row in sorted(self.rows.rows, key=lambda row: -row["score"]):
            print(f"{row['score']:.1%}  {row['arrangement']}, {row['epochs']:g} epochs  ({row['reading']})")


def runs_of(part: str, options: argparse.Namespace, scores: dict[str, float]) -> list[Run]:
    """The runs of a part; `scores` are those of arrangements that have been tried, in the time of an axis."""
    arrangements: dict[str, Arrangement | None] = {}
    if part == REFERENCE:
        arrangements = {PIXELS: KNOWN[PIXELS], HALF: KNOWN[HALF]}
    elif part in AXES:
        arrangements = dict(AXES[part])
    elif part == COMBINED:
        arrangements = combined(scores)
    else:
        known = {**KNOWN, **combined(scores)}
        tried = {name: scores.get(name, 0.0) for name in known if name not in (PIXELS, HALF)}
        best = max(tried, key=lambda name: tried[name]) if scores else NOT_KNOWN
        arrangements = {PIXELS: KNOWN[PIXELS], best: known[best]}
    arrangements |= {name: None for name, (of_part, _) in SHAPES.items() if of_part == part}
    lengths = options.lengths if part == LENGTH else [options.epochs]
    return [
        Run(part, name, length, seed, found)
        for length in lengths
        for seed in options.seeds
        for name, found in arrangements.items()
    ]


def teacher_of(run: Run) -> Run | None:
    """The run whose model is the frozen teacher of another: in the time of the same epochs, of the same seed."""
    if run.arrangement is None or run.arrangement.teacher is None:
        return None
    return replace(run, name=run.arrangement.teacher, arrangement=KNOWN[run.arrangement.teacher])


def combined(scores: dict[str, float]) -> dict[str, Arrangement | None]:
    """The best of each axis put together, by its name; if only one axis is better than the pixels, nothing is new."""
    if not scores:
        return {NOT_KNOWN: KNOWN[PIXELS]}
    best = best_of_each(scores)
    return {" + ".join(best): combine(best)} if len(best) > 1 else {}


def score_of(found: Row) -> float:
    """The mean of three balanced accuracies: of both methods on frozen features, over the shares, and fine-tuned."""
    return mean([*mean_scores(found["frozen"]).values(), mean(found[FINETUNED].values())])


def plan(options: argparse.Namespace) -> str:
    """The runs and the hours that they take, as text: runs of equal time need no measured speed for an estimate."""
    rows, lines, total = Rows(Path(options.output), KEYS), [], 0.0
    scores = {row["arrangement"]: row["score"] for row in rows.rows if row["epochs"] == options.epochs}
    for run in [run for part in options.parts for run in runs_of(part, options, scores)]:
        done = rows.find(**run.key) is not None
        hours = 0.0 if done else seconds_of(run) / 3600
        total += hours
        name = f"{run.name}, {run.epochs:g} epochs, seed {run.seed}"
        lines.append(f"  {run.part:12} {name}: {'done' if done else f'{hours:.2f} h'}")
    return "\n".join([*lines, in_words(total, options.jobs)])


def in_words(hours: float, jobs: int) -> str:
    return f"{hours:.1f} hours of one core, {hours / jobs:.1f} with `--jobs {jobs}`"


def seconds_of(run: Run) -> float:
    """An estimate for one core: measuring the speed, pre-training, readings and fine-tuning."""
    images = finetuning_steps(round(FINETUNED_SHARE * NUM_TRAIN)) * 32 * len(FINETUNED_DRAWS)
    seconds = READ + images / FINETUNED_RATE + START * len(FINETUNED_DRAWS)
    if run.arrangement is None:
        return seconds
    if run.name not in (PIXELS, HALF):
        seconds += RATE_ROUNDS * (RATE_STEPS * BATCH_SIZE / PRETRAINED_RATE + START)
    share, teacher = run.arrangement.share, teacher_of(run)
    if teacher is not None and run.part == LENGTH:  # those of shorter runs are there: they are a part of the reference
        share += KNOWN[teacher.name].share
    return seconds + START + share * run.epochs * NUM_TRAIN / PRETRAINED_RATE


if __name__ == "__main__":
    main()
