"""Exported classifiers: how far their answers are from eager's, and how fast they are beside the peers.

    python -m benchmarks.exported --whats agreement --sizes atto tiny
    python -m benchmarks.exported --whats speed --cases atto:1 tiny:8

"agreement" has classifiers learn which of 43 photographs a crop is cut from (benchmarks/shared/trained.py), and runs
each file on 64 crops of these photographs at three sizes, in batches of 1, 3 and 8. The difference is that of the
logits, as a share of the largest; "top-1" is the share of the crops that get the class that eager in float32 gives.
"speed" has all contenders take turns, each in a process of its own, with as many threads: some keep theirs waiting for
the next call. Its weights are random. What is not installed, or what the processor lacks, is left out.
"""

from collections.abc import Callable
from functools import partial
from itertools import cycle, product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.shared.classifiers import create_model
from benchmarks.shared.exported import can_run, crops, write_classifier
from benchmarks.shared.measure import Call, Row, alternate_apart, apart, parse_arguments, report, times_as_fast
from benchmarks.shared.trained import natural_photographs, train_classifier
from conversion.exporting.formats import DTYPES, FORMATS
from hf_convnextv2 import ConvNextV2ForImageClassification

IMAGE_SIZES = ((224, 224), (320, 320), (192, 288))
BATCH_SIZES = (1, 3, 8)
CALLS = 5  # of single images, in a turn
MODELS = {
    "Transformers": ("transformers",),
    "Transformers, compiled": ("transformers", "compiled"),
    "timm": ("timm",),
    "ours": ("ours",),
    "ours, bf16": ("ours", "bf16"),
}
FILES = {
    "ONNX Runtime": ("onnx", "float32"),
    "ONNX Runtime, int8": ("onnx", "int8"),
    "OpenVINO": ("openvino", "float32"),
    "OpenVINO, bf16": ("openvino", "bfloat16"),
    "OpenVINO, int8": ("openvino", "int8"),
}


def main() -> None:
    args = parse_arguments(
        str(__doc__),
        whats=["agreement", "speed"],
        sizes=["atto", "tiny", "base"],
        formats=list(FORMATS),
        dtypes=list(DTYPES),
        images=64,
        epochs=10,
        folder="out/exported",
        cases=[f"{size}:{batch}" for size in ("atto", "tiny", "base") for batch in (1, 8)],
        image_size=224,
    )
    rows: list[Row] = []
    if "agreement" in args.whats:
        files = [each for each in product(args.formats, args.dtypes) if can_run(*each)]
        for size in args.sizes:
            trained = train_classifier(size, Path(args.folder), args.epochs)
            expected = apart(answers_of_eager, trained, args.images)
            for file in files:
                rows.append({"size": size, **apart(compare_answers, trained, *file, expected)})
                print(rows[-1], flush=True)
    agreement = list(rows)
    if "speed" in args.whats:
        for size, batch in (case.split(":") for case in args.cases):
            rows += compare_speed(size, int(batch), args.image_size, args.rounds)
            print(*rows[-len(FILES) - len(MODELS) :], sep="\n", flush=True)
    if agreement and len(rows) > len(agreement):  # two tables
        report(agreement, "")
        report(rows[len(agreement) :], "")
    report(rows, args.output)


def answers_of_eager(trained: Path, count: int) -> list[np.ndarray]:
    """The logits `(count, classes)` of the model in float32, at each size of images."""
    model, pictures = ConvNextV2ForImageClassification.from_pretrained(trained), natural_photographs(trained.parent)
    images = [crops(count, image_size, pictures) for image_size in IMAGE_SIZES]
    return [answers(lambda batch: model(batch).logits, each).numpy() for each in images]


def compare_answers(trained: Path, format: str, dtype: str, expected: list[np.ndarray]) -> Row:
    """A row for one file: how its logits differ from `expected` at each size of images."""
    model, pictures = ConvNextV2ForImageClassification.from_pretrained(trained), natural_photographs(trained.parent)
    written = write_classifier(model, format, dtype, pictures)
    row: Row = {"format": format, "dtype": dtype, "MB": written.size / 1e6}
    row["s to export"] = written.seconds_to_export
    for image_size, logits in zip(IMAGE_SIZES, map(torch.from_numpy, expected), strict=True):
        found = answers(written.logits, crops(len(logits), image_size, pictures))
        where = f"{image_size[0]} x {image_size[1]}"
        row[f"difference, {where}"] = f"{((found - logits).abs().max() / logits.abs().max()).item():.1e}"
        row[f"top-1, {where}"] = (found.argmax(1) == logits.argmax(1)).float().mean().item()
    return row


@torch.inference_mode()
def answers(logits: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The logits of batches of 1, 3, 8, 1, ... images, together `(count, classes)`."""
    found, batch_sizes = [], cycle(BATCH_SIZES)
    while len(images):
        batch, images = images.tensor_split([next(batch_sizes)])
        found.append(logits(batch.clone()))
    return torch.cat(found)


def compare_speed(size: str, batch: int, image_size: int, rounds: int) -> list[Row]:
    """A row for each contender, with the times that it is as fast as Transformers' eager model."""
    case = (size, batch, image_size)
    contenders = {name: partial(eager_call, name, *case) for name in MODELS}
    contenders |= {name: partial(file_call, name, *case) for name, file in FILES.items() if can_run(*file)}
    seconds = alternate_apart(contenders, rounds, calls=CALLS if batch == 1 else 1)
    return [
        {
            "size": size,
            "batch": batch,
            "contender": name,
            "images/s": batch / median(spent),
            "times Transformers": times_as_fast(seconds["Transformers"], spent),
        }
        for name, spent in seconds.items()
    ]


def eager_call(name: str, size: str, batch: int, image_size: int) -> Call:
    """A call of a model without gradients."""
    library, *options = MODELS[name]
    model: Any = create_model(library, size).eval()
    pixel_values = crops(batch, (image_size, image_size))
    if "bf16" in options:
        model, pixel_values = model.bfloat16(), pixel_values.bfloat16()
    if "compiled" in options:
        model = torch.compile(model, fullgraph=True)

    def call() -> None:
        with torch.inference_mode():
            model(pixel_values)

    return call


def file_call(name: str, size: str, batch: int, image_size: int) -> Call:
    """A call of a file."""
    run = write_classifier(create_model("ours", size), *FILES[name]).run
    pixel_values = crops(batch, (image_size, image_size))
    return lambda: run({"pixel_values": pixel_values})


if __name__ == "__main__":
    main()
