"""`pipeline("image-classification")` on photographs, before and after `hf_convnextv2.register()`: from decoded
images to labels, resizing included.

    python -m benchmarks.pipelines --sizes atto tiny --batch_size 8
"""

import tempfile
from itertools import cycle, islice
from statistics import median
from typing import Any

import torch
import transformers

import hf_convnextv2
from benchmarks.shared.classifiers import create_model
from benchmarks.shared.measure import Row, alternate, parse_arguments, report, times_as_fast
from benchmarks.shared.photographs import photographs


def main() -> None:
    args = parse_arguments(str(__doc__), sizes=["atto", "tiny"], batch_size=8, images=32)
    pictures = list(islice(cycle(photographs()), args.images))
    rows: list[Row] = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            model: Any = create_model("ours", size)
            model.save_pretrained(folder)
            hf_convnextv2.create_image_processor(model.config).save_pretrained(folder)
            before = transformers.pipeline("image-classification", model=folder, batch_size=args.batch_size)
            hf_convnextv2.register()
            after = transformers.pipeline("image-classification", model=folder, batch_size=args.batch_size)
            hf_convnextv2.unregister()
        assert type(before.model) is not type(after.model)
        calls = {"before": lambda pipe=before: pipe(pictures), "after": lambda pipe=after: pipe(pictures)}
        with torch.inference_mode():
            seconds = alternate(calls, args.rounds, warm_up=1)
        row: Row = {"size": size, "batch": args.batch_size}
        row["images/s before"] = args.images / median(seconds["before"])
        row["images/s after"] = args.images / median(seconds["after"])
        row["times as fast"] = times_as_fast(seconds["before"], seconds["after"])
        rows.append(row)
    report(rows, args.output)


if __name__ == "__main__":
    main()
