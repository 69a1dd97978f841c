"""A step on four complementary views of each image against a packed step on one, four of those, and four masked-dense.

    python -m benchmarks.views --sizes atto tiny base --batch_size 8

At 224 pixels each of four views sees 12 or 13 of 49 cells, and the single view at mask ratio 0.6 sees 19. Compared with
one view, the encoder costs at least 49 / 19 = 2.58 times as much and the decoder 4 times. "of the bound" is the time of
the step's matrix products and convolutions alone, divided by that of the whole step. Four steps are timed as one, times
four.
"""

from statistics import median

from benchmarks.shared.measure import Row, alternate, apart, parse_arguments, peak_memory, report, times_as_fast
from benchmarks.shared.pretraining import NUM_VIEWS, prepare
from benchmarks.shared.products import products_of

ON_VIEWS, PACKED, MASKED_DENSE = "step on views", "packed step", "masked-dense step"


def main() -> None:
    args = parse_arguments(
        str(__doc__), sizes=["atto", "tiny", "base"], batch_size=8, image_size=224, mask_ratio=0.6, device="cpu"
    )
    rows: list[Row] = []
    for size in args.sizes:
        rows.append(apart(compare, (size, args.batch_size, args.image_size, args.mask_ratio, args.device), args.rounds))
        print(rows[-1], flush=True)
    report(rows, args.output)


def compare(case: tuple, rounds: int) -> Row:
    calls = {name: prepare(name, *case) for name in (ON_VIEWS, PACKED, MASKED_DENSE)}
    seconds = alternate(calls | {"products": products_of(calls[ON_VIEWS])}, rounds)
    peaks = {name: peak_memory(prepare, name, *case) for name in calls}
    return {
        "size": case[0],
        "what": f"{NUM_VIEWS} views",
        "batch": case[1],
        "views/s": NUM_VIEWS * case[1] / median(seconds[ON_VIEWS]),
        "times a packed step": times_as_fast(seconds[ON_VIEWS], seconds[PACKED]),
        "of four packed": times_as_fast([NUM_VIEWS * s for s in seconds[PACKED]], seconds[ON_VIEWS]),
        "of four masked-dense": times_as_fast([NUM_VIEWS * s for s in seconds[MASKED_DENSE]], seconds[ON_VIEWS]),
        "of the bound": times_as_fast(seconds["products"], seconds[ON_VIEWS]).median,
        "peak MiB": round(peaks[ON_VIEWS]),
        "memory / packed": peaks[ON_VIEWS] / peaks[PACKED],
        "memory / masked-dense": peaks[ON_VIEWS] / peaks[MASKED_DENSE],
    }


if __name__ == "__main__":
    main()
