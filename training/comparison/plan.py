"""The plan of a comparison, for its dry run: the runs, their steps, and the time by dry runs of the scripts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.comparison.drawing import draw, finetuning_steps
from training.comparison.images import write_images
from training.comparison.launching import is_finished, measure
from training.comparison.runs import Comparison, finetuning_flags, pretraining_flags, unlabelled_flags
from training.comparison.starts import SHAPE, Start, flags_of, recipe_of
from training.comparison.subsets import write_subset
from training.run.dry_run import duration

Measure = Callable[..., dict[str, Any]]


def planned(comparison: Comparison, folder: Path, measured: Measure = measure) -> str:
    """The plan as text. Images are written to `folder`, for dry runs that read them."""
    settings, images = comparison.settings, comparison.images
    write_images(images, folder / "data")
    shares, seeds = settings.budget.label_shares, settings.budget.seeds
    sizes = {share: len(draw(images.train["label"][:], share, seeds[0])) for share in shares}
    steps = {share: settings.budget.finetune_steps or finetuning_steps(size) for share, size in sizes.items()}
    drawn = ", ".join(f"{100 * share:g} % ({sizes[share]:,} images, {steps[share]} steps)" for share in shares)
    lines = [
        "Dry run",
        f"  Images      {len(images.train):,} of {len(images.names)} classes to train on; held out: {images.held_out}",
        f"  Labels      {drawn}, for each of the seeds {', '.join(map(str, seeds))}",
        f"  Methods     {', '.join(settings.starts.methods)}",
    ]
    total, known = 0.0, dict[tuple[str, ...], dict[str, Any]]()
    largest = draw(images.train["label"][:], shares[-1], seeds[0])
    subset = write_subset(folder, images.train, largest, "largest")
    for start in comparison.starts:
        parts = []
        if start.pretraining is not None:
            flags = (*unlabelled_flags(settings, folder / "data/unlabelled"), *pretraining_flags(settings, start, 0))
            found = once(known, measured, "pretrain", comparison, flags, folder)
            seconds = found["seconds_per_step"] * found["plan"]["max_steps"] * len(seeds)
            parts.append(f"{len(seeds)} pre-trainings of {found['plan']['max_steps']:,} steps, {duration(seconds)}")
            total += seconds
        if "fine_tuning" in settings.starts.methods:
            flags = (
                f"--dataset_name={subset}",
                *finetuning_flags(settings, start, 0, len(largest)),
                *weights_of(start),
            )
            found = once(known, measured, "finetune", comparison, flags, folder)
            seconds = found["seconds_per_step"] * sum(steps.values()) * len(seeds)
            parts.append(f"{len(comparison.cases)} classifiers, {duration(seconds)}")
            total += seconds
        size = start.model.image_size or "its own"
        lines.append(f"  Start       {start.title} ({size} pixels): {'; '.join(parts) or 'frozen features alone'}")
    done = sum(is_finished(run) for run in runs_of(comparison))
    jobs = settings.run.jobs
    lines.append(
        f"  Time        {duration(total / jobs)} with `--jobs {jobs}`, without starts of runs, evaluations and features"
    )
    lines.append(f"  Done        {done} of {len(runs_of(comparison))} runs")
    lines.append(f"  Output      {comparison.output}, which a dry run leaves as it is")
    return "\n".join(lines)


def once(
    known: dict[tuple[str, ...], dict[str, Any]],
    measured: Measure,
    task: str,
    comparison: Comparison,
    flags: tuple[str, ...],
    folder: Path,
) -> dict[str, Any]:
    """What a dry run of a script measures; the same run is measured once."""
    if (task, *flags) not in known:
        recipe, jobs = recipe_of(comparison.settings, task), comparison.settings.run.jobs
        known[task, *flags] = measured(task, recipe, *flags, f"--output_dir={folder / 'none'}", at_a_time=jobs)
    return known[task, *flags]


def weights_of(start: Start) -> tuple[str, ...]:
    """Flags of weights that cost as much as those that pre-training will give."""
    if start.model.model_name_or_path is not None:
        return (f"--model_name_or_path={start.model.model_name_or_path}",)
    return flags_of({name: value for name in SHAPE if (value := getattr(start.model, name)) is not None})


def runs_of(comparison: Comparison) -> list[Path]:
    """The folders of all runs."""
    found = []
    for start in comparison.starts:
        if start.pretraining is not None:
            found += [comparison.folder_of(start, seed) for seed in comparison.settings.budget.seeds]
        if "fine_tuning" in comparison.settings.starts.methods:
            found += [comparison.output / "runs" / f"{case}-{start.key}" for case in comparison.cases]
    return found
