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
from statistics import mean, stdev
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset, load_dataset
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining, pipeline

import hf_convnextv2  # noqa: F401  Auto classes load its models then
from conversion.files import read_json, write_json
from experiments.comparison import save_label_efficiency
from experiments.launching import launch
from experiments.solar_cells import normalization_flags, scratch_flags, write_solar_cells
from training.data.problems import labelled_samples
from training.data.samples import eval_loader
from training.data.transforms import EvaluationTransform
from training.evaluation.features import extract_features, knn_scores, linear_probe_scores
from training.settings.data import ValidateDataSettings

RECIPE = "pretrain_small_images"
FINETUNED, SCRATCH, PIXELS = "fine-tuned from FCMAE", "fine-tuned from random weights", "statistics of the pixels"
PROBE, NEIGHBOURS = "linear probe", "20 nearest neighbours"
Features = dict[str, tuple[Tensor, Tensor]]  # by split: features (N, C) and labels (N,)
Scores = dict[str, dict[str, float]]  # by method, then by share of the labels and seed


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
        subset = write_subset(output, photographs["train"], chosen, f"{share:g}-{seed}")
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
                scores.setdefault(name, {})[f"{share:g}-{seed}"] = value
            write_json(output / "label_efficiency.json", scores)
    summary = summarise(scores, options.fractions, options.seeds)
    save_label_efficiency(summary, output / "label_efficiency.png")
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


def keep_apart(output: Path, settings: dict[str, Any]) -> None:
    """Raise if the folder holds a study with other settings of pre-training: its models would be reused."""
    started = read_json(output / "study.json")
    if started and started != settings:
        raise SystemExit(f"`output_dir` (={output}) holds a study of {started}. Give this one a folder of its own.")
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "study.json", settings)


def photographs_of(output: Path, split: str) -> Dataset:
    """The labelled photographs of a split."""
    part = load_dataset("parquet", data_files=str(output / f"data/labelled/{split}.parquet"), split="train")
    assert isinstance(part, Dataset)
    return part


def pretrain(output: Path, folder: Path, flags: Sequence[str], jobs: int = 1) -> Path:
    """Pre-train a model on all training photographs, without labels: FCMAE, unless the flags say otherwise."""
    if not (folder / "model.safetensors").is_file():
        run = [f"--dataset_name={output}/data/unlabelled", f"--output_dir={folder}", "--checkpointing_steps=200"]
        launch("pretrain", RECIPE, *run, "--resume_from_checkpoint=latest", *flags, at_a_time=jobs)
    return folder


def save_untrained(pretrained: Path, folder: Path, seed: int = 0) -> Path:
    """The same model at initial weights."""
    set_seed(seed)
    config: Any = AutoConfig.from_pretrained(pretrained)
    AutoModelForPreTraining.from_config(config).save_pretrained(folder)
    shutil.copy(pretrained / "preprocessor_config.json", folder)
    return folder


def features_of(folder: Path, photographs: dict[str, Dataset]) -> Features:
    """The frozen features and the labels of both splits."""
    model = AutoModel.from_pretrained(folder)
    model.config.id2label = dict(enumerate(photographs["train"].features["label"].names))
    transform = EvaluationTransform(AutoImageProcessor.from_pretrained(folder))
    data = ValidateDataSettings(dataset_name="unused", num_workers=0)
    found = {}
    for split, part in photographs.items():
        part = part.cast_column("image", part.features["image"].__class__(decode=False))
        loader = eval_loader(part, labelled_samples(data, part, model.config, transform), data)
        found[split] = extract_features(Accelerator(), model, loader)
    return found


def pixel_statistics(photographs: Dataset) -> tuple[Tensor, Tensor]:
    """Mean, deviation and histogram of each photograph's brightness, and the labels."""
    pixels = [np.asarray(picture.convert("L")) / 255 for picture in photographs["image"]]
    rows = [[p.mean(), p.std(), *np.histogram(p, bins=16, range=(0, 1), density=True)[0]] for p in pixels]
    return Tensor(np.array(rows)), Tensor(photographs["label"]).long()


def draw(labels: Sequence[int], share: float, seed: int) -> np.ndarray:
    """Draw the indices of a share of the images, with the same share of each class."""
    everything = np.arange(len(labels))
    if share == 1:
        return everything
    return np.asarray(train_test_split(everything, train_size=share, random_state=seed, stratify=labels)[0])


def frozen_scores(splits: Features, chosen: np.ndarray, seed: int) -> dict[str, float]:
    """Balanced accuracies of the methods without fine-tuning, fitted on the labels of the chosen images."""
    (train, train_labels), (test, labels) = splits["train"], splits["test"]
    known = train[chosen], train_labels[chosen], test, int(train_labels.max()) + 1
    scores = {PROBE: linear_probe_scores(*known, strength=1.0, seed=seed), NEIGHBOURS: knn_scores(*known, 20, 0.07)}
    return {method: score(labels, found.argmax(dim=1)) for method, found in scores.items()}


def score(labels: Any, predicted: Any) -> float:
    return float(balanced_accuracy_score(labels, predicted))


def write_subset(output: Path, train: Dataset, chosen: np.ndarray, name: str) -> Path:
    """Write a data set of the chosen images for the fine-tuning script."""
    folder = output / "subsets" / name
    if not (folder / "train.parquet").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        train.select(chosen).to_parquet(folder / "train.parquet")
        shutil.copy(output / "data/labelled/test.parquet", folder)
    return folder


def finetune(subset: Path, test: Dataset, name: str, seed: int, start: Sequence[str], jobs: int) -> float:
    """The balanced accuracy of a classifier trained on a subset, for a number of steps that grows with its size."""
    folder = subset.parents[1] / "runs" / f"{subset.name}-{name.replace(' ', '_')}"
    if not (folder / "model.safetensors").is_file():
        count = parquet.read_metadata(subset / "train.parquet").num_rows
        steps = int(min(492, 60 + 10 * count**0.5))  # all 1,968: as the recipe; 39: 122 steps
        flags = [f"--dataset_name={subset}", f"--output_dir={folder}", f"--seed={seed}", f"--max_train_steps={steps}"]
        flags += [f"--warmup_steps={steps // 8}", f"--eval_steps={steps}", "--resume_from_checkpoint=latest"]
        launch("finetune", "finetune_demo", *start, *flags, at_a_time=jobs)
    return score(test["label"], predicted_labels(folder, test))


def predicted_labels(folder: Path, photographs: Dataset) -> list[int]:
    """The labels that `pipeline` predicts with the folder; a ConvNeXt V2 is loaded by Transformers' own class."""
    classifier: Any = pipeline("image-classification", model=str(folder), device="cpu")
    answers = classifier(list(photographs["image"]), batch_size=32, top_k=1)
    return [classifier.model.config.label2id[row[0]["label"]] for row in answers]


def summarise(
    scores: Scores, shares: Sequence[float], seeds: Sequence[int]
) -> dict[str, list[tuple[float, float, float]]]:
    """Share of the labels, mean and standard deviation over the seeds, of every method."""
    summary = {}
    for name, found in scores.items():
        rows = [(share, [found[f"{share:g}-{seed}"] for seed in seeds]) for share in shares]
        summary[name] = [(share, mean(row), stdev(row) if len(row) > 1 else 0.0) for share, row in rows]
    return summary


def table(summary: dict[str, list[tuple[float, float, float]]]) -> str:
    """Balanced accuracies in %, as Markdown."""
    shares = [f"{share:.0%}" for share, _, _ in next(iter(summary.values()))]
    lines = ["| method | " + " | ".join(shares) + " |", "|---|" + "---:|" * len(shares)]
    for name, row in summary.items():
        cells = [f"{100 * middle:.1f} ± {100 * spread:.1f}" for _, middle, spread in row]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
