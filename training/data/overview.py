"""Prints an overview of the images at the start: their number, their classes, and what is left out and why."""

from collections import Counter
from collections.abc import Sequence

from datasets import ClassLabel, Dataset

from training.console.errors import is_first_process
from training.data.folders.splits import shorten, split_name
from training.data.sources import Source, features_of, values_of
from training.settings.data import DataSettings, MaskedDataSettings, ObjectsDataSettings
from training.settings.labels import SINGLE_LABEL

MAX_NAMED = 20  # skipped files that are listed
MAX_CLASSES = 12


def print_overview(
    data: DataSettings, split: str, source: Source, found: int | None, notes: Sequence[str], problems: Sequence[str]
) -> None:
    """Print, in the first training process, which of the `found` images are used and which are left out."""
    if not is_first_process():
        return
    lines = [f"Split {split} of {data.dataset_name}: {size_of(source, found)}{classes_of(data, source)}"]
    lines += [f"  {note}" for note in [*notes, *known_splits(source, split)]]
    if problems:
        lines.append(f"Skipping {' that '.join(unusable(len(problems), data))}:")
        lines += [f"  {problem}" for problem in problems]
    print("\n".join(lines), flush=True)


def unusable(count: int, data: DataSettings) -> tuple[str, str]:
    """The number of files that cannot be used, and what is wrong with them: they, or their annotations, as text."""
    files, whose = ("1 file", "its") if count == 1 else (f"{count:,} files", "their")
    if isinstance(data, MaskedDataSettings):
        return files, f"cannot be used with {whose} {'mask' if count == 1 else 'masks'}"
    if isinstance(data, ObjectsDataSettings):
        return files, f"cannot be used with {whose} objects"
    return files, "cannot be read as images"


def size_of(source: Source, found: int | None) -> str:
    """The number of images that are used, as text."""
    if isinstance(source, Dataset):
        some = found is not None and len(source) < found
        return f"{len(source):,} of {found:,} images" if some else f"{len(source):,} images"
    return "a stream" if found is None else f"a stream of {found:,} images"


def classes_of(data: DataSettings, source: Source) -> str:
    """The classes and the number of images of each, as text; empty if the classes are not known."""
    column = getattr(data, "label_column", "label")
    has_classes = isinstance(column, str) and getattr(data, "problem_type", None) in (None, SINGLE_LABEL)
    feature = features_of(source).get(column) if has_classes and source.features is not None else None
    if feature is None:  # other labels are counted where they are checked
        return ""
    names = feature.names if isinstance(feature, ClassLabel) else None
    if not isinstance(source, Dataset):
        return f", {len(names):,} classes" if names else ""
    if not names and getattr(feature, "dtype", None) not in ("string", "large_string", "int64", "int32", "bool"):
        return ""
    counted = {entry["values"]: entry["counts"] for entry in values_of(source, column).value_counts().to_pylist()}
    if names:
        named = Counter({name: counted.get(label, 0) for label, name in enumerate(names)})
    else:
        named = Counter({str(value): count for value, count in counted.items()})
    return f", {len(named):,} classes: {shorten(named, MAX_CLASSES)}"


def known_splits(source: Source, split: str) -> list[str]:
    """A line for each other split that `datasets` lists for this data set."""
    others = [info for name, info in (source.info.splits or {}).items() if name not in (split, split_name(split))]
    return [f"left out: {info.num_examples or 'some'} images of split {info.name}" for info in others]
