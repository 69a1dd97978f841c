"""Settings of the evaluation: metrics, interval and protocols."""

from dataclasses import dataclass

from training.settings.checks import check, check_at_least, check_finite, check_positive, check_share
from training.settings.fields import operation, recipe

FITTED = ("knn", "linear_probe")  # on images to train on
PROTOCOLS = ("classifier", *FITTED, "segmentation", "detection")


@dataclass(kw_only=True)
class MetricSettings:
    """Metrics."""

    metrics: list[str] | None = operation(None, "further metrics, by their name for `evaluate.load`, e.g. f1")


@dataclass(kw_only=True)
class IntervalSettings:
    """Interval of evaluations."""

    eval_steps: int | None = operation(None, "optimizer steps between evaluations (default: one epoch)")

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, ("eval_steps",), 1)


@dataclass(kw_only=True)
class EvaluationSettings(IntervalSettings, MetricSettings):
    """Evaluation during training."""


@dataclass(kw_only=True)
class SegmentPredictionSettings:
    """Prediction of the classes of pixels."""

    eval_window: int | None = recipe(
        None, "predict in windows of this side, in pixels, which overlap by a third (default: the whole image at once)"
    )
    eval_scales: list[float] = recipe([1.0], "sizes of an image, relative to the usual one, to average predictions of")
    eval_flip: bool = recipe(False, "average the predictions of an image and of its mirror image")

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, ("eval_window",), 1)
        check("eval_scales", self.eval_scales, all(scale > 0 for scale in self.eval_scales), "be positive")
        check("eval_scales", self.eval_scales, bool(self.eval_scales), "hold a number")


@dataclass(kw_only=True)
class SegmentEvaluationSettings(SegmentPredictionSettings, IntervalSettings):
    """Evaluation of segmentation during training."""

    def __post_init__(self) -> None:
        IntervalSettings.__post_init__(self)
        SegmentPredictionSettings.__post_init__(self)


@dataclass(kw_only=True)
class ShownSettings:
    """The picture of detected objects."""

    shown_score: float = operation(0.5, "least score of the objects that are drawn in the picture of predictions")

    def __post_init__(self) -> None:
        check_finite(self)
        check_share(self, "shown_score")


@dataclass(kw_only=True)
class DetectEvaluationSettings(ShownSettings, IntervalSettings):
    """Evaluation of detection during training."""

    def __post_init__(self) -> None:
        IntervalSettings.__post_init__(self)
        ShownSettings.__post_init__(self)


@dataclass(kw_only=True)
class ProtocolSettings(MetricSettings):
    """Metrics and evaluation protocols."""

    protocols: list[str] | None = recipe(
        None,
        "classifier, knn, linear_probe, segmentation or detection; knn and linear_probe are fitted on the frozen"
        " features of train_split (default: the one that fits the model)",
    )
    use_ema: bool = recipe(False, "evaluate the averaged weights of a training checkpoint instead of the raw ones")
    knn_neighbors: int = recipe(20, "number of neighbours that vote in knn")
    knn_temperature: float = recipe(0.07, "temperature of the votes' weights in knn")
    linear_probe_strength: float = recipe(1.0, "inverse of the L2 penalty of linear_probe, `C` of scikit-learn")
    output_dir: str | None = operation(None, "folder for eval_results.json and the table of each class")

    def __post_init__(self) -> None:
        check_finite(self)
        known = self.protocols is None or (bool(self.protocols) and set(self.protocols) <= set(PROTOCOLS))
        check("protocols", self.protocols, known, f"be some of {', '.join(PROTOCOLS)}")
        check_at_least(self, ("knn_neighbors",), 1)
        check_positive(self, ("knn_temperature", "linear_probe_strength"))
