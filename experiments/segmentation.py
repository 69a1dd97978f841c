"""What FCMAE pre-training is worth in semantic segmentation: the climate zone of each pixel of a satellite image.

    make demo-dense
    python -m experiments.segmentation --shares 1 --seeds 0 --steps 20 --pretrain_epochs 2 --output_dir out/short

Pre-trains on the training tiles without their zones. Then it trains UPerNet from that and from random weights, with a
tenth and with all of the labelled tiles and the same number of steps, and evaluates on other longitudes. Boosted trees
on the colour of each pixel show how hard the task is. After a stop, the same command does what is missing.
"""

import argparse
import shutil
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from PIL import Image
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import confusion_matrix

from conversion.files import read_json, write_json
from experiments.climate_zones import NAMES, write_climate_zones
from experiments.launching import launch
from training.evaluation.segmentation import mean_figures

PRETRAINED, SCRATCH, COLOURS = "from FCMAE", "from random weights", "boosted trees on colours"
PIXELS = 200_000  # that the trees are trained on
SIZE = 128  # pixels
Scores = dict[str, dict[str, float]]  # by method, then by share of the labels and seed


def main() -> None:
    """Write the data, pre-train, train and evaluate all cases, and print and write the table."""
    options = parse_options()
    output = Path(options.output_dir)
    counts = {"train": 0, "test": 0}
    if not (output / "data/labelled/id2label.json").is_file():
        print("Writing the tiles ...", flush=True)
        counts = write_climate_zones(output / "data")
        print(f"{counts['train']} tiles to train on, {counts['test']} held out.", flush=True)
    pretrain(output, options.pretrain_epochs)
    scores: Scores = {}
    for share in options.shares:
        for seed in options.seeds:
            folder = subset(output / "data/labelled", output / f"data/{share:g}-{seed}", share, seed)
            for method in (PRETRAINED, SCRATCH):
                value = segment(output, folder, method, f"{share:g}-{seed}", seed, options.steps)
                scores.setdefault(method, {})[f"{share:g}-{seed}"] = value
            scores.setdefault(COLOURS, {})[f"{share:g}-{seed}"] = colour_trees(folder, seed)
    write_json(output / "report.json", {"tiles": counts, "mean_iou": scores})
    print_table(scores, options.shares)


def parse_options() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(prog="python -m experiments.segmentation", description=str(__doc__).split("\n")[0])
    parser.add_argument("--output_dir", default="out/segmentation")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 1.0], help="of the labelled tiles")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each segmentation model")
    parser.add_argument("--pretrain_epochs", type=float, default=300)
    return parser.parse_args()


def pretrain(output: Path, epochs: float) -> None:
    """Pre-train on the training tiles; an earlier run is resumed or left as it is."""
    flags = ["--dataset_name", f"{output}/data/unlabelled", "--output_dir", f"{output}/pretrain"]
    flags += ["--image_size", str(SIZE), "--num_train_epochs", str(epochs), "--warmup_epochs", str(epochs / 9)]
    launch("pretrain", "pretrain_small_images", *flags, "--resume_from_checkpoint", "latest")


def subset(source: Path, target: Path, share: float, seed: int) -> Path:
    """A folder with all held-out tiles and a random share of the training tiles."""
    if target.is_dir():
        return target
    names = sorted(file.name for file in (source / "train/images").iterdir())
    chosen = np.random.default_rng(seed).permutation(names)[: max(2, round(share * len(names)))]
    left_out = set(names) - set(chosen)  # no held-out tile has the name of a training tile
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=lambda _, files: left_out & set(files))
    partial.rename(target)
    return target


def segment(output: Path, folder: Path, method: str, case: str, seed: int, steps: int) -> float:
    """The mean IoU of a segmentation model on the held-out tiles; an earlier run is resumed or left as it is."""
    target = output / f"{'fcmae' if method == PRETRAINED else 'scratch'}-{case}"
    flags = ["--dataset_name", str(folder), "--output_dir", str(target), "--seed", str(seed)]
    flags += ["--max_train_steps", str(steps), "--warmup_steps", str(steps // 10), "--eval_steps", str(steps)]
    if method == PRETRAINED:
        flags += ["--model_name_or_path", f"{output}/pretrain"]
    else:
        flags += ["--layer_decay", "1.0"]  # random weights need no lower rates below
    flags += ["--image_size", str(SIZE), "--resume_from_checkpoint", "latest"]
    launch("segment", "segment_small_images", *flags)
    return read_json(target / "all_results.json")["eval_mean_iou"]


def colour_trees(folder: Path, seed: int) -> float:
    """The mean IoU of boosted trees that see the colour of a pixel alone."""
    colours, classes = pixels(folder / "train")
    chosen = np.random.default_rng(seed).permutation(len(classes))[:PIXELS]
    trees = HistGradientBoostingClassifier(random_state=seed).fit(colours[chosen], classes[chosen])
    colours, classes = pixels(folder / "test")
    confusion = confusion_matrix(classes, trees.predict(colours), labels=range(len(NAMES)))
    return mean_figures(confusion)["mean_iou"]


def pixels(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The colours `(N, 3)` and classes `(N,)` of all pixels of a split."""
    files = sorted((folder / "images").iterdir())
    colours = np.concatenate([np.asarray(Image.open(file)).reshape(-1, 3) for file in files])
    classes = np.concatenate([np.asarray(Image.open(folder / "masks" / file.name)).ravel() for file in files])
    return colours, classes


def print_table(scores: Scores, shares: list[float]) -> None:
    """Print the mean and the standard deviation over the seeds, for each method and share."""
    print(
        f"\n{'mean IoU on the held-out tiles':<32}" + "".join(f"{f'{share:.0%} of the labels':>22}" for share in shares)
    )
    for method, values in scores.items():
        cells = []
        for share in shares:
            of_share = [value for case, value in values.items() if case.split("-")[0] == f"{share:g}"]
            spread = f" (sd {100 * stdev(of_share):.1f})" if len(of_share) > 1 else ""
            cells.append(f"{100 * mean(of_share):.1f} %{spread}")
        print(f"{method:<32}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
