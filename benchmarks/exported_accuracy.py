"""What float16, bfloat16 and int8 files cost a trained classifier in accuracy, and which layers cost it.

    python -m benchmarks.exported_accuracy
    python -m benchmarks.exported_accuracy --formats onnx --epochs 2 --folder out/short

An atto classifier learns from random weights which of 43 photographs a crop of 96 x 96 pixels is cut from
(experiments/natural_photographs.py). Each file is calibrated with 100 of the training crops where it is int8, and
answers the held-out crops, by the commands that a user types: finetune.py and `conversion.export`. What is not
installed, or what the processor lacks, is left out. A classifier that is in the folder already is not trained anew.
"""

from pathlib import Path
from typing import Any

from datasets import load_dataset

from benchmarks.shared.exported import can_run
from benchmarks.shared.measure import Row, parse_arguments, report
from conversion.export import export
from conversion.exporting.choices import LAYERS
from conversion.exporting.record import Record
from experiments.label_efficiency import RECIPE
from experiments.natural_photographs import CROP, write_natural_photographs
from experiments.solar_cells import scratch_flags
from training.comparison.launching import is_finished, launch

HALF = {"onnx": ["float16"], "openvino": ["float16", "bfloat16"]}


def main() -> None:
    args = parse_arguments(str(__doc__), formats=list(HALF), epochs=10, folder="out/exported_accuracy")
    folder = Path(args.folder)
    images, model = folder / "images", folder / "classifier"
    if not images.is_dir():
        write_images(folder, images)
    if not is_finished(model):
        run = [
            f"--image_size={CROP}",
            f"--dataset_name={images}",
            f"--output_dir={model}",
            "--overwrite_output_dir=true",
        ]
        run += [f"--num_train_epochs={args.epochs}", f"--warmup_epochs={args.epochs / 10}"]
        launch("finetune", "finetune_small_images", *scratch_flags(RECIPE), *run)
    rows: list[Row] = []
    for format in args.formats:
        rows += measure(model, images, folder, format, [each for each in HALF[format] if can_run(format, each)], None)
        if can_run(format, "int8"):
            kept: list[list[str]] = [[], *([layer] for layer in LAYERS)]
            for layers in kept:
                rows += measure(model, images, folder, format, ["int8"], layers)
    report(rows, args.output)


def write_images(folder: Path, images: Path) -> None:
    """The crops as files, `images/{train,test}/PHOTOGRAPH/1.png`."""
    write_natural_photographs(folder)
    partial = images.with_name(f"{images.name}.partial")
    for split in ("train", "test"):
        labelled: Any = load_dataset("parquet", data_files=str(folder / f"labelled/{split}.parquet"), split="train")
        names = labelled.features["label"].names
        for number, row in enumerate(labelled):
            place = partial / split / names[row["label"]]
            place.mkdir(parents=True, exist_ok=True)
            row["image"].save(place / f"{number}.png")
    partial.rename(images)


def measure(
    model: Path, images: Path, folder: Path, format: str, dtypes: list[str], layers: list[str] | None
) -> list[Row]:
    """A row for each file. layers: those that int8 leaves in float32; None of other data types."""
    if not dtypes:
        return []
    quantised: dict[str, Any] = {}
    if layers is not None:
        quantised = {"calibration_images": images / "train", "float_layers": layers}
    options: dict[str, Any] = {"dtype": dtypes, "validation_dataset": images, "overwrite": True, **quantised}
    written = Record.read(export(str(model), folder / "exported", format=format, **options))
    rows: list[Row] = []
    for dtype, file in written.files.items():
        assert file.measured is not None
        row: Row = {"format": format, "dtype": dtype, "layers in float32": ", ".join(layers or [])}
        row |= {"MB": file.size / 1e6, "images": file.measured["images"], "accuracy": file.measured["accuracy"]}
        row["accuracy of float32"] = file.measured["accuracy_of_float32"]
        rows.append(row | {"same class": file.measured["agreement"]})
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
