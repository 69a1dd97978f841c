"""An encoder step of ConvMAE on visible cells alone against the official arrangement, which computes hidden cells too.

    python -m benchmarks.convmae --sizes tiny small base --batch_size 8

One set is ConvMAE, which sees a quarter of the tokens; four are FastConvMAE, whose encoder sees all of them, a quarter
in each view, and is compared with four passes, too. "of the bound" is the time of the matrix products and convolutions
alone, divided by that of the whole step.
"""

from statistics import median

from benchmarks.shared.convmae import OFFICIAL, PACKED, PASSES, prepare
from benchmarks.shared.measure import Row, alternate, apart, parse_arguments, peak_memory, report, times_as_fast
from benchmarks.shared.products import products_of


def main() -> None:
    args = parse_arguments(
        str(__doc__), sizes=["tiny", "small", "base"], sets=[1, 4], batch_size=8, image_size=224, device="cpu"
    )
    rows: list[Row] = []
    for size in args.sizes:
        for num_sets in args.sets:
            rows.append(apart(compare, (size, args.batch_size, num_sets, args.image_size, args.device), args.rounds))
            print(rows[-1], flush=True)
    report(rows, args.output)


def compare(case: tuple, rounds: int) -> Row:
    size, batch_size, num_sets = case[:3]
    names = (PACKED, OFFICIAL, *([PASSES] if num_sets > 1 else []))
    calls = {name: prepare(name, *case) for name in names}
    seconds = alternate(calls | {"products": products_of(calls[PACKED])}, rounds)
    row: Row = {"size": size, "batch": batch_size, "sets": num_sets}
    row["views/s"] = batch_size * num_sets / median(seconds[PACKED])
    row["times official"] = times_as_fast(seconds[OFFICIAL], seconds[PACKED])
    row["times as many passes"] = times_as_fast(seconds[PASSES], seconds[PACKED]) if num_sets > 1 else ""
    row["of the bound"] = times_as_fast(seconds["products"], seconds[PACKED]).median
    row["peak MiB"] = round(peak := peak_memory(prepare, PACKED, *case))
    row["memory / official"] = peak / peak_memory(prepare, OFFICIAL, *case)
    return row


if __name__ == "__main__":
    main()
