"""What the demos of dense tasks share: their flags, the runs of the training scripts, and the table."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from conversion.files import read_json
from experiments.subsets import image_names
from training.comparison.launching import launch

PRETRAINED, SCRATCH = "from FCMAE", "from random weights"
Scores = dict[str, dict[str, float]]  # by method, then by case


class Case(NamedTuple):
    """A share of the labels, and the seed that draws it and initialises a model."""

    share: float
    seed: int

    def __str__(self) -> str:
        return f"{self.share:g}-{self.seed}"


def add_options(parser: argparse.ArgumentParser, steps: int, epochs: float) -> None:
    """Add the flags, with these defaults for the lengths of training and pre-training."""
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 1.0], help="of the labelled tiles")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps of each model")
    parser.add_argument("--pretrain_epochs", type=float, default=epochs)


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


def train(script: str, output: Path, folder: Path, method: str, case: Case, steps: int, *flags: str) -> dict[str, Any]:
    """The results of a model on the held-out tiles; an earlier run is resumed or left as it is."""
    target = output / f"{'fcmae' if method == PRETRAINED else 'scratch'}-{case}"
    own = ["--dataset_name", str(folder), "--output_dir", str(target), "--seed", str(case.seed)]
    own += ["--max_train_steps", str(steps), "--warmup_steps", str(steps // 10), "--eval_steps", str(steps)]
    if method == PRETRAINED:
        own += ["--model_name_or_path", f"{output}/pretrain"]
    else:
        own += ["--layer_decay", "1.0"]  # random weights need no lower rates below
    launch(script, f"{script}_small_images", *own, *flags, "--resume_from_checkpoint", "latest")
    return read_json(target / "all_results.json")


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
