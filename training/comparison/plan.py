"""The plan of a comparison, for its dry run: the runs, their steps, and the time by dry runs of the scripts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from training.comparison.drawing import draw, finetuning_steps
from training.comparison.images import write_images
from training.comparison.launching import is_finished, measure
from training.comparison.runs import Comparison, finetuning_flags, pretraining_flags, unlabelled_flags
from training.comparison.starts import SHAPE, Start, flags_of, of_images, recipe_of
from training.comparison.subsets import write_subset
from training.run.dry_run import duration
from training.settings.comparison import FINE_TUNING


def planned(comparison: Comparison, folder: Path) -> str:
    """The plan as text. Images are written to `folder`, for dry runs that read them."""
    settings, images, plan = comparison.settings, comparison.images, Plan(comparison, folder)
    lines = {
        "Images": f"{len(images.train):,} of {len(images.names)} classes to train on; held out: {images.held_out}",
        "Labels": ", ".join(f"{100 * share:g} % ({plan.describe(share)})" for share in settings.budget.label_shares),
        "Seeds": ", ".join(map(str, settings.budget.seeds)),
        "Methods": ", ".join(settings.starts.methods),
    }
    lines |= {start.title: plan.of_start(start) for start in comparison.starts}
    runs, jobs = runs_of(comparison), settings.run.jobs
    time = f"{duration(plan.seconds / jobs)} with `--jobs {jobs}`, without starts of runs, evaluations and features"
    lines |= {"Time": time, "Done": f"{sum(map(is_finished, runs))} of {len(runs)} runs"}
    lines["Output"] = f"{comparison.output}, which a dry run leaves as it is"
    width = max(map(len, lines))
    return "\n".join(["Dry run", *(f"  {name:{width}}  {line}" for name, line in lines.items())])


class Plan:
    """The runs of a comparison, with what dry runs measure of them."""

    def __init__(self, comparison: Comparison, folder: Path) -> None:
        self.comparison, self.settings, self.folder = comparison, comparison.settings, folder
        write_images(comparison.images, folder / "data")
        self.seconds, self.measured = 0.0, dict[tuple[str, ...], dict[str, Any]]()
        budget, train = self.settings.budget, comparison.images.train
        draws = {share: draw(train["label"][:], share, budget.seeds[0]) for share in budget.label_shares}
        self.sizes = {share: len(chosen) for share, chosen in draws.items()}
        self.steps = {share: budget.finetune_steps or finetuning_steps(size) for share, size in self.sizes.items()}
        self.subset = write_subset(folder, train, draws[budget.label_shares[-1]], "largest")

    def describe(self, share: float) -> str:
        """The size of a share of the labels, and the steps on it."""
        return f"{self.sizes[share]:,} images, {self.steps[share]} steps"

    def of_start(self, start: Start) -> str:
        """The runs of a start and the seconds that they take, which are added to those of all."""
        parts, number = [], len(self.settings.budget.seeds)
        if start.pretraining is not None:
            data = unlabelled_flags(self.settings, self.folder / "data/unlabelled")
            found = self.measure("pretrain", *data, *pretraining_flags(self.settings, start, 0))
            steps = found["plan"]["max_steps"]
            time = self.add(found["seconds_per_step"] * steps * number)
            parts.append(f"{number} pre-trainings of {steps:,} steps, {time}")
        if FINE_TUNING in self.settings.starts.methods:
            flags = finetuning_flags(self.settings, rehearsed(start), 0, max(self.sizes.values()))
            found = self.measure("finetune", f"--dataset_name={self.subset}", *flags)
            time = self.add(found["seconds_per_step"] * sum(self.steps.values()) * number)
            parts.append(f"{len(self.comparison.cases)} classifiers, {time}")
        return "; ".join(parts) or "frozen features alone"

    def add(self, seconds: float) -> str:
        """Add the seconds of some runs to those of all, and return them as text."""
        self.seconds += seconds
        return duration(seconds)

    def measure(self, task: str, *flags: str) -> dict[str, Any]:
        """What a dry run of a script measures; the same run is measured once."""
        if (task, *flags) not in self.measured:
            recipe, jobs = recipe_of(self.settings, task), self.settings.run.jobs
            self.measured[task, *flags] = measure(
                task, recipe, *flags, f"--output_dir={self.folder / 'none'}", at_a_time=jobs
            )
        return self.measured[task, *flags]


def rehearsed(start: Start) -> Start:
    """The start with the weights that are there, which cost as much as those that pre-training will give."""
    name = start.model.model_name_or_path
    if name is None:
        shape = {name: value for name in SHAPE if (value := getattr(start.model, name)) is not None}
        return replace(start, finetuning=flags_of({**shape, **of_images(start.model)}))
    weights = f"--model_name_or_path={name}"
    return replace(start, finetuning=(weights, *(flag for flag in start.finetuning if flag != weights)))


def runs_of(comparison: Comparison) -> list[Path]:
    """The folders of all runs."""
    found = []
    for start in comparison.starts:
        if start.pretraining is not None:
            found += [comparison.folder_of(start, seed) for seed in comparison.settings.budget.seeds]
        if FINE_TUNING in comparison.settings.starts.methods:
            found += [comparison.classifier_folder(start, case) for case in comparison.cases]
    return found
