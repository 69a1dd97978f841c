"""From unlabelled photographs to a published-style classifier in one command, on two CPU cores.

    make demo
    python -m experiments.demo --pretrain_steps 20 --finetune_steps 20 --output_dir out/short  # the same, but short

Solar cells, sound or broken: pre-train on the photographs alone, fine-tune from that and, with the same number of
labelled steps, from random weights; compare both on photographs that neither has seen. The training runs through the
commands that a user would type, which are printed.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset

from experiments.comparison import save_classifier_comparison, save_run_comparison
from experiments.scores import balanced_accuracy_gain, two_class_metrics, verdict
from experiments.solar_cells import CLASS_NAMES, defect_scores, scratch_flags, write_solar_cells
from training.comparison.launching import launch
from training.evaluation.pictures import read_metrics, series

PRETRAINED, SCRATCH = "FCMAE pre-training", "random weights"


def main() -> None:
    """Write the data, train three models, compare the two classifiers, and write and print the report."""
    options = parse_options()
    output, started = Path(options.output_dir), time.perf_counter()
    print("Writing the photographs of solar cells as parquet ...", flush=True)
    counts = write_solar_cells(output / "data")
    sizes = ["--image_size", str(options.image_size)] if options.image_size else []
    labelled = ["finetune", "--dataset_name", f"{output}/data/labelled", *sizes, *steps(options.finetune_steps)]
    runs = {
        "pretrain": ["pretrain", "--dataset_name", f"{output}/data/unlabelled", *sizes, *steps(options.pretrain_steps)],
        "classifier": [*labelled, "--model_name_or_path", f"{output}/pretrain"],
        "scratch": [*labelled, *scratch_flags()],
    }
    seconds = {
        name: launch(
            script, f"{script}_demo", *flags, "--output_dir", f"{output}/{name}", "--overwrite_output_dir=true"
        )
        for name, (script, *flags) in runs.items()
    }

    photographs = load_dataset("parquet", data_files=str(output / "data/labelled/test.parquet"), split="train")
    assert isinstance(photographs, Dataset)
    report = {"images": counts, "seconds": seconds, **compare(output, photographs)}
    report["pretraining_loss"] = loss_range(output / "pretrain")
    report["seconds"]["all"] = time.perf_counter() - started
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_report(report, output)


def parse_options() -> argparse.Namespace:
    """The demo's flags. All other settings are in its two recipes."""
    parser = argparse.ArgumentParser(prog="python -m experiments.demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output_dir", default="out/demo")
    parser.add_argument("--pretrain_steps", type=int, help="optimizer steps of pre-training (default: the recipe's)")
    parser.add_argument("--finetune_steps", type=int, help="optimizer steps of each classifier (default: the recipe's)")
    parser.add_argument("--image_size", type=int, help="side of the images in pixels (default: the recipes')")
    return parser.parse_args()


def steps(count: int | None) -> list[str]:
    """The flags for a number of steps, with a tenth of them as warm-up. Empty without a number."""
    return [] if count is None else ["--max_train_steps", str(count), "--warmup_steps", str(count // 10)]


def compare(output: Path, photographs: Dataset) -> dict[str, Any]:
    """Metrics and pictures of both classifiers on the held-out photographs, and `pipeline`'s answers for a few."""
    labels = np.array(photographs["label"])
    folders = {PRETRAINED: output / "classifier", SCRATCH: output / "scratch"}
    scores = {name: defect_scores(folder, photographs) for name, folder in folders.items()}
    save_classifier_comparison(labels, scores, CLASS_NAMES, output / "classifiers.png")
    logs = {name: folder / "metrics.jsonl" for name, folder in folders.items()}
    save_run_comparison(logs, "loss", "training loss", output / "finetuning_loss.png")
    gain = balanced_accuracy_gain(labels, scores[PRETRAINED], scores[SCRATCH])
    return {
        "classifiers": {name: two_class_metrics(labels, score) for name, score in scores.items()},
        "always_functional": two_class_metrics(labels, np.zeros(len(labels))),
        "gain": gain,
        "verdict": verdict(gain, PRETRAINED, SCRATCH),
        "predictions": [
            {"photograph": int(i), "true": CLASS_NAMES[labels[i]], "defect_score": float(scores[PRETRAINED][i])}
            for i in np.linspace(0, len(labels) - 1, 8).astype(int)
        ],
    }


def loss_range(folder: Path) -> dict[str, float]:
    """The first and the last logged loss of a run."""
    values = series(read_metrics(folder / "metrics.jsonl"), "loss")[1]
    return {"first": values[0], "last": values[-1]}


def print_report(report: dict[str, Any], output: Path) -> None:
    """Print what the demo wrote, the accuracies, and the output folder."""
    images, loss, seconds = report["images"], report["pretraining_loss"], report["seconds"]
    held_out = f"{images['test']} held out, {images['test_defective']} of them defective"
    print(f"\n{images['train']} photographs to train on; {held_out}.")
    print(f"Pre-training without labels: loss {loss['first']:.3f} -> {loss['last']:.3f}")
    print(
        f"\n{'start, on held-out images':<26}{'balanced accuracy':>18}{'accuracy':>10}{'ROC AUC':>9}   confusion matrix"
    )
    for name, row in {**report["classifiers"], "always 'functional'": report["always_functional"]}.items():
        figures = f"{row['balanced_accuracy']:>18.1%}{row['accuracy']:>10.1%}{row['roc_auc']:>9.3f}"
        print(f"{name:<26}{figures}   {row['confusion_matrix']}")
    print(f"\n{report['verdict'][0].upper()}{report['verdict'][1:]}.")
    print("Both classifiers saw the same labelled steps; the first had the pre-training on top.")
    print("\npipeline('image-classification') on held-out photographs:")
    for row in report["predictions"]:
        print(f"  no. {row['photograph']:>3}: defective {row['defect_score']:6.1%}   (true: {row['true']})")
    times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    print(f"\nTime: {times}\nMade in {output}:")
    for path in ("pretrain", "classifier", "scratch", "report.json", *pictures(output)):
        print(f"  {output / path}")


def pictures(output: Path) -> list[str]:
    """The pictures that the demo and its runs wrote, relative to the output folder."""
    return sorted(str(path.relative_to(output)) for path in [*output.glob("*.png"), *output.glob("*/*.png")])


if __name__ == "__main__":
    main()
