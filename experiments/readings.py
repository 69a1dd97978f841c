"""How frozen features are read: of which stages, pooled how, whitened or not; and which reading is the best.

The maps of all stages are computed and pooled once; a reading is a choice of columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from datasets import Dataset
from transformers import AutoConfig

import hf_convnextv2  # noqa: F401  Auto classes load its models then
from experiments.label_efficiency import frozen_scores
from training.comparison.drawing import draw
from training.comparison.frozen import Features, features_of
from training.comparison.summary import case_name
from training.evaluation.whitening import whitened
from training.settings.model import ModelSettings
from training.settings.pooling import POOLINGS, ReadingSettings

STAGES = {"last stage": (-1,), "stage before": (-2,), "last two stages": (-2, -1), "all stages": None}
POOLS = (("mean",), ("max",), ("gem",), ("mean", "max"))
COMPONENTS = 64  # of whitened features
Means = dict[str, float]  # balanced accuracies by method


@dataclass(frozen=True)
class Reading:
    """A way to read frozen features; stages are counted from the end, as models differ in their number."""

    stages: str = "last stage"
    pooling: tuple[str, ...] = ("mean",)
    components: int | None = None

    @property
    def name(self) -> str:
        """As it stands in results."""
        return f"{self.stages}, {' + '.join(self.pooling)}{'' if self.components is None else ', whitened'}"

    def settings(self, num_stages: int) -> ReadingSettings:
        """The settings of an evaluation that reads so, of an encoder of so many stages."""
        stages = self.numbers(num_stages)
        return ReadingSettings(stages=stages, pooling=list(self.pooling), whitened_components=self.components)

    def numbers(self, num_stages: int) -> list[int]:
        """The stages' numbers, of which the first is 1."""
        chosen = STAGES[self.stages]
        return list(range(1, num_stages + 1)) if chosen is None else [num_stages + 1 + stage for stage in chosen]


USUAL = Reading()
READINGS = {
    reading.name: reading
    for reading in (Reading(stages, pool, n) for n in (None, COMPONENTS) for stages in STAGES for pool in POOLS)
}


@dataclass(frozen=True)
class PooledStages:
    """The features of all stages in all poolings, side by side; `widths` are the channels of each stage."""

    features: Features
    widths: Sequence[int]

    def read(self, reading: Reading) -> Features:
        """The features as a reading has them.

        Raises:
            ValueError: if they vary in fewer directions than are to be whitened.
        """
        starts = [len(POOLINGS) * sum(self.widths[:stage]) for stage in range(len(self.widths))]
        columns = torch.cat(
            [
                torch.arange(self.widths[stage - 1]) + starts[stage - 1] + POOLINGS.index(pool) * self.widths[stage - 1]
                for stage in reading.numbers(len(self.widths))
                for pool in reading.pooling
            ]
        )
        chosen = {split: (found[:, columns], labels) for split, (found, labels) in self.features.items()}
        return whitened(chosen, reading.components)


def pooled_stages(folder: Path, photographs: dict[str, Dataset]) -> PooledStages:
    """All that readings of a stored model are made of, of the images of the splits `train` and `test`."""
    widths = AutoConfig.from_pretrained(folder).hidden_sizes
    everything = ReadingSettings(stages=list(range(1, len(widths) + 1)), pooling=list(POOLINGS))
    return PooledStages(features_of(ModelSettings(model_name_or_path=str(folder)), photographs, 0, everything), widths)


def scores_of(splits: Features, shares: Sequence[float], draws: Sequence[int]) -> dict[str, Means]:
    """Balanced accuracies by share of the labels and draw, of nearest neighbours and a linear probe."""
    labels = splits["train"][1].numpy()
    cases = [(share, number) for share in shares for number in (draws if share < 1 else draws[:1])]
    return {case_name(*case): frozen_scores(splits, draw(labels, *case), case[1]) for case in cases}


def mean_scores(found: dict[str, Means]) -> Means:
    """The mean over the draws of each share, and then over the shares, by method."""
    shares = {case.rpartition("-")[0] for case in found}
    by_share = [[means for case, means in found.items() if case.rpartition("-")[0] == share] for share in shares]
    methods = next(iter(found.values()))
    return {method: mean(mean(means[method] for means in row) for row in by_share) for method in methods}


def read_every_way(stages: PooledStages, shares: Sequence[float], draws: Sequence[int]) -> dict[str, Means]:
    """The mean scores of every reading that the features allow, by its name."""
    found = {}
    for name, reading in READINGS.items():
        try:
            found[name] = mean_scores(scores_of(stages.read(reading), shares, draws))
        except ValueError as error:  # features that have collapsed are not whitened
            if "whitened_components" not in str(error):
                raise
            print(f"{name}: left out, since {error}", flush=True)
    return found


def best_reading(found: dict[str, Means]) -> str:
    """The name of the reading with the highest mean of all methods."""
    return max(found, key=lambda name: mean(found[name].values()))
