"""Time and memory of an FCMAE step as the work grows: image size, batch and mask ratio, beside the bound.

    python -m benchmarks.scaling --size atto

The bound is the time of the step's matrix products and convolutions alone.
"""

from statistics import median

from benchmarks.shared.measure import Row, alternate, apart, parse_arguments, peak_memory, report
from benchmarks.shared.pretraining import prepare
from benchmarks.shared.products import products_of

DEFAULTS = {"batch": 8, "image size": 224, "mask ratio": 0.6}


def main() -> None:
    args = parse_arguments(
        str(__doc__),
        rounds=3,
        passes=3,
        size="atto",
        image_sizes=[96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448, 480, 512],
        batch_sizes=[1, 2, 4, 8, 16, 32],
        mask_ratios=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
    )
    grown = {"image size": args.image_sizes, "batch": args.batch_sizes, "mask ratio": args.mask_ratios}
    settings = [(axis, DEFAULTS | {axis: value}) for axis, values in grown.items() for value in values]
    seconds = [{"step": [], "products": []} for _ in settings]
    for _ in range(args.passes):  # repeat all settings: a slow minute then affects them all
        for (axis, setting), spent in zip(settings, seconds, strict=True):
            for name, values in apart(measure, case_of(args.size, setting), args.rounds).items():
                spent[name] += values
            print(
                axis, setting, {name: f"{1000 * median(values):.0f} ms" for name, values in spent.items()}, flush=True
            )
    rows: list[Row] = []
    for (axis, setting), spent in zip(settings, seconds, strict=True):
        row: Row = {"grown": axis, **setting}
        row["ms"], row["bound, ms"] = (median(values) * 1000 for values in spent.values())
        row["peak MiB"] = peak_memory(prepare, "packed step", *case_of(args.size, setting))
        rows.append(row)
    report(rows, args.output)


def case_of(size: str, setting: dict[str, float]) -> tuple[str, int, int, float]:
    return size, int(setting["batch"]), int(setting["image size"]), setting["mask ratio"]


def measure(case: tuple, rounds: int) -> dict[str, list[float]]:
    step = prepare("packed step", *case)
    return alternate({"step": step, "products": products_of(step)}, rounds)


if __name__ == "__main__":
    main()
