"""Settings of how the features of an image are read from an encoder: of which stages, pooled how, whitened or not."""

from dataclasses import dataclass

from training.settings.checks import check, check_at_least, check_finite
from training.settings.fields import recipe

POOLINGS = ("mean", "max", "gem")


@dataclass(kw_only=True)
class PoolingSettings:
    """Pooled features."""

    stages: list[int] | None = recipe(
        None, "stages of the encoder whose maps are used, e.g. 3 4; the first is 1 (default: the last)"
    )
    pooling: list[str] = recipe(["mean"], "mean, max or gem, or several of them, whose features are concatenated")
    gem_exponent: float = recipe(3.0, "exponent of gem: 1 is the mean of positive values, large ones are near max")

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, ("gem_exponent",), 1)
        self.check_pooling()
        check("stages", self.stages, self.stages is None or bool(self.stages), "hold a number")
        for name in ("pooling", "stages"):
            values = getattr(self, name) or []
            check(name, values, len(set(values)) == len(values), "name each only once")

    def check_pooling(self) -> None:
        """Raise unless the maps are pooled in a known way."""
        known = bool(self.pooling) and set(self.pooling) <= set(POOLINGS)
        check("pooling", self.pooling, known, f"be some of {', '.join(POOLINGS)}")


@dataclass(kw_only=True)
class ReadingSettings(PoolingSettings):
    """Features that knn and linear_probe read."""

    whitened_components: int | None = recipe(
        None,
        "principal components to which features are projected, each scaled to variance 1; they are those of the"
        " images of train_split, of whose labels nothing is used (default: features as they are)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, ("whitened_components",), 1)
