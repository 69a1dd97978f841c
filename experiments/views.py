"""What complementary views, fusion and a teacher are worth: pre-training runs that all take the same time.

    make study-views
    python -m experiments.views --photographs natural

The first arm is FCMAE on one view of each image. The other arms run for as many steps as fit into its time. To compute
them, the study first measures the speed of all arms in turns, on the same cores. Each arm is evaluated by nearest
neighbours and a linear probe on its frozen features, and by fine-tuning, with a quarter of the labels. One seed sets
pre-training, the drawn labels and fine-tuning. After a stop, the same command resumes the study.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from conversion.files import read_json, write_json
from experiments.label_efficiency import (
    NEIGHBOURS,
    PROBE,
    RECIPE,
    draw,
    features_of,
    finetune,
    frozen_scores,
    photographs_of,
    pretrain,
    save_untrained,
    write_subset,
)
from experiments.natural_photographs import write_natural_photographs
from experiments.solar_cells import normalization_flags, scratch_flags, write_solar_cells
from training.evaluation.pictures import read_metrics, series

BATCH_SIZE = 64  # views in a step, as in the recipe, for every arm
ONE_VIEW, UNTRAINED = "one view", "no pre-training"
FOUR_VIEWS = ("--num_visible_sets=4", f"--per_device_train_batch_size={BATCH_SIZE // 4}")
ARMS: dict[str, tuple[str, ...]] = {
    ONE_VIEW: (),
    "four views": FOUR_VIEWS,
    "four views, fusion": (*FOUR_VIEWS, "--fusion_stages", "stage1", "stage2", "stage3"),
    "four views, EMA teacher": (*FOUR_VIEWS, "--target_type=pixel+feature", "--teacher_decay", "0.99", "0.999"),
}
IMAGENET = ("--image_mean", *map(str, IMAGENET_DEFAULT_MEAN), "--image_std", *map(str, IMAGENET_DEFAULT_STD))
SHARE = 0.25  # of the labels
RATE_STEPS, RATE_ROUNDS = 24, 3
SOURCES = {"solar": (write_solar_cells, normalization_flags()), "natural": (write_natural_photographs, IMAGENET)}


def main() -> None:
    """Write the data, measure the speeds, run every arm with every seed, and write table and results."""
    options = parse_options()
    torch.set_num_threads(max(torch.get_num_threads() // options.jobs, 1))
    output = Path(options.output_dir or f"out/views_{options.photographs}")
    write, normalization = SOURCES[options.photographs]
    if not (output / "data/labelled/test.parquet").is_file():
        write(output / "data")
    photographs = {split: photographs_of(output, split) for split in ("train", "test")}
    length = plan(output, options, normalization, len(photographs["train"]))
    steps = length["steps"]

    def measure(case: tuple[str, int]) -> dict[str, float]:
        arm, seed = case
        folder = output / "pretrain" / f"{name_of(arm)}-{seed}"
        start = [f"--model_name_or_path={folder}"]
        if arm == UNTRAINED:
            start = scratch_flags(RECIPE)
        else:
            flags = [f"--max_train_steps={steps[arm]}", f"--warmup_steps={steps[arm] // 9}", f"--seed={seed}"]
            pretrain(output, folder, [*ARMS[arm], *flags, *normalization], options.jobs)
        chosen = draw(photographs["train"]["label"], SHARE, seed)
        subset = write_subset(output, photographs["train"], chosen, f"{SHARE:g}-{seed}")
        figures = frozen_scores(features_of(folder, photographs), chosen, seed)
        flags = [*start, *normalization]
        figures["fine-tuned"] = finetune(subset, photographs["test"], name_of(arm), seed, flags, options.jobs)
        return {**figures, **last_figures(folder)}

    for seed in options.seeds:
        like = output / "rates" / f"0-{name_of(ONE_VIEW)}"
        save_untrained(like, output / "pretrain" / f"{name_of(UNTRAINED)}-{seed}", seed)
    found: dict[str, dict[str, dict[str, float]]] = {}
    cases = [(arm, seed) for seed in options.seeds for arm in (*ARMS, UNTRAINED)]
    with ThreadPoolExecutor(options.jobs) as pool:
        for (arm, seed), figures in zip(cases, pool.map(measure, cases), strict=True):
            found.setdefault(arm, {})[str(seed)] = figures
            write_json(output / "views.json", {"photographs": options.photographs, **length, "figures": found})
    print(table(found, steps))


def parse_options() -> argparse.Namespace:
    """The study's flags."""
    parser = argparse.ArgumentParser(prog="python -m experiments.views", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output_dir", help="(default: out/views_solar or out/views_natural)")
    parser.add_argument("--photographs", choices=sorted(SOURCES), default="solar")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default: 1)")
    parser.add_argument("--epochs", type=float, default=9, help="of the first arm, whose time all take (default: 9)")
    return parser.parse_args()


def plan(output: Path, options: argparse.Namespace, normalization: Sequence[str], num_images: int) -> dict[str, Any]:
    """The seconds that the first arm's epochs take, the speeds of all arms, and their numbers of steps in that time."""
    known = read_json(output / "steps.json")
    if not known:
        rates = measure_rates(output, normalization, options.jobs)
        seconds = options.epochs * num_images / BATCH_SIZE / rates[ONE_VIEW]
        known = {"seconds": seconds, "rates": rates, "steps": {arm: round(seconds * r) for arm, r in rates.items()}}
        write_json(output / "steps.json", known)
    return known


def measure_rates(output: Path, normalization: Sequence[str], jobs: int) -> dict[str, float]:
    """Steps per second of each arm: the median of short runs in turns, with as many at a time as in the study."""

    def rate(case: tuple[int, str]) -> float:
        index, arm = case
        folder = output / "rates" / f"{index}-{name_of(arm)}"
        length = [
            f"--max_train_steps={RATE_STEPS}",
            "--warmup_steps=2",
            "--logging_steps=6",
            f"--reconstruction_steps={RATE_STEPS}",
        ]
        pretrain(output, folder, [*ARMS[arm], *length, *normalization], jobs)
        rates = series(read_metrics(folder / "metrics.jsonl"), "images_per_second")[1][1:]
        views = 4 if "--num_visible_sets=4" in ARMS[arm] else 1
        return median(rates) * views / BATCH_SIZE

    cases = [(index, arm) for index in range(RATE_ROUNDS) for arm in ARMS]
    found: dict[str, list[float]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for (_, arm), value in zip(cases, pool.map(rate, cases), strict=True):
            found.setdefault(arm, []).append(value)
    return {arm: median(values) for arm, values in found.items()}


def last_figures(folder: Path) -> dict[str, float]:
    """The last logged loss of pre-training, and the last logged diversity of the last stage's features."""
    if not (folder / "metrics.jsonl").is_file():
        return {}
    log = read_metrics(folder / "metrics.jsonl")
    return {name: series(log, name)[1][-1] for name in ("loss", "feature_diversity_stage4")}


def name_of(arm: str) -> str:
    return arm.replace(",", "").replace(" ", "_")


def table(found: dict[str, dict[str, dict[str, float]]], steps: dict[str, int]) -> str:
    """Mean and standard deviation of the balanced accuracies over the seeds, in %, as Markdown."""
    methods = (NEIGHBOURS, PROBE, "fine-tuned")
    lines = ["| pre-training | steps | " + " | ".join(methods) + " |", "|---|" + "---:|" * (1 + len(methods))]
    for arm, seeds in found.items():
        columns = [[100 * figures[method] for figures in seeds.values()] for method in methods]
        cells = [f"{mean(column):.1f} ± {stdev(column) if len(column) > 1 else 0:.1f}" for column in columns]
        lines.append(f"| {arm} | {steps.get(arm, 0):,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
