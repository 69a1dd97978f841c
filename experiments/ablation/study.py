"""The runs of the ablations: pre-trainings, then each arm and seed, which becomes a row of the results file.

A row has all that the page is computed from: the study goes on from the results file alone, without the runs.
"""

import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import mean, median
from threading import Lock
from typing import Any
from zlib import crc32

import numpy as np
from datasets import Dataset

from conversion.files import read_json, write_json
from conversion.model_folder import SETTINGS
from experiments.ablation import collapse
from experiments.ablation.arms import BLOCKS, GATE, GATE_SEEDS, PRETRAININGS, RATES, SHARE, V2, Arm
from experiments.ablation.cases import (
    FINETUNING,
    PRETRAINING,
    Case,
    Length,
    cases_of,
    encoder_of,
    finetuning_flags,
    pretraining_flags,
    pretrainings_of,
)
from experiments.ablation.replacements import replaced
from experiments.ablation.surgery import write_changed
from training.comparison.drawing import draw
from training.comparison.frozen import features_of, frozen_answers, predicted_classes
from training.comparison.intervals import balanced_mean
from training.comparison.launching import is_finished, recipe_file
from training.comparison.records import differing
from training.comparison.runner import Runner
from training.comparison.subsets import write_parquet, write_subset
from training.comparison.summary import FINETUNED, case_name
from training.evaluation.pictures import read_metrics, series
from training.settings.model import ModelSettings

PRETRAINING_BATCH, FINETUNING_BATCH = 64, 32  # of the recipes
SCRIPT = Path(__file__).with_name("script.py")
SAME_TIME = "fine-tuning, same time"  # steps that it has beside those of every arm
Row = dict[str, Any]


def rows_of(results: dict[str, Any]) -> dict[Case, Row]:
    """The rows of results; none where these are empty."""
    return {Case(row["arm"], row["seed"]): row for row in results.get("rows", [])}


@dataclass
class Ablations:
    """The results file of the study, and the folder of its runs. `photographs` are those of `train` and `test`."""

    output: Path
    results: Path
    photographs: dict[str, Dataset]
    length: Length
    runner: Runner
    computing: Any = field(default_factory=Lock)  # one thread of this process at a time; runs go on beside it

    def __post_init__(self) -> None:
        known = read_json(self.results)
        self.rows = rows_of(known)
        steps = {"pre-training": self.length.pretraining, "fine-tuning": self.length.finetuning}
        self.steps = known.get("steps", {}) | steps

    def run(self, block: str, seeds: Sequence[int] | None = None) -> None:
        """Do all of a block that is not done yet."""
        self.check()
        wanted = [case for case in cases_of([block], seeds) if case not in self.rows]
        self.runner.side_by_side(partial(self.pretrain, *each) for each in pretrainings_of(wanted))
        for same_time in (False, True):  # the time is known then
            self.runner.side_by_side(partial(self.make_row, case) for case in wanted if case.arm.same_time == same_time)

    def check(self) -> None:
        """Raise if the results file has a row of other settings: it is neither used nor overwritten.

        Learning rates, and with them rows of all blocks but G, can be compared as soon as block G is done.
        """
        planned = set(cases_of(list(BLOCKS)))
        rates_known = all(case in self.rows for case in cases_of(["G"]))
        for case, row in self.rows.items():
            if case.is_gate or rates_known:
                expected = self.settings_of(case) if case in planned else {}
                if changes := differing(row["settings"], expected):
                    rule = f"must hold rows of these settings alone, but {case} has {'; '.join(changes)}"
                    fix = "Name another file. Or, to run it anew, take out the row, and its runs in `output_dir`."
                    raise ValueError(f"`results` (={self.results}) {rule}. {fix}")

    def write(self, **computed: Any) -> None:
        """Write the results file: the rows, and what was computed from them."""
        write_json(self.results, {**computed, "steps": self.steps, "rows": self.done()})

    def done(self) -> list[Row]:
        """The rows in the order of the plan, whatever run was over first."""
        return [self.rows[case] for case in cases_of(list(BLOCKS)) if case in self.rows]

    # Pre-training

    def pretrain(self, name: str, seed: int) -> None:
        """Pre-train, and measure at quarters of the run whether features collapse, unless this is done."""
        folder, kept = self.pretrained(name, seed), self.collapse_file(name, seed)
        if not is_finished(folder):
            replacement = PRETRAININGS[name].replacement
            flags = [f"--dataset_name={self.output}/data/unlabelled", *pretraining_flags(name, seed, self.length)]
            self.launch("pretrain", replacement, PRETRAINING, folder, *flags)
        if not kept.is_file():
            with self.computing, replaced(PRETRAININGS[name].encoder):
                write_json(make_parent(kept), dict(self.collapse_figures(name, seed)))
        remove_checkpoints(folder)

    def collapse_figures(self, name: str, seed: int) -> Iterator[tuple[str, dict[str, list[float]]]]:
        """Of initial weights, of the checkpoints after a quarter and a half, and of the final model, by step."""
        folder, images, quarter = self.pretrained(name, seed), self.photographs["test"], self.length.quarter(name)
        yield "0", collapse.figures_of(folder, images, seed)
        for step in (quarter, 2 * quarter):
            yield str(step), collapse.figures_of(folder / f"checkpoint-{step}", images)
        yield str(self.length.of_pretraining(name)), collapse.figures_of(folder, images)

    def pretrained(self, name: str, seed: int) -> Path:
        return self.output / "pretrain" / f"{name}-{seed}"

    def collapse_file(self, name: str, seed: int) -> Path:
        return self.output / "collapse" / f"{name}-{seed}.json"

    # Fine-tuning and frozen features

    def make_row(self, case: Case) -> None:
        """Fine-tune and evaluate a case, and write its row."""
        arm, settings, start = case.arm, self.settings_of(case), self.start_of(case)
        folder = self.finetune(case, start)
        with self.computing:
            answers = self.answers(case, start, folder)
            labels = np.array(self.images_of(case)["test"]["label"][:])
            figures = {name: balanced_mean(labels, (found == labels).astype(float)) for name, found in answers.items()}
            seconds = {"fine-tuning": seconds_of_a_step(folder, FINETUNING_BATCH)}
            row: Row = {"arm": case.key, "seed": case.seed, "figures": figures, "settings": settings}
            row |= {"seconds of a step": seconds, "answers": as_text(answers[FINETUNED])}
            if arm.pretraining is not None:
                pretrained = self.pretrained(arm.pretraining, case.seed)
                figures["pre-training loss"] = series(read_metrics(pretrained / "metrics.jsonl"), "loss")[1][-1]
                seconds["pre-training"] = seconds_of_a_step(pretrained, PRETRAINING_BATCH)
            if case.key == arm.pretraining:  # of the arms that share it, the first
                row["collapse"] = read_json(self.collapse_file(case.key, case.seed))
            self.rows[case] = row
            self.write()
        remove_checkpoints(folder)

    def settings_of(self, case: Case) -> dict[str, Any]:
        """What a row depends on; paths are not part of it."""
        arm = case.arm
        found = {"photographs": self.split, "learning_rate": self.rate_of(case), "change": arm.change}
        found["recipes"] = recipes()
        found["fine-tuning"] = shlex.join(self.finetuning_flags(case))
        if arm.pretraining is not None:
            found["pretraining"] = shlex.join(pretraining_flags(arm.pretraining, case.seed, self.length))
            found["replacement"] = PRETRAININGS[arm.pretraining].replacement
        return found

    @cached_property
    def split(self) -> str:
        """What tells a split of the photographs from another one: the numbers of images, and a checksum of labels."""
        labels = [bytes(part["label"][:]) for _, part in sorted(self.photographs.items())]
        return f"{' and '.join(str(len(part)) for part in labels)} images, labels {crc32(b''.join(labels)):08x}"

    def finetuning_flags(self, case: Case) -> list[str]:
        return finetuning_flags(case.arm, case.seed, self.rate_of(case), self.steps_of(case.arm))

    def rate_of(self, case: Case) -> float:
        """The learning rate of fine-tuning: of block G its own, else the one that was better there."""
        if case.is_gate:
            return GATE[case.key].rate
        of_g = {rate: [Case(f"{case.arm.start}-{rate:g}", seed) for seed in GATE_SEEDS] for rate in RATES}
        if any(each not in self.rows for cases in of_g.values() for each in cases):
            raise ValueError("`blocks` must begin with G, which chooses the learning rates of all others.")
        return max(RATES, key=lambda rate: mean(self.rows[each]["figures"][FINETUNED] for each in of_g[rate]))

    def start_of(self, case: Case) -> Path | None:
        """The folder that fine-tuning starts from; `None` for random weights."""
        arm = case.arm
        if arm.pretraining is None:
            return None
        pretrained = self.pretrained(arm.pretraining, case.seed)
        if arm.change is None:
            return pretrained
        with self.computing:
            return write_changed(pretrained, arm.change, self.output / "changed" / f"{arm.pretraining}-{case}")

    def steps_of(self, arm: Arm) -> int:
        """The steps of fine-tuning, with those that the first arm's pre-training would take if they count."""
        return self.length.finetuning + (self.steps_in_time_of_pretraining() if arm.same_time else 0)

    def steps_in_time_of_pretraining(self) -> int:
        """The fine-tuning steps of V2 that take as long as its pre-training, by logs of both, once for all seeds."""
        with self.computing:
            if SAME_TIME not in self.steps:
                # The ratio of each row is that of one machine: the study may have gone on elsewhere.
                seconds = [row["seconds of a step"] for case, row in self.rows.items() if case.key == V2]
                ratio = median(each["pre-training"] / each["fine-tuning"] for each in seconds)
                self.steps[SAME_TIME] = round(self.length.pretraining * ratio)
                self.write()
            return self.steps[SAME_TIME]

    def finetune(self, case: Case, start: Path | None) -> Path:
        """The folder of the classifier of a case.

        Raises:
            ValueError: if a finished run is there that had another learning rate or number of steps.
        """
        folder, flags = self.classifier(case), self.finetuning_flags(case)
        if is_finished(folder):
            before = read_json(folder / SETTINGS)
            expected = {"learning_rate": self.rate_of(case), "max_train_steps": self.steps_of(case.arm)}
            if changes := differing({name: before[name] for name in expected}, expected):
                rule = f"must hold runs of this study's settings, but {folder} has {'; '.join(changes)}"
                raise ValueError(f"`output_dir` (={self.output}) {rule}. Remove that folder.")
        else:
            with self.computing:
                subset = self.subset(case)
            weights = [] if start is None else [f"--model_name_or_path={start}"]
            self.launch("finetune", encoder_of(case), FINETUNING, folder, f"--dataset_name={subset}", *weights, *flags)
        return folder

    def classifier(self, case: Case) -> Path:
        return self.output / "finetune" / str(case)

    def answers(self, case: Case, start: Path | None, folder: Path) -> dict[str, np.ndarray]:
        """The predicted classes `(N,)` of the held-out images, by method."""
        images, found = self.images_of(case), {}
        with replaced(encoder_of(case)):
            found[FINETUNED] = predicted_classes(str(folder), images["test"])
            if start is not None and not case.is_gate:
                features = features_of(ModelSettings(model_name_or_path=str(start)), self.photographs)
                found |= frozen_answers(features, self.drawn(case.seed), case.seed)
        return found

    def drawn(self, seed: int) -> np.ndarray:
        """The training images whose labels the arms of a seed get."""
        return draw(self.photographs["train"]["label"][:], SHARE, seed)

    def images_of(self, case: Case) -> dict[str, Dataset]:
        """The images that a case is fine-tuned on, and those that are held out: in block G other training images."""
        train, chosen = self.photographs["train"], self.drawn(case.seed)
        rest = np.setdiff1d(np.arange(len(train)), chosen)
        return {"train": train.select(chosen), "test": train.select(rest) if case.is_gate else self.photographs["test"]}

    def subset(self, case: Case) -> Path:
        """The data set of the images of a case."""
        if not case.is_gate:
            return write_subset(
                self.output, self.photographs["train"], self.drawn(case.seed), case_name(SHARE, case.seed)
            )
        folder = self.output / "subsets" / "validation"
        if not (folder / "train.parquet").is_file():
            for split, images in sorted(self.images_of(case).items()):  # the training images last
                write_parquet(images, folder / f"{split}.parquet")
        return folder

    def launch(self, task: str, replacement: str | None, recipe: str, folder: Path, *flags: str) -> None:
        """Run an ordinary script, or with a replaced module by the script beside this file."""
        script = task if replacement is None else SCRIPT
        own = () if replacement is None else (f"--task={task}", f"--replacement={replacement}")
        self.runner.launch(script, recipe, folder, *own, *flags)


def recipes() -> str:
    """A checksum of the recipes that the flags stand on."""
    return f"{crc32(b''.join(recipe_file(name).read_bytes() for name in (PRETRAINING, FINETUNING))):08x}"


def as_text(classes: np.ndarray) -> str:
    """Predicted classes `(N,)`, at most ten different ones, as a digit each."""
    return "".join(map(str, classes.tolist()))


def as_classes(text: str) -> np.ndarray:
    """The predicted classes `(N,)` of `as_text`."""
    return np.array([int(digit) for digit in text])


def seconds_of_a_step(run: Path, batch: int) -> float:
    """By the median of the logged speeds."""
    return round(batch / median(series(read_metrics(run / "metrics.jsonl"), "images_per_second")[1]), 4)


def remove_checkpoints(folder: Path) -> None:
    """Of a run that is over: they are three times as large as its model."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def make_parent(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
