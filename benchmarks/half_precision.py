"""bfloat16 on a CPU: the classifier against Transformers' and OpenVINO's, and steps of FCMAE against our own float32.

    python -m benchmarks.half_precision --cases atto:1 tiny:8 --whats inference training step

"weights" are in bfloat16, or stay in float32 under "autocast". Each has the error of its logits, or of its gradients,
against Transformers' in float32 with the same weights. OpenVINO, with weights in float16 and products in bfloat16, is
left out where it is not installed, and where the processor has no bfloat16. In its presence, single images take all
contenders longer.
"""

from contextlib import nullcontext
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.shared.classifiers import create_model
from benchmarks.shared.exported import can_run, write_classifier
from benchmarks.shared.measure import Call, Row, alternate, apart, parse_arguments, report, times_as_fast
from benchmarks.shared.pretraining import steps_by_precision

FLOAT32 = "Transformers, float32"
INFERENCE = (FLOAT32, "Transformers, weights", "Transformers, autocast", "ours, float32", "ours, weights")
TRAINING = (FLOAT32, "Transformers, autocast", "ours, float32", "ours, autocast")


def main() -> None:
    args = parse_arguments(
        str(__doc__),
        cases=[f"{size}:{batch}" for size in ("atto", "tiny", "base") for batch in (1, 8, 16)],
        whats=["inference", "training", "step"],
        image_size=224,
        rounds=7,
    )
    rows: list[Row] = []
    for size, batch in (case.split(":") for case in args.cases):
        for what in args.whats:
            compare = compare_steps if what == "step" else compare_classifiers
            rows += apart(compare, size, int(batch), what, args.image_size, args.rounds)
            print(*rows[-1:], sep="\n", flush=True)
    report(rows, args.output)


def compare_classifiers(size: str, batch: int, what: str, image_size: int, rounds: int) -> list[Row]:
    """A row for each contender, with the times that it is as fast as Transformers in float32."""
    torch.manual_seed(1)
    pixel_values = torch.randn(batch, 3, image_size, image_size)
    names = TRAINING if what == "training" else (*INFERENCE, "ours, autocast")
    weights = create_model("transformers", size).state_dict()
    contenders = {name: Classifier(name, size, what, pixel_values, weights) for name in names}
    calls: dict[str, Call] = {name: contender.call for name, contender in contenders.items()}
    expected = contenders[FLOAT32].result()
    errors = {name: error(contender.result(), expected) for name, contender in contenders.items()}
    if what == "inference" and can_run("openvino", "bfloat16"):
        written = write_classifier(contenders["ours, float32"].model, "openvino", "bfloat16")
        calls["OpenVINO, bf16"] = lambda: written.run({"pixel_values": pixel_values})
        errors["OpenVINO, bf16"] = error([written.logits(pixel_values)], expected)
    seconds = alternate(calls, rounds)
    return [
        {
            "what": what,
            "size": size,
            "batch": batch,
            "contender": name,
            "images/s": batch / median(spent),
            "times Transformers, float32": times_as_fast(seconds[FLOAT32], spent),
            "error": f"{errors[name]:.1e}",
        }
        for name, spent in seconds.items()
    ]


class Classifier:
    """A classifier of a library in a precision, and the call that is timed."""

    def __init__(self, name: str, size: str, what: str, pixel_values: Tensor, weights: dict[str, Tensor]) -> None:
        library, self.precision = name.split(", ")
        self.model: Any = create_model(library.lower(), size)
        self.model.load_state_dict(weights)
        self.pixel_values, self.what = pixel_values, what
        if self.precision == "weights":
            self.model, self.pixel_values = self.model.bfloat16(), pixel_values.bfloat16()
        self.model.train(what == "training")

    def logits(self) -> Tensor:
        is_autocast = self.precision == "autocast"
        with torch.autocast("cpu", torch.bfloat16) if is_autocast else nullcontext():
            return self.model(self.pixel_values).logits

    def call(self) -> None:
        if self.what == "training":
            self.backward()
            self.model.zero_grad()
            return
        with torch.inference_mode():
            self.logits()

    def backward(self) -> None:
        F.cross_entropy(self.logits().float(), torch.arange(len(self.pixel_values))).backward()

    def result(self) -> list[Tensor]:
        """What the errors are of: the logits, or all gradients."""
        if self.what == "inference":
            with torch.inference_mode():
                return [self.logits().float()]
        self.backward()
        found = [parameter.grad.float() for _, parameter in sorted(self.model.named_parameters())]
        self.model.zero_grad()
        return found


def compare_steps(size: str, batch: int, what: str, image_size: int, rounds: int) -> list[Row]:
    """A row for a step of FCMAE under autocast, with the times that it is as fast as in float32."""
    seconds = alternate(steps_by_precision(size, batch, image_size), rounds)
    row: Row = {"what": "FCMAE step", "size": size, "batch": batch, "contender": "ours, autocast"}
    row["images/s"] = batch / median(seconds["autocast"])
    row["times ours, float32"] = times_as_fast(seconds["float32"], seconds["autocast"])
    return [row]


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The norm of the difference relative to that of what is expected, over all tensors."""
    difference = sum((one - other).square().sum() for one, other in zip(found, expected, strict=True))
    return float((difference / sum(tensor.square().sum() for tensor in expected)) ** 0.5)


if __name__ == "__main__":
    main()
