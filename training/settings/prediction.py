"""The settings of predict.py: the images, the answers and the files that hold them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.settings.checks import check, check_at_least, check_finite, check_share
from training.settings.data import DataSettings
from training.settings.evaluation import SegmentPredictionSettings
from training.settings.fields import REQUIRED, operation, recipe
from training.settings.model import ModelSettings
from training.settings.run import ProcessSettings
from training.settings.scripts import Settings

TABLES = (".csv", ".parquet", ".jsonl")
COCO = ".json"  # of a detector


@dataclass(kw_only=True)
class PredictDataSettings(DataSettings):
    """Images to predict on, or to embed."""

    dataset_name: str = recipe(
        REQUIRED,
        "folder of images (or .npy arrays), pattern of files such as 'photos/**/*.jpg', parquet or webdataset files (a"
        " path or glob), or Hub id",
    )
    split: str | None = recipe(None, "split to read (default: all images of a folder, or the only split)")
    check_images: bool = operation(
        True, "with skip_bad_images false: decode every image once before the start, unless streaming"
    )
    skip_bad_images: bool = operation(True, "name an image that cannot be read, with its error, and go on; false: stop")
    max_bad_images: int | None = operation(
        None, "with skip_bad_images: stop if there are more than this many (default: no limit)"
    )
    per_device_eval_batch_size: int = operation(
        64, "images that a process reads at a time, and a classifier or an encoder computes"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, ("per_device_eval_batch_size",), 1)

    def check_skipping(self) -> None:
        """Bad images are found while predicting: no check has to find them before."""

    def named_splits(self) -> list[str]:
        return [self.split] if self.split else []


@dataclass(kw_only=True)
class AnswerSettings:
    """Answers."""

    top_k: int = recipe(1, "of a classifier that gives one class: the most probable classes of an image")
    threshold: float = recipe(
        0.5, "least score of an object of a detector, or of a class of a classifier that gives several"
    )

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, ("top_k",), 1)
        check_share(self, "threshold")


@dataclass(kw_only=True)
class OutputSettings:
    """Output files."""

    output_file: str = recipe(
        REQUIRED, "file for the answers: .csv, .parquet or .jsonl; of a detector also .json, in COCO's format"
    )
    masks_dir: str | None = recipe(
        None, "of a segmentation model: folder for the masks (default: beside output_file, NAME_masks)"
    )
    overwrite: bool = operation(
        False, "replace an output_file and masks that exist, and an unfinished run of other settings"
    )

    def __post_init__(self) -> None:
        check_output_file(self.output_file, (*TABLES, COCO), self.overwrite)

    @property
    def masks(self) -> Path:
        """The folder for masks."""
        file = Path(self.output_file)
        return Path(self.masks_dir) if self.masks_dir else file.with_name(f"{file.stem}_masks")


class PredictSettings(Settings):
    """Answers of a classifier, a segmentation model or a detector."""

    task = "predict"

    data: PredictDataSettings
    model: ModelSettings
    answers: AnswerSettings
    prediction: SegmentPredictionSettings
    output: OutputSettings
    processes: ProcessSettings

    def check(self) -> None:
        self.model.check_given()
        check_outside(self.data.dataset_name, output_file=Path(self.output.output_file), masks_dir=self.output.masks)


def check_output_file(file: str, endings: Sequence[str], overwrite: bool) -> None:
    """Raise unless the setting `output_file` has one of the endings, and no file of its name may be lost."""
    path = Path(file)
    check("output_file", path, path.suffix in endings, f"end in {', '.join(endings)}")
    check_new("output_file", path, overwrite)


def folder_of_parts(output: Path) -> Path:
    """The folder that holds what an unfinished run has done of an output file."""
    return output.with_name(f"{output.name}.partial")


def check_new(name: str, path: Path, overwrite: bool) -> None:
    """Raise if there is a file of this name that may not be replaced, or a folder."""
    rule = "not exist yet: give another name, or replace it with `--overwrite true`"
    check(name, path, overwrite or not path.exists(), rule)
    check(name, path, not path.is_dir(), "be a file")


def check_outside(dataset_name: str, **places: Path) -> None:
    """Raise if one of the places, by their settings' names, lies among the images."""
    folder = Path(dataset_name).expanduser()
    for name, place in places.items():
        inside = folder.is_dir() and place.resolve().is_relative_to(folder.resolve())
        check(name, place, not inside, f"not lie in `dataset_name` (={folder}), whose files are read")
