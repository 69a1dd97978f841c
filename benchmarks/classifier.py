"""Eager inference and training step of the classifier against Transformers' own and timm's.

    python -m benchmarks.classifier --sizes atto tiny --batch_sizes 1 8 --device cuda --dtype bfloat16

"of the bound" is the time of our matrix products and convolutions alone over that of the whole call.
"""

from statistics import median

from benchmarks.classifiers import prepare
from benchmarks.measure import Row, alternate, parse_arguments, peak_memory, report, times_as_fast
from benchmarks.products import products_of

LIBRARIES = ("ours", "transformers", "timm")


def main() -> None:
    args = parse_arguments(
        str(__doc__),
        sizes=["atto", "tiny"],
        batch_sizes=[1, 8, 16],
        image_size=224,
        whats=["inference", "training", "checkpointing"],
        device="cpu",
        dtype="float32",
    )
    rows: list[Row] = []
    for size in args.sizes:
        for batch_size in args.batch_sizes:
            for what in args.whats:
                rows.append(compare(size, what, batch_size, args.image_size, args.device, args.dtype, args.rounds))
                print(rows[-1], flush=True)
    report(rows, args.output)


def compare(size: str, what: str, batch_size: int, image_size: int, device: str, dtype: str, rounds: int) -> Row:
    """The peers do without checkpointing, so that its row shows what it saves and costs."""
    settings = (batch_size, image_size, device, dtype)
    cases = {library: (library, size, what, *settings) for library in LIBRARIES}
    if what == "checkpointing":
        cases |= {library: (library, size, "training", *settings) for library in LIBRARIES[1:]}
    calls = {library: prepare(*case) for library, case in cases.items()}
    seconds = alternate(calls | {"products": products_of(calls["ours"])}, rounds)
    row: Row = {"size": size, "batch": batch_size, "what": what}
    row["images/s"] = batch_size / median(seconds["ours"])
    row["times Transformers"] = times_as_fast(seconds["transformers"], seconds["ours"])
    row["times timm"] = times_as_fast(seconds["timm"], seconds["ours"])
    row["of the bound"] = times_as_fast(seconds["products"], seconds["ours"]).median
    peaks = {library: peak_memory(prepare, *case) for library, case in cases.items()}
    row["peak MiB"] = round(peaks["ours"])
    row["memory / Transformers'"] = peaks["ours"] / peaks["transformers"]
    return row


if __name__ == "__main__":
    main()
