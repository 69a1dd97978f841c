"""The labelled images of a comparison: those whose labels are drawn, and those that every start is compared on."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Image, LargeList, List
from sklearn.model_selection import train_test_split

from conversion.split_names import HELD_OUT
from training.comparison.subsets import undecoded, write_parquet
from training.data.checking.store import digest_of_files
from training.data.labels import check_labels, label_array, label_mapping, resolve_labels
from training.data.samples import load_images
from training.data.sources import Source, features_of, file_paths, find_source, values_of
from training.data.splits import check_split, split_names
from training.settings.checks import check
from training.settings.comparison import CompareDataSettings
from training.settings.data import FILE_BUILDERS
from training.settings.labels import SINGLE_LABEL

FEW = 20  # held-out images of a class: with fewer, an interval of theirs is rough
MOST_NAMED = 8


class Labelled(NamedTuple):
    """Images with the columns `image` and `label`, of the same classes.

    held_out: which images the held-out ones are, in words.
    """

    train: Dataset
    test: Dataset
    held_out: str

    @property
    def names(self) -> list[str]:
        """The names of the classes."""
        return self.train.features["label"].names

    @property
    def fingerprint(self) -> str:
        """What tells these images and labels from others: classes, what is stored in tables, and files by their path,
        size and time of the last change.
        """
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            digest.update(f"{len(part)} {self.names} {part['label'][:]}".encode())
            digest.update(digest_of_files(self.files_of(part)).encode())
            stored: Any = undecoded(part).select_columns(["image"]).with_format("arrow")
            for rows in stored.iter(batch_size=1000):
                for batch in rows.combine_chunks().to_batches():
                    digest.update(batch.serialize())
        return digest.hexdigest()

    @staticmethod
    def files_of(part: Dataset) -> pa.ChunkedArray:
        """The paths of the images that are files of their own."""
        return file_paths(values_of(undecoded(part), "image"))


def load_labelled(data: CompareDataSettings, num_channels: int) -> Labelled:
    """Read and check the images and labels of both parts.

    Raises:
        ValueError: if labels are missing, a class has no image to train on, or there is one class alone.
    """
    rule = f"be {SINGLE_LABEL}: starts are compared by balanced accuracy"
    check("problem_type", data.problem_type, data.problem_type in (None, SINGLE_LABEL), rule)
    data = replace(data, eval_split=find_eval_split(data))
    found = find_source(data, data.train_split)
    column = data.one_label_column()
    feature: Any = features_of(found.source).get(column)
    is_list = isinstance(feature, List | LargeList)
    check("label_column", column, not is_list, "hold one class for each image, not a list of them")
    names = resolve_labels(found.source, column, None, found.notes)
    train = with_labels(load_images(data, data.train_split, None, num_channels), data, names)
    if data.eval_split is None:
        rule = "be left out without a split to compare on: `train_val_split` says how many images are held out"
        check("max_eval_samples", data.max_eval_samples, data.max_eval_samples is None, rule)
        train, test = hold_out(train, names, data)
        held_out = f"{len(test):,} images, {data.train_val_split:.0%} of split `{data.train_split}`"
    else:
        test = with_labels(load_images(data, data.eval_split, data.max_eval_samples, num_channels), data, names)
        held_out = f"{len(test):,} images of split `{data.eval_split}`"
    return Labelled(*of_classes_with_images(train, test, names, data), held_out)


def find_eval_split(data: CompareDataSettings) -> str | None:
    """The split to compare on: as given, else the first of `HELD_OUT` that there is; None to hold images out."""
    if data.eval_split is not None:
        check_split(data, "eval_split", data.eval_split)
        return data.eval_split
    if Path(data.dataset_name).suffix in FILE_BUILDERS:  # files are one split
        return None
    names = [name for name in split_names(data) if name != data.train_split]
    return next((name for name in HELD_OUT if name in names), None)


def with_labels(source: Source, data: CompareDataSettings, names: list[str]) -> Dataset:
    """The columns `image` and `label` of a source, with the numbers of the classes `names`."""
    assert isinstance(source, Dataset)
    column = data.one_label_column()
    check_labels(source, column, names)
    mapping = label_mapping(source, column, names)
    if mapping is None:
        labels = label_array(source, column).tolist()
    else:
        labels = [mapping[value] for value in values_of(source, column).to_pylist()]
    rows = source.select_columns([data.image_column])
    if data.image_column != "image":
        rows = rows.rename_column(data.image_column, "image")
    if isinstance(rows.features["image"], Image):
        rows = rows.cast_column("image", Image())
    return rows.add_column("label", labels).cast_column("label", ClassLabel(names=names))  # type: ignore[arg-type]


def hold_out(rows: Dataset, names: list[str], data: CompareDataSettings) -> tuple[Dataset, Dataset]:
    """The rows to train on and a share of them to compare on, with the same share of each class."""
    labels, share = np.array(rows["label"][:]), data.train_val_split
    counts = np.bincount(labels, minlength=len(names))
    alone = [name for name, count in zip(names, counts, strict=True) if count == 1]
    rule = f"leave images of each class on both sides, but {', '.join(alone[:8])} has one image alone"
    check("train_val_split", share, not alone, rule)
    num_classes, held_out = int((counts > 0).sum()), ceil(share * len(rows))
    rule = f"give both sides at least {num_classes} of the {len(rows)} images, one for each class"
    check("train_val_split", share, min(held_out, len(rows) - held_out) >= num_classes, rule)
    parts = train_test_split(np.arange(len(rows)), test_size=share, random_state=data.seed, stratify=labels)
    return rows.select(np.sort(parts[0])), rows.select(np.sort(parts[1]))


def of_classes_with_images(
    train: Dataset, test: Dataset, names: list[str], data: CompareDataSettings
) -> tuple[Dataset, Dataset]:
    """Both parts with the classes that have training images alone; raises if held-out images are of another one."""
    counts, held_out = (np.bincount(part["label"][:], minlength=len(names)) for part in (train, test))
    known = np.flatnonzero(counts)
    only = ", ".join(names[label] for label in known)
    check("label_column", data.label_column, len(known) > 1, f"have two classes or more, but all images are {only}")
    strange = [names[label] for label in np.flatnonzero((counts == 0) & (held_out > 0))][:8]
    rule = f"hold an image of each class to train on, but has none of {', '.join(strange)}, which are held out"
    check("train_split", data.train_split, not strange, rule)
    rule = "hold images of two classes or more to compare on"
    check("eval_split", data.eval_split or f"{data.train_val_split:g} of it", (held_out > 0).sum() > 1, rule)
    if len(known) < len(names):
        print(f"Left out: {len(names) - len(known):,} classes without an image.", flush=True)
    note = few_held_out([names[label] for label in known], held_out[known].tolist())
    if note is not None:
        print(note, flush=True)
    numbers = {int(label): number for number, label in enumerate(known)}
    feature = ClassLabel(names=[names[label] for label in known])
    parts = [renumbered(part, numbers, feature) for part in (train, test)]
    return parts[0], parts[1]


def few_held_out(names: Sequence[str], counts: Sequence[int]) -> str | None:
    """A note on the classes that have few held-out images; None if there are none."""
    few = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < FEW]
    more = ", ..." if len(few) > MOST_NAMED else ""
    return f"Few held-out images, so that intervals are rough: {', '.join(few[:MOST_NAMED])}{more}" if few else None


def renumbered(rows: Dataset, numbers: dict[int, int], feature: ClassLabel) -> Dataset:
    """The rows with other numbers of the same classes."""
    if len(feature.names) == len(rows.features["label"].names):
        return rows
    labels = [numbers[label] for label in rows["label"]]
    return rows.remove_columns("label").add_column("label", labels).cast_column("label", feature)  # type: ignore[arg-type]


def write_images(labelled: Labelled, folder: Path) -> None:
    """Write `labelled/{train,test}.parquet` and `unlabelled/train.parquet`; files of images stay where they are."""
    if not (folder / "labelled/test.parquet").is_file():
        write_parquet(labelled.train, folder / "labelled/train.parquet")
        write_parquet(labelled.train.select_columns(["image"]), folder / "unlabelled/train.parquet")
        write_parquet(labelled.test, folder / "labelled/test.parquet")
