"""A pre-training step of the packed FCMAE against masked-dense, and its encoder against masked-dense and dense.

    python -m benchmarks.fcmae_step --sizes atto tiny base --batch_size 8

At 224 pixels with 60 % hidden, 19 of 49 cells are visible, so the encoder can be at most 49 / 19 = 2.58 times as fast.
"of the bound" is the time of the packed form's matrix products and convolutions alone, divided by that of the whole
call.
"""

from statistics import median

from benchmarks.shared.measure import Row, alternate, apart, parse_arguments, peak_memory, report, times_as_fast
from benchmarks.shared.pretraining import prepare
from benchmarks.shared.products import products_of

PEERS = {"encoder": ("masked-dense encoder", "dense encoder"), "step": ("masked-dense step",)}


def main() -> None:
    args = parse_arguments(
        str(__doc__), sizes=["atto", "tiny", "base"], batch_size=8, image_size=224, mask_ratio=0.6, device="cpu"
    )
    rows: list[Row] = []
    for size in args.sizes:
        for what in PEERS:
            case = (size, args.batch_size, args.image_size, args.mask_ratio, args.device)
            rows.append(apart(compare, what, case, args.rounds))
            print(rows[-1], flush=True)
    report(rows, args.output)


def compare(what: str, case: tuple, rounds: int) -> Row:
    packed, masked_dense = f"packed {what}", f"masked-dense {what}"
    calls = {name: prepare(name, *case) for name in (packed, *PEERS[what])}
    seconds = alternate(calls | {"products": products_of(calls[packed])}, rounds)
    row: Row = {"size": case[0], "batch": case[1], "what": what}
    row["images/s"] = case[1] / median(seconds[packed])
    row["times masked-dense"] = times_as_fast(seconds[masked_dense], seconds[packed])
    row["times dense"] = times_as_fast(seconds["dense encoder"], seconds[packed]) if what == "encoder" else ""
    row["of the bound"] = times_as_fast(seconds["products"], seconds[packed]).median
    row["peak MiB"] = round(peak := peak_memory(prepare, packed, *case))
    row["memory / masked-dense"] = peak / peak_memory(prepare, masked_dense, *case)
    return row


if __name__ == "__main__":
    main()
