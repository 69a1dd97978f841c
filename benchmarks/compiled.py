"""Compiled inference and training step of the classifier against Transformers' compiled, both as one whole graph.

    python -m benchmarks.compiled --sizes atto tiny --batch_size 8

A break in the graph would be an error. Seconds to compile are those of the first call, without the compiler's caches.
"""

import os
from statistics import median

from benchmarks.shared.classifiers import prepare
from benchmarks.shared.measure import Row, alternate, apart, parse_arguments, report, seconds_of, times_as_fast


def main() -> None:
    args = parse_arguments(str(__doc__), sizes=["atto", "tiny"], batch_size=8, whats=["inference", "training"])
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    rows: list[Row] = []
    for size in args.sizes:
        for what in args.whats:
            rows.append(apart(compare, size, what, args.batch_size, args.rounds))
            print(rows[-1], flush=True)
    report(rows, args.output)


def compare(size: str, what: str, batch_size: int, rounds: int) -> Row:
    calls = {
        "eager": prepare("ours", size, what, batch_size),
        "ours": prepare("ours", size, what, batch_size, compiled=True),
        "transformers": prepare("transformers", size, what, batch_size, compiled=True),
    }
    first_call = {library: seconds_of(calls[library]) for library in ("ours", "transformers")}
    seconds = alternate(calls, rounds)
    row: Row = {"size": size, "batch": batch_size, "what": what}
    row["images/s"] = batch_size / median(seconds["ours"])
    row["times Transformers compiled"] = times_as_fast(seconds["transformers"], seconds["ours"])
    row["times ours eager"] = times_as_fast(seconds["eager"], seconds["ours"])
    row["s to compile"] = first_call["ours"]
    row["Transformers' s to compile"] = first_call["transformers"]
    return row


if __name__ == "__main__":
    main()
