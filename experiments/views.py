"""What views, fusion, a teacher, or another family are worth: pre-training runs that all take the same time.

    make study-views
    python -m experiments.views --photographs natural
    python -m experiments.views --compare families

The first arm of a group is FCMAE on one view of each image; `experiments/arms.py` has them all. The other arms run for
as many steps as fit into its time. To compute them, the study first measures the speed of all arms in turns, on the
same cores. Each arm is evaluated by nearest neighbours and a linear probe on its frozen features, and by fine-tuning,
with a quarter of the labels. One seed sets pre-training, the drawn labels and fine-tuning. After a stop, the same
command resumes the study.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from transformers import AutoModelForPreTraining
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from conversion.files import read_json, write_json
from experiments.arms import BATCH_SIZE, GROUPS, Arms, same_model, trained
from experiments.label_efficiency import (
    RECIPE,
    features_of,
    finetune,
    frozen_scores,
    photographs_of,
    pretrain,
    save_untrained,
)
from experiments.natural_photographs import write_natural_photographs
from experiments.solar_cells import normalization_flags, scratch_flags, write_solar_cells
from training.comparison.drawing import draw
from training.comparison.frozen import NEIGHBOURS, PROBE
from training.comparison.records import keep_apart
from training.comparison.subsets import write_subset
from training.comparison.summary import case_name
from training.evaluation.pictures import read_metrics, series

IMAGENET = ("--image_mean", *map(str, IMAGENET_DEFAULT_MEAN), "--image_std", *map(str, IMAGENET_DEFAULT_STD))
SHARE = 0.25  # of the labels
RATE_STEPS, RATE_ROUNDS = 24, 3
SOURCES = {"solar": (write_solar_cells, normalization_flags()), "natural": (write_natural_photographs, IMAGENET)}
DIVERSITY = "feature_diversity_stage"
Found = dict[str, dict[str, dict[str, float]]]  # by arm, seed and method
Sizes = dict[str, dict[str, int]]  # by arm and part of the model


def main() -> None:
    """Write the data, measure the speeds, run every arm with every seed, and write table and results."""
    options = parse_options()
    torch.set_num_threads(max(torch.get_num_threads() // options.jobs, 1))
    arms, output = GROUPS[options.compare], Path(options.output_dir or f"out/{options.compare}_{options.photographs}")
    keep_apart(output, {name: getattr(options, name) for name in ("compare", "photographs", "epochs")})
    write, normalization = SOURCES[options.photographs]
    if not (output / "data/labelled/test.parquet").is_file():
        write(output / "data")
    photographs = {split: photographs_of(output, split) for split in ("train", "test")}
    length = plan(output, arms, options, normalization, len(photographs["train"]))
    sizes = {name: num_parameters(rate_folder(output, 0, same_model(arms, name))) for name in arms}
    save_all_untrained(output, arms, options.seeds)

    def measure(case: tuple[str, int]) -> dict[str, float]:
        name, seed = case
        folder, start = pretrained_folder(output, name, seed), [*scratch_flags(RECIPE), *arms[name].model]
        if name in length["steps"]:
            steps = length["steps"][name]
            flags = [f"--max_train_steps={steps}", f"--warmup_steps={steps // 9}", f"--seed={seed}"]
            pretrain(output, folder, [*arms[name].flags, *flags, *normalization], options.jobs)
            start = [f"--model_name_or_path={folder}"]
        chosen = draw(photographs["train"]["label"], SHARE, seed)
        subset = write_subset(output, photographs["train"], chosen, case_name(SHARE, seed))
        figures = frozen_scores(features_of(folder, photographs), chosen, seed)
        flags = [*start, *normalization]
        figures["fine-tuned"] = finetune(subset, photographs["test"], name_of(name), seed, flags, options.jobs)
        return {**figures, **last_figures(folder)}

    found: Found = {}
    header = {"photographs": options.photographs, **length, "parameters": sizes}
    cases = [(name, seed) for seed in options.seeds for name in arms]
    with ThreadPoolExecutor(options.jobs) as pool:
        for (name, seed), figures in zip(cases, pool.map(measure, cases), strict=True):
            found.setdefault(name, {})[str(seed)] = figures
            write_json(output / f"{options.compare}.json", {**header, "figures": found})
    print(table(found, length["steps"], sizes))


def parse_options() -> argparse.Namespace:
    """The study's flags."""
    parser = argparse.ArgumentParser(prog="python -m experiments.views", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output_dir", help="(default: out/ with the names of group and photographs)")
    parser.add_argument("--compare", choices=sorted(GROUPS), default="views", help="group of arms (default: views)")
    parser.add_argument("--photographs", choices=sorted(SOURCES), default="solar")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default: 1)")
    parser.add_argument("--epochs", type=float, default=9, help="of the first arm, whose time all take (default: 9)")
    return parser.parse_args()


def plan(
    output: Path, arms: Arms, options: argparse.Namespace, normalization: Sequence[str], num_images: int
) -> dict[str, Any]:
    """The seconds that the first arm's epochs take, the speeds of all arms, and their numbers of steps in that time."""
    known = read_json(output / "steps.json")
    if not known:
        rates = measure_rates(output, trained(arms), normalization, options.jobs)
        seconds = options.epochs * num_images / BATCH_SIZE / next(iter(rates.values()))
        known = {"seconds": seconds, "rates": rates, "steps": {name: round(seconds * r) for name, r in rates.items()}}
        write_json(output / "steps.json", known)
    return known


def measure_rates(output: Path, arms: Arms, normalization: Sequence[str], jobs: int) -> dict[str, float]:
    """Steps per second of each arm: the median of short runs in turns, with as many at a time as in the study."""

    def rate(case: tuple[int, str]) -> float:
        index, name = case
        folder = rate_folder(output, index, name)
        length = [
            f"--max_train_steps={RATE_STEPS}",
            "--warmup_steps=2",
            "--logging_steps=6",
            f"--reconstruction_steps={RATE_STEPS}",
        ]
        pretrain(output, folder, [*arms[name].flags, *length, *normalization], jobs)
        rates = series(read_metrics(folder / "metrics.jsonl"), "images_per_second")[1][1:]
        return median(rates) / arms[name].images_in_step

    cases = [(index, name) for index in range(RATE_ROUNDS) for name in arms]
    found: dict[str, list[float]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for (_, name), value in zip(cases, pool.map(rate, cases), strict=True):
            found.setdefault(name, []).append(value)
    return {name: median(values) for name, values in found.items()}


def save_all_untrained(output: Path, arms: Arms, seeds: Sequence[int]) -> None:
    """The models without pre-training. One after the other: their seeds are those of the whole process."""
    for name in arms.keys() - trained(arms):
        shape = rate_folder(output, 0, same_model(arms, name))
        for seed in seeds:
            save_untrained(shape, pretrained_folder(output, name, seed), seed)


def num_parameters(folder: Path) -> dict[str, int]:
    """Trained parameters of the encoder, and of the encoder with all that pre-training adds."""
    model = AutoModelForPreTraining.from_pretrained(folder)
    parts = {"encoder": model.base_model, "pre-training": model}
    return {name: part.num_parameters(only_trainable=True) for name, part in parts.items()}


def last_figures(folder: Path) -> dict[str, float]:
    """The last logged loss of pre-training, and the last logged diversity of the last stage's features."""
    if not (folder / "metrics.jsonl").is_file():
        return {}
    log = read_metrics(folder / "metrics.jsonl")
    diversity = max(name for line in log for name in line if name.startswith(DIVERSITY))
    return {name: series(log, name)[1][-1] for name in ("loss", diversity)}


def rate_folder(output: Path, index: int, name: str) -> Path:
    """The short run of an arm in a round of the measurement of speeds."""
    return output / "rates" / f"{index}-{name_of(name)}"


def pretrained_folder(output: Path, name: str, seed: int) -> Path:
    return output / "pretrain" / f"{name_of(name)}-{seed}"


def name_of(arm: str) -> str:
    return arm.replace(",", "").replace(" ", "_")


def table(found: Found, steps: dict[str, int], sizes: Sizes) -> str:
    """Mean and standard deviation of the balanced accuracies over the seeds, in %, as Markdown."""
    methods = (NEIGHBOURS, PROBE, "fine-tuned")
    lines = [f"| pre-training | encoder | steps | {' | '.join(methods)} |", "|---|" + "---:|" * (2 + len(methods))]
    for arm, seeds in found.items():
        columns = [[100 * figures[method] for figures in seeds.values()] for method in methods]
        cells = [f"{mean(column):.1f} ± {stdev(column) if len(column) > 1 else 0:.1f}" for column in columns]
        size = f"{sizes[arm]['encoder'] / 1e6:.1f} M"
        lines.append(f"| {arm} | {size} | {steps.get(arm, 0):,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
