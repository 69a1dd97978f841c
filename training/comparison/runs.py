"""The runs of a comparison: pre-training for each seed, then answers for each start, share of the labels and seed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from accelerate.utils import set_seed
from transformers import AutoModelForPreTraining, PreTrainedConfig

from hf_convnextv2.images import DEFAULT_BACKGROUND
from training.comparison import frozen
from training.comparison.drawing import draw, finetuning_steps
from training.comparison.images import Labelled
from training.comparison.launching import is_finished
from training.comparison.records import Times, store_answers, stored_answers
from training.comparison.runner import Runner
from training.comparison.starts import Start, flags_of, recipe_of
from training.comparison.subsets import write_subset
from training.comparison.summary import FINETUNED, case_name
from training.models.creation import create_processor, load_arguments
from training.models.families import chosen_family
from training.settings.comparison import FINE_TUNING, NEIGHBOURS, PROBE, CompareSettings
from training.settings.model import ModelSettings

# The methods' names in tables, by the setting `methods`.
METHODS = {FINE_TUNING: FINETUNED, PROBE: frozen.PROBE, NEIGHBOURS: frozen.NEIGHBOURS}
PIXELS = "pixels"  # in place of a start
WARMUP = 9  # of so many epochs, one


class Case(NamedTuple):
    """A draw of labels, and what is trained on it."""

    share: float
    seed: int

    def __str__(self) -> str:
        return case_name(self.share, self.seed)


@dataclass
class Comparison:
    """The folder of a comparison, and what runs in it."""

    settings: CompareSettings
    images: Labelled
    starts: Sequence[Start]
    output: Path
    times: Times
    lock: int | None = None
    computing: Any = field(default_factory=Lock)  # one thread of this process at a time; runs go on beside it
    features: dict[str, frozen.Features] = field(default_factory=dict)
    runner: Runner = field(init=False)

    def __post_init__(self) -> None:
        self.runner = Runner(self.output, self.times, self.settings.run.jobs, self.lock)

    def classifier_folder(self, start: Start, case: Case) -> Path:
        """Where a fine-tuned classifier is."""
        return self.output / "runs" / f"{case}-{start.key}"

    @property
    def cases(self) -> list[Case]:
        """All draws of labels."""
        return [Case(share, seed) for share in self.settings.budget.label_shares for seed in self.settings.budget.seeds]

    def run(self) -> None:
        """Do all that is not done yet: first every pre-training, then every case."""
        seeds = self.settings.budget.seeds
        if set(self.settings.starts.methods) - {FINE_TUNING}:
            for start in (start for start in self.starts if start.is_new):
                for seed in seeds:  # one after the other: a seed is that of the whole process
                    self.save_untrained(start, seed)
        trained = [(start, seed) for seed in seeds for start in self.starts if start.pretraining is not None]
        self.runner.side_by_side(partial(self.pretrain, start, seed) for start, seed in trained)
        answers = [partial(self.answer, start, case) for case in self.cases for start in self.starts]
        self.runner.side_by_side([*answers, *(partial(self.answer_by_pixels, case) for case in self.cases)])

    def save_untrained(self, start: Start, seed: int) -> None:
        """Write random weights, for their frozen features."""
        folder = self.folder_of(start, seed)
        if not (folder / "preprocessor_config.json").is_file():
            config = chosen_family(start.model).pretraining_config
            config = config.from_size(start.model.model_size, **load_arguments(start.model))
            save_untrained(config, folder, seed)
            create_processor(start.model, self.settings.data.background, config).save_pretrained(folder)

    def pretrain(self, start: Start, seed: int) -> None:
        """Pre-train a start, unless this is done."""
        folder = self.folder_of(start, seed)
        if not is_finished(folder):
            data = unlabelled_flags(self.settings, self.output / "data/unlabelled")
            recipe = recipe_of(self.settings, "pretrain")
            self.runner.launch("pretrain", recipe, folder, *data, *pretraining_flags(self.settings, start, seed))

    def answer(self, start: Start, case: Case) -> None:
        """Let a start answer the held-out images, by every method that has not done so."""
        file = self.answers_file(start.key, case)
        found = stored_answers(file)
        methods = [method for method in self.settings.starts.methods if METHODS[method] not in found]
        if not methods:
            return
        if set(methods) - {FINE_TUNING}:
            with self.computing:
                chosen = draw(self.images.train["label"][:], *case)
                found |= frozen.frozen_answers(self.features_of(start, case.seed), chosen, case.seed)
                store_answers(file, found)
        if FINE_TUNING in methods:
            folder = self.finetune(start, case)
            with self.computing:
                workers = self.settings.data.num_workers
                found[FINETUNED] = frozen.predicted_classes(str(folder), self.images.test, workers)
                store_answers(file, found)

    def answers_file(self, key: str, case: Case) -> Path:
        """Where the answers of a start are kept."""
        return self.output / "answers" / key / f"{case}.json"

    def answers_of(self, key: str, case: Case) -> dict[str, np.ndarray]:
        """The predicted classes `(N,)` of a start, by the method's name in tables."""
        return stored_answers(self.answers_file(key, case))

    def answer_by_pixels(self, case: Case) -> None:
        """Let a logistic regression on statistics of the pixels answer."""
        file = self.answers_file(PIXELS, case)
        if stored_answers(file):
            return
        with self.computing:
            if PIXELS not in self.features:
                parts = {"train": self.images.train, "test": self.images.test}
                channels = self.settings.starts.num_channels
                background = self.settings.data.background or DEFAULT_BACKGROUND
                self.features[PIXELS] = {
                    split: frozen.pixel_statistics(part, channels, background) for split, part in parts.items()
                }
            chosen = draw(self.images.train["label"][:], *case)
            store_answers(file, {PIXELS: frozen.pixel_answers(self.features[PIXELS], chosen, case.seed)})

    def finetune(self, start: Start, case: Case) -> Path:
        """The folder of a classifier trained on a draw of labels."""
        folder = self.classifier_folder(start, case)
        if not is_finished(folder):
            chosen = draw(self.images.train["label"][:], *case)
            with self.computing:
                subset = write_subset(self.output, self.images.train, chosen, str(case))
            weights = [] if start.pretraining is None else [f"--model_name_or_path={self.folder_of(start, case.seed)}"]
            flags = finetuning_flags(self.settings, start, case.seed, len(chosen))
            recipe = recipe_of(self.settings, "finetune")
            self.runner.launch("finetune", recipe, folder, f"--dataset_name={subset}", *weights, *flags)
        return folder

    def seconds_of(self, folders: Iterable[Path]) -> list[float]:
        """The times of those runs that there were."""
        names = (folder.relative_to(self.output).as_posix() for folder in folders if folder.is_relative_to(self.output))
        return [self.times.seconds[name] for name in names if name in self.times.seconds]

    def features_of(self, start: Start, seed: int) -> frozen.Features:
        """The frozen features of a start; stored weights have the same ones for all seeds."""
        folder = self.folder_of(start, seed)
        if str(folder) not in self.features:
            is_stored = start.pretraining is None and not start.is_new
            model = start.model if is_stored else ModelSettings(model_name_or_path=str(folder))
            parts = {"train": self.images.train, "test": self.images.test}
            self.features[str(folder)] = frozen.features_of(model, parts, self.settings.data.num_workers)
        return self.features[str(folder)]

    def folder_of(self, start: Start, seed: int) -> Path:
        """Where the weights of a start are; those of stored weights as they are have no folder here."""
        if start.pretraining is not None:
            return self.output / "pretrain" / f"{start.key}-{seed}"
        return self.output / "untrained" / (f"{start.key}-{seed}" if start.is_new else start.key)


def save_untrained(config: PreTrainedConfig, folder: Path, seed: int) -> None:
    """Write a pre-training model at initial weights."""
    set_seed(seed)
    AutoModelForPreTraining.from_config(config).save_pretrained(folder)


def unlabelled_flags(settings: CompareSettings, own: Path) -> tuple[str, ...]:
    """The flags of the images to pre-train on: `own` ones, which have been checked, or those of another data set."""
    data = settings.data
    if data.unlabelled_dataset_name is None:
        return (f"--dataset_name={own}", "--image_column=image", "--check_images=false")
    values = {"dataset_name": data.unlabelled_dataset_name, "image_column": data.image_column}
    return flags_of({**values, "skip_bad_images": str(data.skip_bad_images).lower()})


def pretraining_flags(settings: CompareSettings, start: Start, seed: int) -> tuple[str, ...]:
    """The flags of pre-training, without its images and its folder."""
    epochs: dict[str, Any] = {}
    if (length := settings.budget.pretrain_epochs) is not None:
        epochs = {"num_train_epochs": length, "warmup_epochs": length / WARMUP}
    return (*(start.pretraining or ()), *flags_of({"seed": seed, **epochs}), *common_flags(settings))


def finetuning_flags(settings: CompareSettings, start: Start, seed: int, num_images: int) -> tuple[str, ...]:
    """The flags of fine-tuning, without its images, its folder and weights from pre-training."""
    steps = settings.budget.finetune_steps or finetuning_steps(num_images)
    length = {"max_train_steps": steps, "warmup_steps": steps // 8, "eval_steps": steps}
    columns = {"image_column": "image", "label_column": "label", "train_split": "train", "eval_split": "test"}
    checked = {"check_images": "false"}  # all of them were, at the start
    return (*start.finetuning, *flags_of({"seed": seed, **length, **columns, **checked}), *common_flags(settings))


def common_flags(settings: CompareSettings) -> tuple[str, ...]:
    """The flags of both scripts."""
    data = settings.data
    values = {"num_workers": data.num_workers, "with_tracking": "false"}
    if data.background is not None:
        values["background"] = data.background
    return flags_of(values)


def by_seed(comparison: Comparison, start: Start, method: str, share: float) -> np.ndarray:
    """The predicted classes `(S, N)` of a start by a method (its name in tables), a row for each seed."""
    seeds = comparison.settings.budget.seeds
    return np.stack([comparison.answers_of(start.key, Case(share, seed))[method] for seed in seeds])
