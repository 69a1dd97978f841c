"""What the demos of dense tasks share: their flags, the runs of the training scripts, and the table."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from conversion.files import read_json
from conversion.model_folder import RESULTS
from experiments.subsets import image_names, subset, write_once
from training.comparison.launching import launch
from training.comparison.runner import side_by_side

PRETRAINED, SCRATCH = "from FCMAE", "from random weights"
Scores = dict[str, dict[str, float]]  # by method, then by case
Results = dict[str, Any]  # of a model, by the names of `all_results.json`


class Case(NamedTuple):
    """A share of the labels, and the seed that draws it and initialises a model."""

    share: float
    seed: int

    def __str__(self) -> str:
        return f"{self.share:g}-{self.seed}"


class Trained(NamedTuple):
    """The tiles of each split; of each case, the folder of its tiles and the results of both starts, held out."""

    counts: dict[str, int]
    folders: dict[Case, Path]
    results: dict[Case, dict[str, Results]]


def add_options(parser: argparse.ArgumentParser, steps: int, epochs: float) -> None:
    """Add the flags, with these defaults for the lengths of training and pre-training."""
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 1.0], help="of the labelled tiles")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps of each model")
    parser.add_argument("--pretrain_epochs", type=float, default=epochs)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default: 1)")


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All shares, each with all seeds."""
    for share in options.shares:
        for seed in options.seeds:
            yield Case(share, seed)


def count_tiles(labelled: Path) -> dict[str, int]:
    """The number of labelled tiles in each split."""
    counts = {split: len(image_names(labelled / split)) for split in ("train", "test")}
    print(f"{counts['train']} tiles to train on, {counts['test']} held out.", flush=True)
    return counts


def pretrain(output: Path, epochs: float, size: int, *flags: str) -> None:
    """Pre-train on the training tiles without labels; an earlier run is resumed or left as it is."""
    own = ["--dataset_name", f"{output}/data/unlabelled", "--output_dir", f"{output}/pretrain"]
    own += ["--image_size", str(size), "--num_train_epochs", str(epochs), "--warmup_epochs", str(epochs / 9)]
    launch("pretrain", "pretrain_small_images", *own, *flags, "--resume_from_checkpoint", "latest")


def train_all(
    script: str,
    output: Path,
    write: Callable[[Path], object],
    size: int,
    options: argparse.Namespace,
    shape: Sequence[str],
    *flags: str,
) -> Trained:
    """Write the data, pre-train, and train from both starts in each case.

    size: pixels of the crops of pre-training. shape: flags of pre-training and of training; `flags` are of training.
    """
    data = write_once(output / "data", write)
    counts = count_tiles(data / "labelled")
    pretrain(output, options.pretrain_epochs, size, *shape)
    folders = {case: subset(data / "labelled", data / str(case), *case) for case in cases(options)}
    runs = list(product(folders, (PRETRAINED, SCRATCH)))
    own = (options, *shape, *flags)
    tasks = [partial(train, script, output, folders[case], method, case, *own) for case, method in runs]
    side_by_side(options.jobs, tasks)
    found: dict[Case, dict[str, Results]] = {}
    for case, method in runs:
        found.setdefault(case, {})[method] = read_json(trained_folder(output, method, case) / RESULTS)
    return Trained(counts, folders, found)


def train(
    script: str, output: Path, folder: Path, method: str, case: Case, options: argparse.Namespace, *flags: str
) -> None:
    """Train a model; an earlier run is resumed or left as it is."""
    steps = options.steps
    own = ["--dataset_name", str(folder), "--output_dir", str(trained_folder(output, method, case))]
    own += ["--seed", str(case.seed)]
    own += ["--max_train_steps", str(steps), "--warmup_steps", str(steps // 10), "--eval_steps", str(steps)]
    if method == PRETRAINED:
        own += ["--model_name_or_path", f"{output}/pretrain"]
    else:
        own += ["--layer_decay", "1.0"]  # random weights need no lower rates below
    resumed = ("--resume_from_checkpoint", "latest")
    launch(script, f"{script}_small_images", *own, *flags, *resumed, at_a_time=options.jobs)


def trained_folder(output: Path, method: str, case: Case) -> Path:
    """Where the model of a case is."""
    return output / f"{'fcmae' if method == PRETRAINED else 'scratch'}-{case}"


def print_table(title: str, scores: Scores, options: argparse.Namespace) -> None:
    """Print the mean and the standard deviation over the seeds, for each method and share."""
    print(f"\n{title:<42}" + "".join(f"{f'{share:.0%} of the labels':>22}" for share in options.shares))
    for method, values in scores.items():
        cells = []
        for share in options.shares:
            of_share = [values[str(Case(share, seed))] for seed in options.seeds]
            spread = f" (sd {100 * stdev(of_share):.1f})" if len(of_share) > 1 else ""
            cells.append(f"{100 * mean(of_share):.1f} %{spread}")
        print(f"{method:<42}" + "".join(f"{cell:>22}" for cell in cells))
