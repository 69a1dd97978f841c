"""Eager inference and training step of the classifier against Transformers' own and timm's.

    python -m benchmarks.classifier --cases atto:16 tiny:8 --device cuda --dtype bfloat16
    python -m benchmarks.classifier --blocks V1 --output docs/benchmarks/classifier_v1.json

"blocks" are those of ConvNeXt V2, or V1's with LayerScale and without GRN, which Transformers and timm have as
`convnext`. "of the bound" is the time of the matrix products and convolutions alone, divided by that of the whole call.
"""

from statistics import median

from benchmarks.shared.classifiers import prepare
from benchmarks.shared.measure import Row, alternate, apart, parse_arguments, peak_memory, report, times_as_fast
from benchmarks.shared.products import products_of

LIBRARIES = ("ours", "transformers", "timm")


def main() -> None:
    args = parse_arguments(
        str(__doc__),
        cases=["atto:1", "atto:16", "tiny:1", "tiny:8", "base:8"],
        image_size=224,
        whats=["inference", "training", "checkpointing"],
        device="cpu",
        dtype="float32",
        blocks="V2",
    )
    rows: list[Row] = []
    for size, batch_size in (case.split(":") for case in args.cases):
        for what in args.whats:
            settings = (int(batch_size), args.image_size, args.device, args.dtype, False, args.blocks)
            rows.append(apart(compare, size, what, settings, args.rounds))
            print(rows[-1], flush=True)
    report(rows, args.output)


def compare(size: str, what: str, settings: tuple[int, int, str, str, bool, str], rounds: int) -> Row:
    """Compare with the other libraries. They run without checkpointing, so that its row shows its saving and its cost.

    `settings`: batch size, image size, device, dtype, whether compiled, and blocks.
    """
    cases = {library: (library, size, what, *settings) for library in LIBRARIES}
    if what == "checkpointing":
        cases |= {library: (library, size, "training", *settings) for library in LIBRARIES[1:]}
    calls = {library: prepare(*case) for library, case in cases.items()}
    seconds = alternate(calls | {"products": products_of(calls["ours"])}, rounds)
    row: Row = {"size": size, "batch": settings[0], "what": what}
    row["images/s"] = settings[0] / median(seconds["ours"])
    row["times Transformers"] = times_as_fast(seconds["transformers"], seconds["ours"])
    row["times timm"] = times_as_fast(seconds["timm"], seconds["ours"])
    row["of the bound"] = times_as_fast(seconds["products"], seconds["ours"]).median
    peaks = {library: peak_memory(prepare, *case) for library, case in cases.items()}
    row["peak MiB"] = round(peaks["ours"])
    row["memory / Transformers'"] = peaks["ours"] / peaks["transformers"]
    return row


if __name__ == "__main__":
    main()
