"""What FCMAE pre-training is worth when labels are few: solar cells, sound or broken, at 2 % to 100 % of the labels.

    make study
    python -m experiments.label_efficiency --fractions 0.1 1 --seeds 0 --output_dir out/study_short

The study compares fine-tuning from FCMAE and from random weights, and nearest neighbours and a linear probe on the
frozen features of both. A logistic regression on pixel statistics shows how hard the task is. All methods get the same
labelled images, which are drawn anew for each seed. All results are balanced accuracies on photographs that were not
used to train anything or to choose a setting. After a stop, the same command resumes the study.
"""

import argparse
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from datasets import Dataset, load_dataset
from sklearn.metrics import balanced_accuracy_score
from transformers import AutoConfig, pipeline

import hf_convnextv2  # noqa: F401  Auto classes load its models then
from conversion.files import write_json
from experiments.solar_cells import CLASS_NAMES, normalization_flags, scratch_flags, write_solar_cells
from training.comparison import runs
from training.comparison.drawing import draw, finetuning_steps
from training.comparison.frozen import PASSES, PROBE, Features, frozen_answers, pixel_statistics
from training.comparison.frozen import features_of as features_of_model
from training.comparison.launching import is_finished, launch
from training.comparison.records import keep_apart
from training.comparison.subsets import write_subset
from training.comparison.summary import Scores, case_name, save_plot, summarise, table
from training.settings.model import ModelSettings

RECIPE = "pretrain_small_images"
FINETUNED, SCRATCH, PIXELS = "fine-tuned from FCMAE", "fine-tuned from random weights", "statistics of the pixels"


def main() -> None:
    """Pre-train once, run every method for each share of the labels and each seed, write table, plot and results."""
    options = parse_options()
    output = Path(options.output_dir)
    if not (output / "data/labelled/test.parquet").is_file():
        write_solar_cells(output / "data")
    photographs = {split: photographs_of(output, split) for split in ("train", "test")}
    keep_apart(output, {"pretrain_epochs": options.pretrain_epochs})
    epochs, length = [], options.pretrain_epochs
    if length is not None:
        epochs = [f"--num_train_epochs={length}", f"--warmup_epochs={length / 9}"]  # of the recipe's 27, 3
    pretrained = pretrain(output, output / "pretrain", [*normalization_flags(), *epochs])
    models = {"FCMAE": pretrained, "random weights": save_untrained(pretrained, output / "untrained")}
    features: dict[str, Features] = {name: features_of(folder, photographs) for name, folder in models.items()}
    features[PIXELS] = {split: pixel_statistics(part) for split, part in photographs.items()}
    scores: Scores = {}

    def measure(case: tuple[float, int]) -> dict[str, float]:
        share, seed = case
        chosen = draw(photographs["train"]["label"], share, seed)
        subset = write_subset(output, photographs["train"], chosen, case_name(*case))
        frozen = {name: frozen_scores(splits, chosen, seed) for name, splits in features.items()}
        found = {PIXELS: frozen.pop(PIXELS)[PROBE]}
        found |= {f"{method}, {name}": value for name, row in frozen.items() for method, value in row.items()}
        for name, flags in ((FINETUNED, [f"--model_name_or_path={models['FCMAE']}"]), (SCRATCH, scratch_flags(RECIPE))):
            found[name] = finetune(subset, photographs["test"], name, seed, flags, options.jobs)
        return found

    cases = [(share, seed) for share in options.fractions for seed in options.seeds]
    with ThreadPoolExecutor(options.jobs) as pool:
        for (share, seed), found in zip(cases, pool.map(measure, cases), strict=True):
            for name, value in found.items():
                scores.setdefault(name, {})[case_name(share, seed)] = value
            write_json(output / "label_efficiency.json", scores)
    summary = summarise(scores, options.fractions, options.seeds)
    save_plot(summary, output / "label_efficiency.png", len(CLASS_NAMES))
    print(table(summary))


def parse_options() -> argparse.Namespace:
    """The study's flags. All other settings are in the demo's recipes."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.label_efficiency", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--output_dir", default="out/study")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.25, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="classifiers that are trained at a time (default: 1)")
    parser.add_argument("--pretrain_epochs", type=float, help="epochs of pre-training (default: the recipe's)")
    return parser.parse_args()


def photographs_of(output: Path, split: str) -> Dataset:
    """The labelled photographs of a split."""
    part = load_dataset("parquet", data_files=str(output / f"data/labelled/{split}.parquet"), split="train")
    assert isinstance(part, Dataset)
    return part


def pretrain(output: Path, folder: Path, flags: Sequence[str], jobs: int = 1) -> Path:
    """Pre-train a model on all training photographs, without labels: FCMAE, unless the flags say otherwise."""
    if not is_finished(folder):
        run = [f"--dataset_name={output}/data/unlabelled", f"--output_dir={folder}", "--checkpointing_steps=200"]
        launch("pretrain", RECIPE, *run, "--resume_from_checkpoint=latest", *flags, at_a_time=jobs)
    return folder


def save_untrained(pretrained: Path, folder: Path, seed: int = 0) -> Path:
    """The same model at initial weights."""
    runs.save_untrained(AutoConfig.from_pretrained(pretrained), folder, seed)
    shutil.copy(pretrained / "preprocessor_config.json", folder)
    return folder


def features_of(folder: Path, photographs: dict[str, Dataset]) -> Features:
    """The frozen features and the labels of both splits."""
    return features_of_model(ModelSettings(model_name_or_path=str(folder)), photographs)


def frozen_scores(splits: Features, chosen: np.ndarray, seed: int) -> dict[str, float]:
    """Balanced accuracies of the methods without fine-tuning, fitted on the labels of the chosen images."""
    labels = splits["test"][1]
    return {method: score(labels, found) for method, found in frozen_answers(splits, chosen, seed).items()}


def score(labels: Any, predicted: Any) -> float:
    return float(balanced_accuracy_score(labels, predicted))


def finetune(subset: Path, test: Dataset, name: str, seed: int, start: Sequence[str], jobs: int) -> float:
    """The balanced accuracy of a classifier trained on a subset, for a number of steps that grows with its size."""
    folder = subset.parents[1] / "runs" / f"{subset.name}-{name.replace(' ', '_')}"
    if not is_finished(folder):
        steps = finetuning_steps(parquet.read_metadata(subset / "train.parquet").num_rows)  # all 1,968: as the recipe
        flags = [f"--dataset_name={subset}", f"--output_dir={folder}", f"--seed={seed}", f"--max_train_steps={steps}"]
        flags += [f"--warmup_steps={steps // 8}", f"--eval_steps={steps}", "--resume_from_checkpoint=latest"]
        launch("finetune", "finetune_demo", *start, *flags, at_a_time=jobs)
    return score(test["label"], predicted_labels(folder, test))


def predicted_labels(folder: Path, photographs: Dataset) -> list[int]:
    """The labels that `pipeline` predicts with the folder; a ConvNeXt V2 is loaded by Transformers' own class."""
    with PASSES:
        classifier: Any = pipeline("image-classification", model=str(folder), device="cpu")
    answers = classifier(list(photographs["image"]), batch_size=32, top_k=1)
    return [classifier.model.config.label2id[row[0]["label"]] for row in answers]


if __name__ == "__main__":
    main()
