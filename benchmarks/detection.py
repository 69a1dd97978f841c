"""Training step of Mask R-CNN: this package's on our backbone, against torchvision's class on Transformers' backbone.

    python -m benchmarks.detection --cases atto tiny --image_size 512 --batch_size 2

The step is forward and backward with COCO's 80 classes and 7 objects an image.
"""

from statistics import median
from typing import Any

import torch

from benchmarks.shared.detectors import as_detr_labels, objects_of, our_mask_rcnn, torchvisions_mask_rcnn
from benchmarks.shared.measure import Call, Row, alternate, apart, parse_arguments, peak_memory, report, times_as_fast


def main() -> None:
    args = parse_arguments(str(__doc__), cases=["atto", "tiny"], image_size=512, batch_size=2, device="cpu")
    rows: list[Row] = []
    for size in args.cases:
        rows.append(apart(compare, size, args.batch_size, args.image_size, args.device, args.rounds))
        print(rows[-1], flush=True)
    report(rows, args.output)


def compare(size: str, batch_size: int, image_size: int, device: str, rounds: int) -> Row:
    """Compare with torchvision's class."""
    cases = {library: (library, size, batch_size, image_size, device) for library in ("ours", "torchvision")}
    seconds = alternate({library: prepare(*case) for library, case in cases.items()}, rounds, warm_up=1)
    peaks = {library: peak_memory(prepare, *case) for library, case in cases.items()}
    return {
        "size": size,
        "batch": batch_size,
        "image": image_size,
        "images/s": batch_size / median(seconds["ours"]),
        "times torchvision": times_as_fast(seconds["torchvision"], seconds["ours"]),
        "peak MiB": round(peaks["ours"]),
        "memory / torchvision's": peaks["ours"] / peaks["torchvision"],
    }


def prepare(library: str, size: str, batch_size: int, image_size: int, device: str) -> Call:
    """A call of a training step without its optimizer."""
    objects = objects_of(batch_size, image_size, device)
    pixel_values = torch.randn(batch_size, 3, image_size, image_size, device=device)
    if library == "ours":
        ours: Any = our_mask_rcnn(size)
        ours = ours.to(device).train()
        labels = as_detr_labels(objects, image_size)

        def training() -> None:
            ours(pixel_values, labels=labels).loss.backward()
            ours.zero_grad()

        return training
    theirs = torchvisions_mask_rcnn(size, image_size).to(device).train()
    targets = [{**found, "labels": found["labels"] + 1} for found in objects]

    def theirs_training() -> None:
        sum(theirs(list(pixel_values), targets).values()).backward()  # type: ignore[union-attr]
        theirs.zero_grad()

    return theirs_training


if __name__ == "__main__":
    main()
