"""The settings of embed.py and nearest.py: the features of images, their file, and a search in it."""

from dataclasses import dataclass
from pathlib import Path

from conversion.files import read_json
from training.settings.checks import check, check_at_least
from training.settings.fields import REQUIRED, operation, recipe
from training.settings.model import ModelSettings
from training.settings.pooling import POOLINGS, PoolingSettings
from training.settings.prediction import (
    PredictDataSettings,
    check_new,
    check_output_file,
    check_outside,
    folder_of_parts,
)
from training.settings.run import ProcessSettings
from training.settings.scripts import Settings

UNPOOLED = ["none"]
DTYPES = ("float32", "float16")
PARQUET, NPY = ".parquet", ".npy"
FEATURE_FILES = (PARQUET, NPY)
PICTURES = (".png", ".jpg", ".pdf", ".svg")


@dataclass(kw_only=True)
class FeatureSettings(PoolingSettings):
    """Features."""

    pooling: list[str] = recipe(
        ["mean"], "mean, max or gem, or several of them, whose features are concatenated; none: the maps as they are"
    )
    normalize: bool = recipe(False, "divide the features of an image, or of each position of a map, by their L2 norm")
    dtype: str = recipe("float32", f"number type in the file: {' or '.join(DTYPES)}")

    def __post_init__(self) -> None:
        super().__post_init__()
        check("dtype", self.dtype, self.dtype in DTYPES, f"be {' or '.join(DTYPES)}")

    def check_pooling(self) -> None:
        known = not self.is_pooled or (bool(self.pooling) and set(self.pooling) <= set(POOLINGS))
        check("pooling", self.pooling, known, f"be some of {', '.join(POOLINGS)}, or none")

    @property
    def is_pooled(self) -> bool:
        """Whether the features of an image are one vector, else they are maps."""
        return self.pooling != UNPOOLED


@dataclass(kw_only=True)
class FeatureOutputSettings:
    """Output file."""

    output_file: str = recipe(REQUIRED, "file for the features: .parquet, or .npy with the names of the images beside")
    overwrite: bool = operation(False, "replace an output_file that exists, and an unfinished run of other settings")

    def __post_init__(self) -> None:
        check_output_file(self.output_file, FEATURE_FILES, self.overwrite)
        npy = Path(self.output_file)
        was_killed = not npy.exists() and folder_of_parts(npy).is_dir()  # with the files beside it written
        if npy.suffix == NPY and not was_killed:
            for path in files_beside(npy).values():
                check_new("output_file", path, self.overwrite)
            about = files_beside(npy)["about"]
            rule = f"have no other file's {about.name} beside it, which would be replaced: give another name"
            check("output_file", npy, not about.exists() or is_about_features(about), rule)


def is_about_features(file: Path) -> bool:
    """Whether a JSON file is one that embed.py has written beside a .npy file."""
    try:
        return {"model", "features"} <= read_json(file).keys()
    except ValueError:
        return False


def files_beside(npy: Path) -> dict[str, Path]:
    """The files beside a .npy file: `images` names its rows, `errors` the bad images, `about` the settings."""
    endings = {"images": ".images.csv", "errors": ".errors.csv", "about": ".json"}
    return {name: npy.with_suffix(ending) for name, ending in endings.items()}


class EmbedSettings(Settings):
    """Features of images from an encoder."""

    task = "embed"

    data: PredictDataSettings
    model: ModelSettings
    features: FeatureSettings
    output: FeatureOutputSettings
    processes: ProcessSettings

    def check(self) -> None:
        self.model.check_given()
        check_outside(self.data.dataset_name, output_file=Path(self.output.output_file))
        stages, is_npy = self.features.stages or [], Path(self.output.output_file).suffix == NPY
        fits = self.features.is_pooled or not is_npy or len(stages) < 2
        check(
            "stages", stages, fits, f"be one stage: {NPY} holds one array. Give `--output_file` that ends in {PARQUET}"
        )


@dataclass(kw_only=True)
class NeighborSettings:
    """Search and picture."""

    features_file: str = operation(REQUIRED, "file of embed.py with pooled features of the images of dataset_name")
    query: str = operation(REQUIRED, "image to search for: its name in features_file, or any image file")
    num_neighbors: int = operation(8, "number of neighbours")
    model_name_or_path: str | None = operation(
        None, "model for an image file that is not in features_file (default: the one that features_file names)"
    )
    output_file: str = operation(REQUIRED, f"picture: {', '.join(PICTURES)}")
    overwrite: bool = operation(False, "replace an output_file that exists")

    def __post_init__(self) -> None:
        check_at_least(self, ("num_neighbors",), 1)
        check_output_file(self.output_file, PICTURES, self.overwrite)
        ending = Path(self.features_file).suffix
        check("features_file", self.features_file, ending in FEATURE_FILES, f"end in {', '.join(FEATURE_FILES)}")


class NearestSettings(Settings):
    """The nearest neighbours of an image."""

    task = "nearest"

    data: PredictDataSettings
    search: NeighborSettings

    def check(self) -> None:
        check_outside(self.data.dataset_name, output_file=Path(self.search.output_file))
        rule = "be false: the images of the neighbours are read by their place"
        check("streaming", self.data.streaming, not self.data.streaming, rule)
