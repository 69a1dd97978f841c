"""What FCMAE pre-training is worth in semantic segmentation: the climate zone of each pixel of a satellite image.

    make demo-dense
    python -m experiments.segmentation --shares 1 --seeds 0 --steps 20 --pretrain_epochs 2 --output_dir out/short

Pre-trains on the training tiles without their zones. Then it trains UPerNet from that and from random weights, with a
tenth and with all of the labelled tiles and the same number of steps, and evaluates on other longitudes. Boosted trees
on the colour of each pixel show how hard the task is. After a stop, the same command does what is missing.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import confusion_matrix

from conversion.files import write_json
from experiments.climate_zones import NAMES, write_climate_zones
from experiments.dense import PRETRAINED, SCRATCH, Scores, add_options, print_table, train_all
from training.evaluation.segmentation import mean_figures

COLOURS = "boosted trees on colours"
PIXELS = 200_000  # that the trees are trained on
SIZE = 128  # pixels


def main() -> None:
    """Write the data, pre-train, train and evaluate all cases, and print and write the table."""
    options = parse_options()
    output = Path(options.output_dir)
    trained = train_all("segment", output, write_climate_zones, SIZE, options, (), "--image_size", str(SIZE))
    scores: Scores = {PRETRAINED: {}, SCRATCH: {}, COLOURS: {}}
    for case, results in trained.results.items():
        for method, figures in results.items():
            scores[method][str(case)] = figures["eval_mean_iou"]
        scores[COLOURS][str(case)] = colour_trees(trained.folders[case], case.seed)
    write_json(output / "report.json", {"tiles": trained.counts, "mean_iou": scores})
    print_table("mean IoU on the held-out tiles", scores, options)


def parse_options() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(prog="python -m experiments.segmentation", description=str(__doc__).split("\n")[0])
    parser.add_argument("--output_dir", default="out/segmentation")
    add_options(parser, steps=200, epochs=100)
    return parser.parse_args()


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


if __name__ == "__main__":
    main()
