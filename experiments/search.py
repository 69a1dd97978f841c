"""The FCMAE settings that suit few small images: cell size, crops, learning rate and length, chosen one after another.

    python -m experiments.search

The search uses only the training photographs of the study: three tenths of them are the validation part, pre-training
and fine-tuning get the others. The score of a setting is the mean balanced accuracy, over seeds, of classifiers that
are fine-tuned from it with a quarter of the labels. After a stop, the same command resumes the search.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.model_selection import train_test_split

from conversion.files import write_json
from experiments.label_efficiency import finetune, photographs_of, pretrain
from experiments.solar_cells import normalization_flags, write_solar_cells
from training.comparison.drawing import draw
from training.comparison.subsets import write_subset

VALIDATION_SHARE, LABELLED_SHARE = 0.3, 0.25
START = {"cell_size": 16, "crop_scale": 0.3, "learning_rate": 1.5e-3, "num_train_epochs": 9}
AXES = {
    "cell_size": (8, 16, 32),  # pixels
    "crop_scale": (0.1, 0.3, 0.6),  # least share of an image
    "learning_rate": (5e-4, 1.5e-3, 4e-3),
    "num_train_epochs": (3, 9, 27),
}
CELLS = {8: (2, 3), 16: (4, 3), 32: (4, 4)}  # patch size and stages
Candidate = dict[str, Any]


def main() -> None:
    """Keep the best value of each setting, one setting after another, and write all scores."""
    parser = argparse.ArgumentParser(prog="python -m experiments.search", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output_dir", default="out/search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=1, help="candidates that are tried at a time (default: 1)")
    options = parser.parse_args()
    output, best, found = Path(options.output_dir), dict(START), {}
    if not (output / "data/labelled/test.parquet").is_file():
        write_validation_part(output)
    train = photographs_of(output, "train")
    for seed in options.seeds:
        write_subset(output, train, draw(train["label"], LABELLED_SHARE, seed), f"{LABELLED_SHARE}-{seed}")
    for axis, values in AXES.items():
        candidates = [{**best, axis: value} for value in values]
        with ThreadPoolExecutor(options.jobs) as pool:
            scores = list(pool.map(lambda candidate: try_out(output, candidate, options), candidates))
        found |= {name_of(candidate): score for candidate, score in zip(candidates, scores, strict=True)}
        write_json(output / "search.json", found)
        worth = {value: mean(score) for value, score in zip(values, scores, strict=True)}
        best[axis] = max(worth, key=lambda value: worth[value])
    for name, scores in sorted(found.items(), key=lambda item: -mean(item[1])):
        print(f"{mean(scores):.1%}  {' '.join(f'{score:.1%}' for score in scores)}  {name}")
    print("Chosen:", best)


def write_validation_part(output: Path) -> None:
    """Write the study's training photographs in two parts, under the names that the study's functions read."""
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output) as whole:  # with it go the held-out photographs, which no search may see
        write_solar_cells(Path(whole) / "data")
        photographs = photographs_of(Path(whole), "train")
    parts = train_test_split(
        np.arange(len(photographs)), test_size=VALIDATION_SHARE, random_state=0, stratify=photographs["label"]
    )
    for split, indices in zip(("train", "test"), parts, strict=True):
        part: Dataset = photographs.select(indices)
        for folder, columns in (("unlabelled", ["image"]), ("labelled", ["image", "label"])):
            (output / "data" / folder).mkdir(parents=True, exist_ok=True)
            if (folder, split) != ("unlabelled", "test"):
                part.select_columns(columns).to_parquet(output / f"data/{folder}/{split}.parquet")


def try_out(output: Path, candidate: Candidate, options: argparse.Namespace) -> list[float]:
    """Balanced accuracies on the validation part, one for each seed. Candidates tried before are not trained again."""
    name = name_of(candidate)
    flags = [*normalization_flags(), *flags_of(candidate)]
    pretrained = pretrain(output, output / "pretrain" / name, flags, options.jobs)
    validation, start = photographs_of(output, "test"), [f"--model_name_or_path={pretrained}"]
    subsets = {seed: output / f"subsets/{LABELLED_SHARE}-{seed}" for seed in options.seeds}
    return [finetune(subset, validation, name, seed, start, options.jobs) for seed, subset in subsets.items()]


def name_of(candidate: Candidate) -> str:
    return "-".join(f"{key}={value:g}" for key, value in candidate.items())


def flags_of(candidate: Candidate) -> list[str]:
    """The pre-training's flags for a candidate."""
    patch_size, num_stages = CELLS[candidate["cell_size"]]
    flags = {"patch_size": patch_size, "num_stages": num_stages, "learning_rate": candidate["learning_rate"]}
    flags |= {"num_train_epochs": candidate["num_train_epochs"], "warmup_epochs": candidate["num_train_epochs"] / 9}
    return [*(f"--{key}={value}" for key, value in flags.items()), "--crop_scale", str(candidate["crop_scale"]), "1.0"]


if __name__ == "__main__":
    main()
