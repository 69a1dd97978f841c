"""The arrangements of pre-training that `experiments.payoff` tries, axis after axis, and how they are put together.

An arrangement is an arm, as flags on top of the recipe's, with a share of the time that all of an axis take. With
several crops a batch has a fraction of the images, so that each step of every arrangement has 64 crops.

crops: how much of an image a crop covers at least, 0.1 in the recipe; and two crops of an image without a regulariser.
targets: features of the average teacher, or of a small frozen one, beside the pixels. The frozen teacher is the model
that the pixels alone have trained in half of the time; its student has the other half.
regulariser: SIGReg on pooled features of several crops, beside the pixels (LeJEPA, arXiv 2511.08544).
masks: cell size and the share that is hidden, together; the recipe has cells of 32 pixels, 0.6 of them hidden.
"""

from dataclasses import dataclass
from pathlib import Path

from experiments.arms import BATCH_SIZE, TEACHER, UNTRAINED, Arm

PIXELS, HALF = "pixels", "pixels, half of the time"
FEATURES = ("--target_type=pixel+feature",)
SIGREG = ("--sigreg_weight=0.05",)
CELLS_OF_16 = ("--patch_size=4", "--num_stages=3")


@dataclass(frozen=True)
class Arrangement:
    """A way to pre-train.

    share: of the time of the axis.
    teacher: the arrangement whose model is the frozen teacher.
    """

    arm: Arm
    share: float = 1.0
    teacher: str | None = None

    def flags(self, teacher_folder: Path | None = None) -> tuple[str, ...]:
        """Those of pre-training, with the folder of the teacher if there is one."""
        return self.arm.flags if self.teacher is None else (*self.arm.flags, f"--teacher_name_or_path={teacher_folder}")


def crops(count: int) -> tuple[str, ...]:
    """So many crops of each image, 64 in a step."""
    return f"--num_crops={count}", f"--per_device_train_batch_size={BATCH_SIZE // count}"


def changed(*flags: str) -> Arrangement:
    """An arrangement with other settings of pre-training."""
    return Arrangement(Arm(pretraining=flags))


Arrangements = dict[str, Arrangement]
REFERENCE, COMBINED, LENGTH = "reference", "combined", "length"
# By axis. The regulariser stands after the crops: put together, its number of crops counts.
AXES: dict[str, Arrangements] = {
    "crops": {
        "crops of 0.3 and more": changed("--crop_scale", "0.3", "1.0"),
        "two crops of an image": changed(*crops(2)),
    },
    "targets": {
        "average teacher": changed(*TEACHER),
        "frozen teacher": Arrangement(Arm(pretraining=FEATURES), share=0.5, teacher=HALF),
    },
    "regulariser": {
        "SIGReg, visible cells": changed(*crops(2), *SIGREG),
        "SIGReg, all cells": changed(*crops(2), *SIGREG, "--sigreg_cells=all"),
        "SIGReg, all cells, 5 times the weight": changed(*crops(2), "--sigreg_weight=0.25", "--sigreg_cells=all"),
        "SIGReg, all cells, four crops": changed(*crops(4), *SIGREG, "--sigreg_cells=all"),
    },
    "masks": {
        "cells of 32, 0.4 hidden": changed("--mask_ratio=0.4"),
        "cells of 32, 0.75 hidden": changed("--mask_ratio=0.75"),
        "cells of 16, 0.6 hidden": Arrangement(Arm(CELLS_OF_16)),
        "cells of 16, 0.75 hidden": Arrangement(Arm(CELLS_OF_16, ("--mask_ratio=0.75",))),
    },
}
KNOWN: Arrangements = {PIXELS: Arrangement(Arm()), HALF: Arrangement(Arm(), share=0.5)}
KNOWN |= {name: found for axis in AXES.values() for name, found in axis.items()}
PARTS = (REFERENCE, *AXES, COMBINED, LENGTH)
# Random weights of each shape that is tried: the part that has them, and an arrangement of their shape.
UNTRAINED_16 = f"{UNTRAINED}, cells of 16"
SHAPES = {UNTRAINED: (REFERENCE, PIXELS), UNTRAINED_16: ("masks", "cells of 16, 0.6 hidden")}


def best_of_each(scores: dict[str, float]) -> list[str]:
    """The best arrangement of each axis, of those that have a score, where it is above that of the pixels alone."""
    best = []
    for axis in AXES.values():
        tried = {name: scores[name] for name in axis if name in scores}
        name = max(tried, key=lambda name: tried[name], default=PIXELS)
        if tried and tried[name] > scores[PIXELS]:
            best.append(name)
    return best


def combine(names: list[str]) -> Arrangement:
    """Arrangements of different axes in one. Of a flag that several have, that of the last axis counts: it is given
    last.
    """
    found = [KNOWN[name] for name in names]
    model = tuple(flag for each in found for flag in each.arm.model)
    pretraining = tuple(flag for each in found for flag in each.arm.pretraining or ())
    teachers = [each.teacher for each in found if each.teacher is not None]
    share = min([each.share for each in found], default=1.0)
    return Arrangement(Arm(model, pretraining), share, next(iter(teachers), None))
