"""What FCMAE pre-training is worth in detection: crowns of trees from the air (boxes), or nuclei of cells (masks).

    make demo-dense
    python -m experiments.detection trees
    python -m experiments.detection cells --shares 1 --seeds 0 --steps 20 --pretrain_epochs 2 --output_dir out/short

Pre-trains on the training tiles without their objects. Then it trains a detector from that and from random weights,
with a tenth and with all of the labelled tiles and the same number of steps, and evaluates on a picture or on an area
of the frames that was held out. A method without a network shows how hard the task is. After a stop, the same command
does what is missing.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from conversion.files import write_json
from experiments.cells import write_cells
from experiments.crown_peaks import crown_peaks
from experiments.dense import PRETRAINED, SCRATCH, Scores, add_options, print_table, train_all
from experiments.tree_crowns import write_tree_crowns
from experiments.watershed import watershed_nuclei

PRETRAIN_SIZE = 128  # pixels, of crops of a tile
# Tiles of 200 pixels are enlarged, as many objects are small. No scale is below 1, so that nothing is padded: global
# response normalisation would see the padding.
DETECTOR = [
    *("--image_size", "256", "--scale_range", "1.0", "1.5", "--eval_split", "test"),
    *("--decoder_hidden_size", "64", "--box_head_size", "256", "--anchor_sizes", "16", "32", "64", "128", "256"),
]


class Task(NamedTuple):
    """What differs between the tasks."""

    write: Callable[[Path], None]
    architecture: str
    figures: dict[str, str]  # title and name in `all_results.json`
    control: str
    control_figures: Callable[[Path], dict[str, float]]  # of a method without a network
    of_control: dict[str, str]  # title and name of figures of that method alone, as no score is chosen for a network
    channels: tuple[str, ...] = ()


TASKS = {
    "trees": Task(
        write=write_tree_crowns,
        architecture="faster_rcnn",
        figures={"box AP": "eval_map", "box AP at IoU .5": "eval_map_50"},
        control="peaks of a colour index",
        control_figures=crown_peaks,
        of_control={"box F1 at IoU .5": "f1_50"},
    ),
    "cells": Task(
        write=write_cells,
        architecture="mask_rcnn",
        figures={"box AP": "eval_map", "mask AP": "eval_map_mask"},
        control="Otsu's threshold and watershed",
        control_figures=watershed_nuclei,
        of_control={"mask F1 at IoU .5": "f1_50_mask"},
        channels=("--num_channels", "1"),
    ),
}


def main() -> None:
    """Write the data, pre-train, train and evaluate all cases, and print and write the tables."""
    options = parse_options()
    task, output = TASKS[options.task], Path(options.output_dir or f"out/{options.task}")
    flags = [*DETECTOR, "--architecture", task.architecture]
    trained = train_all("detect", output, task.write, PRETRAIN_SIZE, options, task.channels, *flags)
    scores: dict[str, Scores] = {title: {PRETRAINED: {}, SCRATCH: {}, task.control: {}} for title in task.figures}
    scores |= {title: {task.control: {}} for title in task.of_control}
    for case, of_starts in trained.results.items():
        results = {**of_starts, task.control: task.control_figures(trained.folders[case])}
        for title, figure in {**task.figures, **task.of_control}.items():
            for method, values in scores[title].items():
                values[str(case)] = results[method][figure]
    write_json(output / "report.json", {"tiles": trained.counts, **scores})
    for title, of_figure in scores.items():
        print_table(f"{title} on the held-out tiles", of_figure, options)


def parse_options() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(prog="python -m experiments.detection", description=str(__doc__).split("\n")[0])
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--output_dir", help="default: out/trees or out/cells")
    add_options(parser, steps=200, epochs=100)
    return parser.parse_args()


if __name__ == "__main__":
    main()
