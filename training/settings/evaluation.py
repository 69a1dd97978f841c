"""Settings of the evaluation: metrics, interval and protocols."""

from dataclasses import dataclass

from training.settings.checks import check, check_at_least, check_finite, check_positive
from training.settings.fields import operation, recipe

PROTOCOLS = ("classifier", "knn", "linear_probe")


@dataclass(kw_only=True)
class MetricSettings:
    """What is measured."""

    metrics: list[str] | None = operation(None, "more metrics by their name for `evaluate.load`, e.g. f1")


@dataclass(kw_only=True)
class EvaluationSettings(MetricSettings):
    """What is measured, and how often."""

    eval_steps: int | None = operation(None, "optimizer steps between evaluations (default: an epoch)")

    def __post_init__(self) -> None:
        check_at_least(self, ("eval_steps",), 1)


@dataclass(kw_only=True)
class ProtocolSettings(MetricSettings):
    """What is measured, of which weights, and by which protocols."""

    protocols: list[str] = recipe(
        ["classifier"], "classifier; knn or linear_probe, on the frozen features of images in train_split"
    )
    use_ema: bool = recipe(False, "of a training checkpoint: the averaged weights instead of the raw ones")
    knn_neighbors: int = recipe(20, "neighbours that vote")
    knn_temperature: float = recipe(0.07, "temperature of their weights")
    linear_probe_strength: float = recipe(1.0, "inverse of the probe's L2 penalty, `C` of scikit-learn")
    output_dir: str | None = operation(None, "folder for eval_results.json and the figures of each class")

    def __post_init__(self) -> None:
        check_finite(self)
        known = bool(self.protocols) and set(self.protocols) <= set(PROTOCOLS)
        check("protocols", self.protocols, known, f"be some of {', '.join(PROTOCOLS)}")
        check_at_least(self, ("knn_neighbors",), 1)
        check_positive(self, ("knn_temperature", "linear_probe_strength"))
