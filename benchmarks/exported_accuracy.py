"""What float16, bfloat16 and int8 files cost a trained classifier in accuracy, and which layers cost it.

    python -m benchmarks.exported_accuracy
    python -m benchmarks.exported_accuracy --formats onnx --epochs 2 --folder out/short

Classifiers learn from random weights which of 43 photographs a crop of 96 x 96 pixels is cut from
(benchmarks/shared/trained.py). Each file is calibrated with 100 of the training crops where it is int8, and answers the
held-out crops, by the commands that a user types: finetune.py and `conversion.export`. What is not installed, or what
the processor lacks, is left out. A classifier that is in the folder already is not trained anew.
"""

from pathlib import Path
from typing import Any

from benchmarks.shared.exported import can_run
from benchmarks.shared.measure import Row, parse_arguments, report
from benchmarks.shared.trained import train_classifier, write_crops
from conversion.export import export
from conversion.exporting.choices import LAYERS
from conversion.exporting.formats import FORMATS
from conversion.exporting.record import Record

HALF = {"onnx": ["float16"], "openvino": ["float16", "bfloat16"]}


def main() -> None:
    args = parse_arguments(
        str(__doc__),
        sizes=["atto", "tiny", "base"],
        layers_of=["atto"],
        formats=list(HALF),
        epochs=10,
        folder="out/exported",
    )
    folder, rows = Path(args.folder), []
    for size in args.sizes:
        model = train_classifier(size, folder, args.epochs)
        for format in args.formats:
            found = measure(model, folder, format, [each for each in HALF[format] if can_run(format, each)], None)
            if can_run(format, "int8"):
                every: list[list[str]] = [[], *([layer] for layer in LAYERS)]
                for layers in every if size in args.layers_of else [list(FORMATS[format].float_layers)]:
                    found += measure(model, folder, format, ["int8"], layers)
            rows += [{"size": size, **row} for row in found]
    report(rows, args.output)


def measure(model: Path, folder: Path, format: str, dtypes: list[str], layers: list[str] | None) -> list[Row]:
    """A row for each file. layers: those that int8 leaves in float32; None of other data types."""
    if not dtypes:
        return []
    images, quantised = write_crops(folder), dict[str, Any]()
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
