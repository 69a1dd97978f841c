"""What the chosen arrangement gains on held-out images: solar cells, and a set that had no part in the search.

    python -m experiments.payoff_final --dry_run
    python -m experiments.payoff_final --jobs 2
    python -m experiments.payoff_final --jobs 2 --photographs solar

`experiments.payoff` comes first. Compared are pre-training as its recipe has it, the same for as long as the chosen
arrangement takes, the chosen arrangement, random weights of both models, and a logistic regression on statistics of the
pixels. One seed sets pre-training, the drawn labels and fine-tuning. Frozen features are read in the usual way, and in
the way that was best for the same start on the validation part. Of the search its results file alone is needed: all
models are trained here. After a stop, the same command goes on.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset

from experiments.arms import BATCH_SIZE, UNTRAINED, Arm
from experiments.arrangements import HALF, KNOWN, PIXELS, SHAPES, Arrangement
from experiments.label_efficiency import RECIPE, finetune, frozen_scores, photographs_of, pretrain, save_untrained
from experiments.payoff import FINETUNED, FINETUNED_RATE, OUTPUT, PRETRAINED_RATE, READ, START, in_words
from experiments.payoff import KEYS as SEARCH_KEYS
from experiments.readings import READINGS, USUAL, pooled_stages
from experiments.rows import Row, Rows
from experiments.solar_cells import RECIPES, scratch_flags
from experiments.views import SOURCES, name_of, pretrained_folder
from training.comparison.drawing import draw, finetuning_steps, missing_class
from training.comparison.frozen import PROBE, pixel_statistics
from training.comparison.records import keep_apart
from training.comparison.runner import side_by_side
from training.comparison.subsets import write_subset
from training.comparison.summary import case_name

RESULTS = Path("docs/benchmarks/payoff.json")
SHARES, SEEDS = (0.02, 0.05, 0.1, 0.25, 1.0), (0, 1, 2)
BEFORE, AS_LONG, AFTER = "the recipe", "the recipe, as long", "the chosen arrangement"
UNTRAINED_SHAPE, STATISTICS = f"{UNTRAINED}, the chosen model", "statistics of the pixels"
KEYS = ("photographs", "arm", "seed", "share")
KNOWN_SETS = {"solar": (1968, 2), "natural": (2064, 43)}  # images to train on and classes, for the estimate


@dataclass(frozen=True)
class Start:
    """What is compared: a model that is trained for the time of so many epochs of FCMAE, or none is trained.

    speed: steps in the time of one of FCMAE's.
    shape: the flags of a new model, in fine-tuning from random weights.
    reading: how its frozen features are read, beside the usual way.
    """

    arrangement: Arrangement | None = None
    epochs: float = 0.0
    speed: float = 1.0
    shape: tuple[str, ...] = ()
    reading: str = USUAL.name

    @property
    def seconds_per_image(self) -> float:
        """An estimate for one core, of one image in the data set."""
        share = self.arrangement.share if self.arrangement is not None else 0.0
        return share * self.epochs / PRETRAINED_RATE


def main() -> None:
    """Train and score all that is not done yet, and write a row for each start, seed and share of the labels."""
    options = parse_options()
    search = Rows(Path(options.search), SEARCH_KEYS)
    starts = starts_of(search)
    if options.dry_run:
        print(plan(starts, options))
        return
    torch.set_num_threads(max(torch.get_num_threads() // options.jobs, 1))
    rows = Rows(Path(options.output), KEYS)
    rows.keep(chosen=search.head["chosen"], readings={name: start.reading for name, start in starts.items()})
    for photographs in options.photographs:
        Comparison(photographs, starts, options, rows).run()


def parse_options() -> argparse.Namespace:
    """The comparison's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.payoff_final", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--output_dir", default="out/payoff_final")
    parser.add_argument("--search", default=str(OUTPUT), help=f"file of the search (default: {OUTPUT})")
    parser.add_argument("--output", default=str(RESULTS), help=f"file for the rows (default: {RESULTS})")
    parser.add_argument("--photographs", nargs="+", choices=sorted(SOURCES), default=["solar", "natural"])
    parser.add_argument("--fractions", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, which share the cores (default: 2)")
    parser.add_argument("--dry_run", action="store_true", help="print the runs and the hours they take, and stop")
    return parser.parse_args()


def starts_of(search: Rows) -> dict[str, Start]:
    """What is compared, by name.

    Raises:
        SystemExit: if nothing has been chosen, or a start was not read on the validation part.
    """
    chosen: dict[str, Any] | None = search.head.get("chosen")
    if chosen is None:
        raise SystemExit(f"`search` (={search.file}) must hold a choice. Run `python -m experiments.payoff` first.")
    recipe = yaml.safe_load((RECIPES / f"{RECIPE}.yaml").read_text())
    shape, flags = tuple(chosen["model"]), tuple(flag for flag in chosen["flags"] if "teacher_name" not in flag)
    after = Arrangement(Arm(pretraining=flags), chosen["share"], chosen["teacher"])
    # Of the recipe's 27 epochs, half of an axis' time is the nearest that the search has.
    as_recipe = best_reading_of(search, arrangement=HALF)
    starts = {BEFORE: Start(KNOWN[PIXELS], recipe["num_train_epochs"], reading=as_recipe)}
    if chosen["arrangement"] != PIXELS:
        reading = best_reading_of(search, arrangement=PIXELS, epochs=chosen["epochs"])
        starts[AS_LONG] = Start(KNOWN[PIXELS], chosen["epochs"], reading=reading)
    starts[AFTER] = Start(after, chosen["epochs"], chosen["speed"], reading=chosen["reading"])
    starts[UNTRAINED] = Start(reading=best_reading_of(search, arrangement=UNTRAINED))
    if shape:
        same = next(name for name, (_, other) in SHAPES.items() if KNOWN[other].arm.model == shape)
        starts[UNTRAINED_SHAPE] = Start(shape=shape, reading=best_reading_of(search, arrangement=same))
    return starts


def best_reading_of(search: Rows, **values: Any) -> str:
    """How a model of the search is read best; the model is that of the row with these values."""
    row = search.find(**values)
    if row is None:
        raise SystemExit(f"`search` (={search.file}) must have a row of {values}. Run `python -m experiments.payoff`.")
    return row["reading"]


class Comparison:
    """The comparison on one set of photographs."""

    def __init__(self, photographs: str, starts: dict[str, Start], options: argparse.Namespace, rows: Rows) -> None:
        self.name, self.starts, self.options, self.rows = photographs, starts, options, rows
        self.output = Path(options.output_dir) / photographs
        keep_apart(self.output, {"chosen": rows.head["chosen"]})
        write, self.normalization = SOURCES[photographs]
        if not (self.output / "data/labelled/test.parquet").is_file():
            write(self.output / "data")
        self.images: dict[str, Dataset] = {split: photographs_of(self.output, split) for split in ("train", "test")}
        self.labels = np.array(self.images["train"]["label"][:])
        self.shares = [share for share in options.fractions if self.can_be_drawn(share)]

    def can_be_drawn(self, share: float) -> bool:
        """Whether the share of the labels has an image of each class; it is said if not."""
        num_classes = len(self.images["train"].features["label"].names)
        missing = None if share == 1 else missing_class(self.labels, num_classes, share, self.options.seeds)
        if missing is not None:
            print(f"{self.name}: {share:.0%} of the labels are left out, which lack a class.", flush=True)
        return missing is None

    def run(self) -> None:
        """All starts and seeds, the longest first; then the statistics of the pixels."""
        in_order = sorted(self.starts, key=lambda name: -self.starts[name].seconds_per_image)
        cases = [(name, seed) for name in in_order for seed in self.options.seeds if self.missing(name, seed)]
        trained = [case for case in cases if self.starts[case[0]].arrangement is not None]
        side_by_side(self.options.jobs, [lambda case=case: self.train(*case) for case in trained])
        for name, seed in (case for case in cases if case not in trained):  # a seed is that of the whole process
            shape = AFTER if name == UNTRAINED_SHAPE else BEFORE, self.options.seeds[0]
            self.train(*shape)
            save_untrained(self.folder(*shape), self.folder(name, seed), seed)
        side_by_side(self.options.jobs, [lambda case=case: self.score(*case) for case in cases])
        if any(self.missing(STATISTICS, seed) for seed in self.options.seeds):
            self.score_statistics()

    def missing(self, name: str, seed: int) -> list[float]:
        """The shares of which there is no row."""
        key = {"photographs": self.name, "arm": name, "seed": seed}
        return [share for share in self.shares if self.rows.find(**key, share=share) is None]

    def folder(self, name: str, seed: int) -> Path:
        """The folder of a model."""
        return pretrained_folder(self.output, name, seed)

    def train(self, name: str, seed: int) -> None:
        """Pre-train a model, unless it is there; before it its frozen teacher, in the teacher's share of the time."""
        start = self.starts[name]
        if start.arrangement is not None and start.arrangement.teacher is not None:
            self.pretrain(Start(KNOWN[HALF], start.epochs), self.folder(HALF, seed), seed)
        self.pretrain(start, self.folder(name, seed), seed)

    def pretrain(self, start: Start, folder: Path, seed: int) -> None:
        """Pre-train a model, unless it is there."""
        assert start.arrangement is not None
        epochs = start.arrangement.share * start.speed * start.epochs
        steps = max(round(epochs * len(self.labels) / BATCH_SIZE), 10)
        length = [f"--max_train_steps={steps}", f"--warmup_steps={steps // 9}", f"--seed={seed}"]
        flags = start.arrangement.flags(self.folder(HALF, seed))
        pretrain(self.output, folder, [*flags, *length, *self.normalization], self.options.jobs)

    def score(self, name: str, seed: int) -> None:
        """Score a model with each share of the labels, and write the rows."""
        start, folder = self.starts[name], self.folder(name, seed)
        stages = pooled_stages(folder, self.images)
        read = {name: stages.read(READINGS[name]) for name in dict.fromkeys((USUAL.name, start.reading))}
        weights = [f"--model_name_or_path={folder}"]
        if start.arrangement is None:
            weights = [*scratch_flags(RECIPE), *start.shape]
        for share in self.missing(name, seed):
            chosen = draw(self.labels, share, seed)
            subset = write_subset(self.output, self.images["train"], chosen, case_name(share, seed))
            found: Row = {way: frozen_scores(splits, chosen, seed) for way, splits in read.items()}
            flags = [*weights, *self.normalization]
            value = finetune(subset, self.images["test"], name_of(name), seed, flags, self.options.jobs)
            self.add(name, seed, share, {"reading": start.reading, "frozen": found, FINETUNED: value})

    def score_statistics(self) -> None:
        """What a logistic regression on statistics of the pixels reaches."""
        splits = {split: pixel_statistics(part, self.num_channels) for split, part in self.images.items()}
        for seed in self.options.seeds:
            for share in self.missing(STATISTICS, seed):
                value = frozen_scores(splits, draw(self.labels, share, seed), seed)[PROBE]
                self.add(STATISTICS, seed, share, {"reading": USUAL.name, "frozen": {USUAL.name: {PROBE: value}}})

    @property
    def num_channels(self) -> int:
        """1 of grey images, 3 of colour."""
        return 1 if self.name == "solar" else 3

    def add(self, name: str, seed: int, share: float, found: Row) -> None:
        self.rows.add({"photographs": self.name, "arm": name, "seed": seed, "share": share, **found})


def plan(starts: dict[str, Start], options: argparse.Namespace) -> str:
    """The runs that are not done and the hours that they take, as text."""
    rows, lines, total = Rows(Path(options.output), KEYS), [], 0.0
    for photographs in options.photographs:
        num_images, num_classes = KNOWN_SETS[photographs]
        for name, start in starts.items():
            for seed in options.seeds:
                key = {"photographs": photographs, "arm": name, "seed": seed}
                drawn = [share for share in options.fractions if share * num_images >= num_classes]
                shares = [share for share in drawn if rows.find(**key, share=share) is None]
                hours = seconds_of(start, num_images, shares) / 3600 if shares else 0.0
                total += hours
                left = f"{hours:.2f} h" if shares else "done"
                lines.append(f"  {photographs:8} {name}, seed {seed}, {len(shares)} of {len(drawn)} shares: {left}")
    return "\n".join([*lines, in_words(total, options.jobs)])


def seconds_of(start: Start, num_images: int, shares: list[float]) -> float:
    """An estimate for one core: pre-training, with the frozen teacher if there is one, features and fine-tuning."""
    images = sum(32 * finetuning_steps(round(share * num_images)) for share in shares)
    seconds = READ + images / FINETUNED_RATE + START * len(shares)
    has_teacher = start.arrangement is not None and start.arrangement.teacher is not None
    return seconds + num_images * start.seconds_per_image * (2 if has_teacher else 1)


if __name__ == "__main__":
    main()
