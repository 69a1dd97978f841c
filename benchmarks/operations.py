"""Where the time of a step goes on a CPU: a classifier's beside Transformers', FCMAE's in float32 and under autocast.

    python -m benchmarks.operations --cases tiny:8 atto:16 --whats training step

Both are profiled in one process, after both have trained there: memory is no longer fresh. A row is a kind of
operation; its time is that of the operations alone, without those that they call.
"""

from statistics import median

from torch.profiler import ProfilerActivity, profile

from benchmarks.shared.classifiers import prepare
from benchmarks.shared.measure import Call, Row, apart, parse_arguments, report, seconds_of
from benchmarks.shared.pretraining import steps_by_precision

LIBRARIES = {"ours": "ours", "Transformers": "transformers"}
WARM_UP = 3
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "_linear_pointwise"),
    "convolutions": ("mkldnn_convolution", "convolution_backward", "convolution", "_convolution"),
    "GELU and its gradient": ("gelu", "gelu_", "gelu_backward"),
    "LayerNorm and its gradient": ("native_layer_norm", "native_layer_norm_backward"),
    "copies and filling": ("copy_", "fill_", "zero_"),
    "sums and norms": ("sum", "mean", "linalg_vector_norm", "sqrt", "sqrt_"),
    "multiplying and adding": ("mul", "mul_", "add", "add_", "addcmul", "addcmul_", "div", "div_", "sub", "pow"),
}
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
OTHERS, WHOLE = "all others", "the whole step"


def main() -> None:
    args = parse_arguments(
        str(__doc__), rounds=5, cases=["tiny:8", "atto:16"], whats=["training", "step"], image_size=224
    )
    rows: list[Row] = []
    for what in args.whats:
        for size, batch_size in (case.split(":") for case in args.cases):
            rows += apart(compare, what, size, int(batch_size), args.image_size, args.rounds)
            print(*rows[-len(KINDS) - 2 :], sep="\n", flush=True)
    report(rows, args.output)


def compare(what: str, size: str, batch_size: int, image_size: int, rounds: int) -> list[Row]:
    """A row for each kind of operation, and one for the whole "training" step of a classifier, or "step" of FCMAE."""
    calls = contenders(what, size, batch_size, image_size)
    for _ in range(WARM_UP):
        for call in calls.values():
            call()
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            spent[name].append(milliseconds(call))
    rows: list[Row] = []
    for kind in (*KINDS, OTHERS, WHOLE):
        row: Row = {"what": what, "size": size, "batch": batch_size, "operations": kind}
        rows.append(row | {f"{name}, ms": median(each[kind] for each in spent[name]) for name in calls})
    return rows


def contenders(what: str, size: str, batch_size: int, image_size: int) -> dict[str, Call]:
    """The calls that are compared, by name."""
    if what == "step":
        return steps_by_precision(size, batch_size, image_size)
    return {name: prepare(library, size, what, batch_size, image_size) for name, library in LIBRARIES.items()}


def milliseconds(call: Call) -> dict[str, float]:
    """Of each kind of operation in one call, and of the whole call."""
    spent = dict.fromkeys((*KINDS, OTHERS), 0.0)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        whole = seconds_of(call)
    for event in profiler.key_averages():
        spent[KIND_OF.get(event.key.split("::")[-1], OTHERS)] += event.self_cpu_time_total / 1000
    return spent | {WHOLE: 1000 * whole}


if __name__ == "__main__":
    main()
