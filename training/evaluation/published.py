"""Comparison of a measured accuracy with accuracies that others measured with the same checkpoint."""

from pathlib import Path

from scipy.stats import binomtest

from conversion.checkpoints import Checkpoint, checkpoint_table, find_repository
from conversion.model_folder import read_provenance

NAMES = {"eval_accuracy": "top-1", "eval_accuracy_top5": "top-5"}


def known_checkpoint(name: str) -> Checkpoint | None:
    """The official checkpoint of a Hub id, or of a folder that `conversion.convert` wrote."""
    if Path(name).is_dir():
        return checkpoint_table().get(str(read_provenance(Path(name)).get("checkpoint")))
    return find_repository(name)


def intervals(results: dict[str, float]) -> dict[str, list[float]]:
    """The 95 % confidence interval (Wilson) of each accuracy, as shares."""
    samples = int(results["eval_samples"])
    found = {}
    for name in NAMES:
        if name in results:
            test = binomtest(round(results[name] * samples), samples)
            interval = test.proportion_ci(confidence_level=0.95, method="wilson")
            found[f"{name}_ci95"] = [float(interval.low), float(interval.high)]
    return found


def comparison(results: dict[str, float], checkpoint: Checkpoint | None) -> str:
    """A table of the measured accuracy with its interval, and others' on ImageNet-1k's 50,000 validation images."""
    bounds, samples = intervals(results), int(results["eval_samples"])
    header = f"{'accuracy in %':34}" + "".join(f"{NAMES[name]:>26}" for name in NAMES if name in results)
    cells = [
        f"{100 * results[name]:.2f} ({100 * bounds[f'{name}_ci95'][0]:.2f} to {100 * bounds[f'{name}_ci95'][1]:.2f})"
        for name in NAMES
        if name in results
    ]
    lines = [header, f"{f'measured, {samples:,} images':34}" + "".join(f"{cell:>26}" for cell in cells)]
    for source, values in (checkpoint.accuracy if checkpoint else {}).items():
        reference = f"{source}, ImageNet-1k at {checkpoint.image_size}" if checkpoint else source
        lines.append(f"{reference:34}" + "".join(f"{value:>26.2f}" for value in values))
    return "\n".join(lines)
