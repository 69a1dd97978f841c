"""Loads any source that `datasets` reads as rows with undecoded images, and reports its problems before training."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, IterableDataset, LargeList, List, Value, load_dataset
from datasets import load_dataset_builder as load_builder
from datasets.exceptions import DatasetGenerationError
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard
from yaml import YAMLError

from training.data.detection.coco import LAYOUTS, coco_files, coco_rows
from training.data.detection.metadata import refuse_mixed_classes, refuse_mixed_masks, with_whole_paths
from training.data.folders.listing import Listing, is_current, left_out, list_folder, not_images, refuse_mixture
from training.data.folders.masks import mask_rows, with_documents
from training.data.folders.rows import (
    array_rows,
    image_rows,
    metadata_of,
    refuse_other_csv,
    refuse_twice_named,
    split_at,
    stored_rows,
)
from training.data.folders.splits import divide, is_split, split_name
from training.data.tables import refuse_unlike_files
from training.settings.checks import check
from training.settings.data import FILE_BUILDERS, DataSettings, MaskedDataSettings, ObjectsDataSettings
from training.settings.labels import LabelSettings

Source = Dataset | IterableDataset
NOT_ARRAYS = ("string", "large_string", "binary", "large_binary", "null", "dict")


class Found(NamedTuple):
    """A source, its files that should be images but are not, and notes for the user."""

    source: Source
    problems: list[str]
    notes: list[str]


def load_source(data: DataSettings, split: str, max_samples: int | None) -> Source:
    """Load a split of a Hub data set, a local folder or local files, without decoding its images."""
    return limit(find_source(data, split).source, data, max_samples)


def find_source(data: DataSettings, split: str) -> Found:
    """Load a whole split, with its problems and notes on what is left out."""
    name = Path(data.dataset_name).expanduser()
    if name.is_dir():
        found = find_folder(data, str(name), split)
    elif name.suffix in FILE_BUILDERS:
        pattern = glob.escape(str(name)) if name.exists() else data.dataset_name  # a glob pattern or an address
        matched = sorted(glob.glob(pattern, recursive=True))
        refuse_unlike_files(matched, data.dataset_name, read=matched)
        files = {split: pattern}
        found = Found(load_split(data, split, FILE_BUILDERS[name.suffix], data_files=files), [], [])
    else:
        rule = f"be a folder of images, or files that hold them ({', '.join(FILE_BUILDERS)}), or a Hub id"
        check("dataset_name", data.dataset_name, not name.is_file(), rule)
        options = {"name": data.dataset_config_name, "revision": data.dataset_revision}
        found = Found(load_split(data, split, data.dataset_name, **options), [], [])
    source = found.source
    for setting in ("image_column", "annotation_column", "objects_column"):
        if hasattr(data, setting):
            check_column(source, setting, getattr(data, setting))
    for column in data.columns_of_images():
        if isinstance(features_of(source).get(column), Image):
            source = source.cast_column(column, Image(decode=False))
    return found._replace(source=source)


def limit(source: Source, data: DataSettings, max_samples: int | None) -> Source:
    """Keep at most `max_samples` examples: a random choice, or the first ones of a stream."""
    if max_samples is not None and isinstance(source, Dataset):
        # A folder lists one class after the other, so its first examples may all be of one class.
        return source.shuffle(seed=data.seed).select(range(min(max_samples, len(source))))
    return source if max_samples is None else first_examples(source, max_samples)  # type: ignore[arg-type]


def first_examples(source: IterableDataset, count: int) -> IterableDataset:
    """The first examples of a stream, as one shard.

    `take` alone divides the count among the shards, and gives fewer examples if a shard is too small.
    """
    taken = {"source": source.take(count)}
    first = IterableDataset.from_generator(rows_of, features=source.features, gen_kwargs=taken)
    first.info.splits = source.info.splits
    return first


def rows_of(source: IterableDataset) -> Iterator[dict[str, Any]]:
    """All rows of a stream, in each data loader worker; `iter(source)` would divide them among the workers."""
    for batch in source.iter(batch_size=1):
        yield {name: column[0] for name, column in batch.items()}  # type: ignore[union-attr]


def load_split(data: DataSettings, split: str, path: str, **arguments: Any) -> Source:
    """Call `datasets.load_dataset`; what it cannot load raises a `ValueError` that names the setting."""
    with named_source(data, split):
        source = load_dataset(path, split=split, streaming=data.streaming, **arguments)
    assert isinstance(source, Dataset | IterableDataset)
    return source


@contextmanager
def named_source(data: DataSettings, split: str) -> Iterator[None]:
    """Turn errors of `datasets` into a `ValueError` that names the setting."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"`dataset_name` (={data.dataset_name}) must hold a split `{split}`: {error}") from error
    except DatasetGenerationError as error:
        rule = "hold files that can be read, with the same columns in all files of one kind"
        raise ValueError(f"`dataset_name` (={data.dataset_name}) must {rule}: {error.__cause__ or error}") from error


def values_of(source: Dataset, column: str) -> pa.ChunkedArray:
    """A whole column as an Arrow array."""
    return source.select_columns([column]).with_format("arrow")[:][column]  # type: ignore[return-value]


def file_paths(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The paths in a column of images or masks that are not stored in the column itself; a text counts as a path."""
    if pa.types.is_struct(values.type) and {"bytes", "path"} <= set(values.type.names):
        path = pc.struct_field(values, "path")
        return path.filter(pc.and_(pc.is_null(pc.struct_field(values, "bytes")), pc.is_valid(path)))
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return values.drop_null()
    return pa.chunked_array([], pa.string())


def fingerprint_of(source: Source) -> str | None:
    """A text that differs for other rows; None for a stream."""
    return source._fingerprint if isinstance(source, Dataset) else None


def have_own_names(source: Source, column: str) -> bool:
    """Whether no two stored images have the same path. The paths of a stream are not known beforehand."""
    if not isinstance(source, Dataset):
        return True
    values = values_of(source, column)
    has_paths = pa.types.is_struct(values.type) and "path" in values.type.names
    paths = (pc.struct_field(values, "path") if has_paths else values).drop_null()
    is_text = pa.types.is_string(paths.type) or pa.types.is_large_string(paths.type)
    return not is_text or len(pc.unique(paths)) == len(paths)


def features_of(source: Source) -> Features:
    """The types of the columns; "null" for each if a stream does not know them yet (JSON lines, a generator)."""
    if source.features is not None:
        return source.features
    return Features({name: Value("null") for name in next(iter(source))})


def array_dtype(source: Source, column: str) -> str | None:
    """The number type of a column of arrays or nested lists; None for images and files."""
    feature: Any = features_of(source)[column]
    while isinstance(feature, List | LargeList):
        feature = feature.feature
    dtype = getattr(feature, "dtype", None)
    return None if isinstance(feature, Image) or dtype in NOT_ARRAYS else dtype


def check_column(source: Source, setting: str, column: str) -> None:
    """Raise unless the data set has the column that a setting names."""
    columns = list(features_of(source))
    check(setting, column, column in columns, f"be a column of the data set, which has {', '.join(columns)}")


def num_examples(sources: Sequence[Source], split: str, max_samples: int | None) -> int | None:
    """The number of examples in all sources; for a stream, the number that its publisher states, else None."""
    total = 0
    for source in sources:
        if isinstance(source, Dataset):
            total += len(source)
            continue
        known = (source.info.splits or {}).get(split)
        if known is None or not known.num_examples:
            return None
        total += known.num_examples if max_samples is None else min(known.num_examples, max_samples)
    return total


def local_splits(data: DataSettings) -> list[str] | None:
    """The splits of a local folder of images or arrays; None for any other data set."""
    folder = Path(data.dataset_name).expanduser()
    if not folder.is_dir():
        return None
    listing = listing_of(str(folder))
    if isinstance(data, ObjectsDataSettings) and (files := coco_files(listing, data, data.named_splits())):
        return list(files)
    if listing.arrays:
        tops = {run.parts[0] for run in listing.arrays if run.parts}
        return sorted(name for name in tops if is_split(name)) or ["train"]
    if not listing.images or has_own_splits(str(folder)):
        return None
    return list(dict.fromkeys(part.split for part in divide(listing, data.named_splits())))


def find_folder(data: DataSettings, folder: str, split: str) -> Found:
    """Load a split of a local folder; `datasets` reads a folder of other files than images and arrays."""
    asked = sorted({split, *data.named_splits()})
    is_cached = not isinstance(data, MaskedDataSettings | ObjectsDataSettings)
    rows = stored_rows(folder, split, asked) if is_cached else None
    if rows is not None:
        return Found(as_asked(rows.rows, data, split), [], [])
    listing = listing_of(folder)
    if isinstance(data, ObjectsDataSettings) and (coco := coco_rows(listing, data, split, asked)) is not None:
        return Found(as_asked(coco.rows, data, split), coco.problems, coco.notes + left_out(listing))
    refuse_mixture(listing)
    if listing.arrays:
        return Found(as_asked(array_rows(listing, split), data, split), [], left_out(listing))
    as_told = has_own_splits(folder)
    if not listing.images or as_told:
        notes = ["files and splits are those that its README.md names"] if as_told else []
        return Found(load_data_files(data, listing, folder, split), [], notes)
    listing = with_documents(listing) if isinstance(data, MaskedDataSettings) else listing
    problems = not_images(listing, lambda name: split_at(name, asked) not in (None, split, split_name(split)))
    described = metadata_of(listing, split, asked)
    if described.files:
        source = load_described(data, listing, split, described.files)
        unnamed = described.num_images - len(source) if isinstance(source, Dataset) else 0
        notes = [f"left out: {unnamed:,} images that the metadata files do not name"] if unnamed > 0 else []
        return Found(source, problems, notes + left_out(listing))
    check(
        "dataset_name", folder, not isinstance(data, ObjectsDataSettings), f"hold the objects of its images: {LAYOUTS}"
    )
    if isinstance(data, MaskedDataSettings):
        rows = mask_rows(listing, split, asked, data.annotation_column)
    else:
        rows = image_rows(listing, split, asked)
    return Found(as_asked(rows.rows, data, split), problems, rows.notes + left_out(listing))


def load_described(data: DataSettings, listing: Listing, split: str, files: list[str]) -> Source:
    """Load the images that metadata files name; raises a `ValueError` if they cannot be read."""
    refuse_other_csv(listing.root, files)
    try:
        source = load_split(data, split, "imagefolder", data_files={split: [*map(glob.escape, files)]})
    except ValueError:
        if isinstance(data, ObjectsDataSettings):
            refuse_mixed_classes(listing.root, files, data.objects_column)
            refuse_mixed_masks(listing.root, files, data.objects_column)
        raise
    if isinstance(data, LabelSettings):
        refuse_twice_named(listing.root, files, "labels, as a list if they are several")
    if isinstance(data, ObjectsDataSettings):
        refuse_twice_named(listing.root, files, "objects")
        source = with_whole_paths(source, files, data.objects_column)
    return source


def load_data_files(data: DataSettings, listing: Listing, folder: str, split: str) -> Source:
    """Load a folder with `datasets`: parquet, arrow or webdataset files, or a README.md that defines the splits.

    Raises a `ValueError` if a file is in no split.
    """
    special = re.search(r"[*?\[\]]", folder)
    check("dataset_name", folder, special is None, f"have no `{special and special[0]}` in it: rename a folder")
    with named_source(data, split):
        builder = load_builder(folder, name=data.dataset_config_name)
    taken = builder.config.data_files or {}
    used = [str(file) for files in taken.values() for file in files]
    # A README.md may say which columns there are. A stream reads no other split's files.
    is_told = builder.info.features is not None or getattr(builder.config, "columns", None) is not None
    read = [str(file) for file in taken.get(split, [])] if data.streaming else used
    refuse_unlike_files(used, folder, listing.root, read=[] if is_told else read)
    source = load_split(data, split, folder, name=data.dataset_config_name)
    if isinstance(data, ObjectsDataSettings):
        files = [os.path.join(listing.root, name) for name in listing.metadata]
        source = with_whole_paths(source, files, data.objects_column)
    if not has_own_splits(folder):
        stored = [f"{listing.root}/{run.folder}/{name}" for run in listing.tables for name in run.names.to_pylist()]
        in_split = set(used)
        unused = ", ".join([file for file in map(os.path.normpath, stored) if file not in in_split][:5])
        rule = f"have each of its files in a split, but {unused} is in none: {', '.join(map(str, taken))} are found by "
        rule += "the names of files and folders. Name it after a split as well, or move it elsewhere"
        check("dataset_name", folder, not unused, rule)
    return source


def as_asked(rows: Dataset, data: DataSettings, split: str) -> Source:
    """The rows, or with `streaming` a stream of them that knows its number of examples."""
    if not data.streaming:
        return rows
    stream = rows.to_iterable_dataset()
    stream.info.splits = SplitDict({split: SplitInfo(split, num_examples=len(rows))})
    return stream


_latest: list[Listing] = []  # cache of one listing: a run needs the same folder several times


def listing_of(folder: str) -> Listing:
    """The listing of a folder; the latest one is reused as long as no folder in it has changed."""
    if not _latest or _latest[0].root != os.path.realpath(folder) or not is_current(_latest[0]):
        _latest[:] = [list_folder(folder)]
    return _latest[0]


def has_own_splits(folder: str) -> bool:
    """Whether the folder's README.md assigns files to splits, as a data set card on the Hub can.

    Raises a `ValueError` if it cannot be read: `datasets` would not read the folder then.
    """
    readme = Path(folder, "README.md")
    try:
        return readme.is_file() and bool(MetadataConfigs.from_dataset_card_data(DatasetCard.load(readme).data))  # type: ignore[arg-type]
    except (YAMLError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        rule = "have a README.md in UTF-8, with nothing but YAML between lines `---` at its top, or none, but "
        raise ValueError(f"`dataset_name` (={folder}) must {rule}{' '.join(str(error).split())}.") from error
