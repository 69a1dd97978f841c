"""Settings of the images that a run reads."""

from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal

from training.settings.checks import check, check_at_least, check_below_one, check_finite, may_be_there
from training.settings.fields import REQUIRED, operation, recipe
from training.settings.labels import LabelSettings

IGNORE_INDEX = 255  # by default
FILE_BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}  # extension: `datasets` builder
LISTS = (".csv", ".tsv", ".json", ".jsonl", ".txt")  # what people keep lists of images in


@dataclass(kw_only=True)
class DataSettings:
    """Images and how they are read."""

    dataset_name: str = recipe(
        REQUIRED, "Hub id, folder of images (or .npy arrays), or parquet or webdataset files (a path or glob)"
    )
    dataset_config_name: str | None = recipe(None, "configuration of a Hub data set (default: its own)")
    dataset_revision: str | None = recipe(None, "revision of a Hub data set (default: main)")
    streaming: bool = recipe(
        False, "read the data set as a stream instead of preparing it on disk first", on_resume="refuse"
    )
    image_column: str = recipe("image", "column that holds the images")
    background: str | None = recipe(
        None,
        "colour that transparent pixels are composited on, e.g. white, #ff8000 or 255,128,0; none: ignore"
        " transparency, which shows whatever colour is stored there (default: the model's, else white)",
    )
    check_images: bool = operation(True, "decode every image once before the start, unless streaming")
    skip_bad_images: bool = operation(False, "leave out files that cannot be read as an image instead of stopping")
    max_bad_images: int = operation(
        100, "with skip_bad_images: stop if there are more than this many; a stream counts them by data loader worker"
    )
    num_workers: int = operation(2, "data loader workers of each training process")
    seed: int = recipe(0, "random seed", on_resume="refuse")

    def __post_init__(self) -> None:
        check_finite(self)
        check("dataset_name", self.dataset_name, bool(self.dataset_name), "be given")
        check_at_least(self, ("num_workers", "max_bad_images", "seed"), 0)
        check_background(self.background)
        is_pattern = any(character in self.dataset_name for character in "*?[")
        found = is_pattern or may_be_there(self.dataset_name)
        check("dataset_name", self.dataset_name, found, "be a file or folder that exists, or a Hub id")
        file = Path(self.dataset_name).expanduser()
        is_list = file.suffix.lower() in LISTS and (is_pattern or file.is_file())
        rule = (
            f"be the folder of the images, or files that hold them ({', '.join(FILE_BUILDERS)}): a list of images is "
        )
        rule += "read from their folder, if it is called metadata.csv or metadata.jsonl and has a column `file_name`"
        check("dataset_name", self.dataset_name, not is_list, rule)
        self.check_skipping()

    def check_skipping(self) -> None:
        """Raise if bad images are to be skipped that no check finds before the start."""
        checked = self.check_images or self.streaming or not self.skip_bad_images
        check("check_images", self.check_images, checked, "be true with `skip_bad_images`, unless streaming")

    def check_splits(self, name: str, split: str | None, other: str) -> None:
        """Raise if the settings name a second split and the data set is files: its images would be the same ones."""
        two = split not in (None, other) and Path(self.dataset_name).suffix in FILE_BUILDERS
        rule = f"not be given beside split `{other}` where `dataset_name` (={self.dataset_name}) names files"
        check(name, split, not two, f"{rule}: name the folder that has those of both")

    def columns_of_images(self) -> list[str]:
        """The names of the columns that hold images."""
        return [getattr(self, name) for name in ("image_column", "annotation_column") if hasattr(self, name)]

    def named_splits(self) -> list[str]:
        """The names of the splits in these settings."""
        named = (getattr(self, field, None) for field in ("train_split", "eval_split"))
        return sorted({name for name in named if name})


@dataclass(kw_only=True)
class TrainingDataSettings(DataSettings):
    """Training images."""

    train_split: str = recipe("train", "split to train on")
    max_train_samples: int | None = recipe(None, "train on this many examples only (default: all)")
    shuffle_buffer_size: int = recipe(
        1000,
        "with streaming: number of buffered examples from which the next one is drawn",
        on_resume="refuse",
        unused_with=("streaming", (False,)),
    )
    per_device_train_batch_size: int = recipe(64, "images per forward pass and process", on_resume="ignore")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, ("max_train_samples", "shuffle_buffer_size", "per_device_train_batch_size"), 1)


@dataclass(kw_only=True)
class PretrainDataSettings(TrainingDataSettings):
    """Training images, from one data set or a mixture."""

    mixed_dataset_names: list[str] | None = recipe(
        None, "further data sets to mix with dataset_name; they need the same columns and splits"
    )
    mixture_weights: list[float] | None = recipe(
        None,
        "sampling weight of dataset_name and of each of mixed_dataset_names (default: every image once per epoch)",
        on_resume="refuse",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        weights, count = self.mixture_weights, 1 + len(self.mixed_dataset_names or [])
        if weights is None:
            rule = "be given to mix streams: how long they are is not known"
            check("mixture_weights", weights, count == 1 or not self.streaming, rule)
            return
        rule = f"be {count} positive numbers, for `dataset_name` and each of `mixed_dataset_names`"
        check("mixture_weights", weights, len(weights) == count and min(weights) > 0, rule)
        rule = "have no weight below a thousandth of their sum"
        check("mixture_weights", weights, min(weights) >= sum(weights) / 1000, rule)


@dataclass(kw_only=True)
class EvaluatedDataSettings(DataSettings):
    """Images for evaluation."""

    eval_split: str | None = recipe(None, "split to evaluate on")
    max_eval_samples: int | None = recipe(None, "evaluate on this many examples only (default: all)")
    per_device_eval_batch_size: int = operation(64, "images per forward pass of an evaluation")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, ("max_eval_samples", "per_device_eval_batch_size"), 1)


@dataclass(kw_only=True)
class LabelledDataSettings(LabelSettings, EvaluatedDataSettings):
    """Labelled images for evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_labels()


@dataclass(kw_only=True)
class HeldOutDataSettings(EvaluatedDataSettings, TrainingDataSettings):
    """Images for training and evaluation."""

    train_val_split: float = recipe(
        0.0, "without eval_split: evaluate on this share of the training split", overridden_by="eval_split"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_splits("eval_split", self.eval_split, self.train_split)
        check_below_one(self, "train_val_split")
        both = bool(self.train_val_split) and (self.streaming or self.eval_split is not None)
        check("train_val_split", self.train_val_split, not both, "not be given while streaming or with `eval_split`")


@dataclass(kw_only=True)
class FinetuneDataSettings(LabelledDataSettings, HeldOutDataSettings):
    """Labelled images for training and evaluation."""


@dataclass(kw_only=True)
class MaskSettings:
    """Masks and how they are read."""

    annotation_column: str = recipe("annotation", "column that holds the masks: a class number for each pixel")
    ignore_index: int = recipe(IGNORE_INDEX, "value of mask pixels that belong to no class; they are ignored")
    reduce_labels: bool = recipe(False, "ignore class 0 and count the others from 0, as for the masks of ADE20K")
    mask_values: list[int] | None = recipe(
        None, "value of each class in the masks, e.g. 0 255 for black and white ones (default: 0, 1, 2, ...)"
    )

    def __post_init__(self) -> None:
        self.check_values()

    def check_values(self) -> None:
        """Raise if the values of the classes contradict each other."""
        values = self.mask_values
        if values is not None:
            check("mask_values", values, len(values) == len(set(values)) > 1, "be two or more different numbers")
            check("reduce_labels", self.reduce_labels, not self.reduce_labels, "be false with `mask_values`")
            usual = self.ignore_index == IGNORE_INDEX
            rule = f"not be one of `mask_values` (={values}), which are classes"
            check("ignore_index", self.ignore_index, usual or self.ignore_index not in values, rule)
            self.ignore_index = -1 if self.ignore_index in values else self.ignore_index


@dataclass(kw_only=True)
class MaskedDataSettings(MaskSettings, EvaluatedDataSettings):
    """Images with masks for evaluation."""

    def __post_init__(self) -> None:
        EvaluatedDataSettings.__post_init__(self)
        self.check_values()


@dataclass(kw_only=True)
class SegmentDataSettings(MaskedDataSettings, HeldOutDataSettings):
    """Images with masks for training and evaluation."""

    def __post_init__(self) -> None:
        HeldOutDataSettings.__post_init__(self)
        self.check_values()


@dataclass(kw_only=True)
class ObjectSettings:
    """Objects and how they are read."""

    objects_column: str = recipe("objects", "column that holds the objects of an image: their boxes and classes")
    box_format: Literal["xywh", "xyxy"] = recipe(
        "xywh", "numbers of a box, in pixels: left, top, width and height (as in COCO), or left, top, right and bottom"
    )
    annotation_files: list[str] | None = recipe(
        None,
        "COCO's JSON files of train_split and eval_split, in the folder dataset_name or elsewhere (default: found by"
        " their usual names)",
    )

    def __post_init__(self) -> None:
        kinds = ("xywh", "xyxy")
        check("box_format", self.box_format, self.box_format in kinds, f"be {' or '.join(kinds)}")


@dataclass(kw_only=True)
class ObjectsDataSettings(ObjectSettings, EvaluatedDataSettings):
    """Images with objects for evaluation."""

    def __post_init__(self) -> None:
        EvaluatedDataSettings.__post_init__(self)
        self.check_files()

    def check_files(self) -> None:
        """Raise if the format of boxes or the annotation files do not fit."""
        ObjectSettings.__post_init__(self)
        files, splits = self.annotation_files, self.splits_in_order()
        rule = f"name one file for each of the splits {', '.join(splits)}"
        check("annotation_files", files, files is None or len(files) == len(splits), rule)
        is_folder = Path(self.dataset_name).expanduser().is_dir()
        check("annotation_files", files, files is None or is_folder, "be given with a folder of images alone")

    def splits_in_order(self) -> list[str]:
        """The names of the splits, the one to train on first."""
        named = (getattr(self, field, None) for field in ("train_split", "eval_split"))
        return list(dict.fromkeys(name for name in named if name))


@dataclass(kw_only=True)
class DetectDataSettings(ObjectsDataSettings, HeldOutDataSettings):
    """Images with objects for training and evaluation."""

    def __post_init__(self) -> None:
        HeldOutDataSettings.__post_init__(self)
        self.check_files()


@dataclass(kw_only=True)
class ValidateDataSettings(LabelledDataSettings):
    """Labelled images for evaluation, and for fitting knn and linear_probe."""

    eval_split: str | None = recipe(None, "split to evaluate on (default: validation, else val, dev or test)")
    train_split: str = recipe("train", "split that knn and linear_probe are fitted on")
    max_train_samples: int | None = recipe(None, "fit knn and linear_probe on this many examples only (default: all)")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, ("max_train_samples",), 1)


def check_background(background: str | None) -> None:
    """Raise if a background is given that is neither a colour nor `none`."""
    if background is not None:
        module_alone("hf_convnextv2", "images").background_color(background)


def module_alone(package: str, name: str) -> Any:
    """A module of a package without the package itself, which imports PyTorch."""
    (folder,) = find_spec(package).submodule_search_locations  # type: ignore[union-attr,misc]
    spec = spec_from_file_location(f"{package}_{name}", Path(folder) / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
