"""Time and memory of an FCMAE step as the work grows: image size, batch and mask ratio, beside the bound.

    python -m benchmarks.scaling --size atto

The bound is the time of the step's matrix products and convolutions alone.
"""

from statistics import median

from benchmarks.measure import Row, alternate, apart, parse_arguments, peak_memory, report
from benchmarks.pretraining import prepare
from benchmarks.products import products_of

DEFAULTS = {"batch": 8, "image size": 224, "mask ratio": 0.6}


def main() -> None:
    args = parse_arguments(
        str(__doc__),
        rounds=7,
        size="atto",
        image_sizes=[96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448, 480, 512],
        batch_sizes=[1, 2, 4, 8, 16, 32],
        mask_ratios=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
    )
    grown = {"image size": args.image_sizes, "batch": args.batch_sizes, "mask ratio": args.mask_ratios}
    rows: list[Row] = []
    for axis, values in grown.items():
        for value in values:
            rows.append(apart(measure, args.size, axis, DEFAULTS | {axis: value}, args.rounds))
            print(rows[-1], flush=True)
    report(rows, args.output)


def measure(size: str, axis: str, setting: dict[str, float], rounds: int) -> Row:
    case = (size, int(setting["batch"]), int(setting["image size"]), setting["mask ratio"])
    step = prepare("packed step", *case)
    seconds = alternate({"step": step, "products": products_of(step)}, rounds)
    row: Row = {"grown": axis, **setting}
    row["ms"] = median(seconds["step"]) * 1000
    row["bound, ms"] = median(seconds["products"]) * 1000
    row["peak MiB"] = peak_memory(prepare, "packed step", *case)
    return row


if __name__ == "__main__":
    main()
