"""Any `datasets` source as rows whose images are not decoded yet; what is wrong with it is said before training."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, LargeList, List, Value, load_dataset
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from training.config import FILE_BUILDERS, DataConfig, check

Source = Dataset | IterableDataset
NOT_ARRAYS = ("string", "large_string", "binary", "large_binary", "null", "dict")
FOLDER_METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}


def load_source(config: DataConfig, split: str, max_samples: int | None) -> Source:
    """A split of a Hub data set, a local folder, or local files, with the image column left undecoded."""
    name = Path(config.dataset_name)
    if name.suffix in FILE_BUILDERS:
        files = {split: config.dataset_name}
        source = load_split(config, split, FILE_BUILDERS[name.suffix], data_files=files)
    elif name.is_dir() and is_array_folder(name):
        source = load_array_folder(name, split)
        source = source.to_iterable_dataset() if config.streaming else source
    else:
        if name.is_dir():
            list_files(name)  # `datasets` leaves out what may not be read
        name, revision = config.dataset_config_name, config.dataset_revision
        source = load_split(config, split, config.dataset_name, name=name, revision=revision)
    check_column(source, "image_column", config.image_column)
    if isinstance(features_of(source).get(config.image_column), Image):
        source = source.cast_column(config.image_column, Image(decode=False))
    if max_samples is not None and isinstance(source, Dataset):
        # A folder lists one class after the other: its first examples would be one class.
        return source.shuffle(seed=config.seed).select(range(min(max_samples, len(source))))
    return source if max_samples is None else first_examples(source, max_samples)  # type: ignore[arg-type]


def first_examples(source: IterableDataset, count: int) -> IterableDataset:
    """A stream's first examples as one shard: `take` alone is divided among shards of any size, and comes out short."""
    taken = {"source": source.take(count)}
    first = IterableDataset.from_generator(rows_of, features=source.features, gen_kwargs=taken)
    first.info.splits = source.info.splits
    return first


def rows_of(source: IterableDataset) -> Iterator[dict[str, Any]]:
    """A stream's rows; unlike `iter(source)`, which shares them among the loading processes, all of them in each."""
    for batch in source.iter(batch_size=1):
        yield {name: column[0] for name, column in batch.items()}  # type: ignore[union-attr]


def load_split(config: DataConfig, split: str, path: str, **arguments: Any) -> Source:
    """`datasets.load_dataset`; what it misses is said with the setting's name."""
    try:
        source = load_dataset(path, split=split, streaming=config.streaming, **arguments)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"`dataset_name` (={config.dataset_name}) must hold a split `{split}`: {error}") from error
    assert isinstance(source, Dataset | IterableDataset)
    return source


def features_of(source: Source) -> Features:
    """The columns' types; a stream that does not know them yet (json lines, a generator) names its columns only."""
    if source.features is not None:
        return source.features
    return Features({name: Value("null") for name in next(iter(source))})


def array_dtype(source: Source, column: str) -> str | None:
    """Number type of a column of arrays or nested lists; None for images and files."""
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
    """Examples of all sources; of a stream, what its publisher says, if anything."""
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


def foreign_files(folder: Path) -> list[str]:
    """The files of a folder of images that are none by their name: `datasets` leaves them out in silence."""
    files = [file for file in list_files(folder) if not is_hidden(file.relative_to(folder))]
    images = [file for file in files if file.suffix.lower() in ImageFolder.EXTENSIONS]
    if not images:
        return []  # a folder of parquet or webdataset files
    return [str(file) for file in files if file not in set(images) and file.name not in FOLDER_METADATA]


def list_files(folder: Path) -> list[Path]:
    """All files of a folder; raises where a part of it may not be read."""

    def refuse(error: OSError) -> None:
        check("dataset_name", folder, False, f"be readable, but {error.filename} is not: {error.strerror}")

    walk = os.walk(folder, onerror=refuse)  # `Path.rglob` would leave out what it may not read
    return sorted(Path(root, name) for root, _, names in walk for name in names)


def is_hidden(path: Path) -> bool:
    """Whether a file or a folder above it has a hidden name: .DS_Store, .cache, __MACOSX."""
    return any(part.startswith((".", "__")) for part in path.parts)


def is_array_folder(folder: Path) -> bool:
    """Whether a folder holds .npy arrays, which `datasets` does not list."""
    return next(folder.rglob("*.npy"), None) is not None


def load_array_folder(folder: Path, split: str) -> Dataset:
    """A folder of .npy files as paths, with classes after subfolders; a subfolder may be named after the split."""
    root = folder / split if (folder / split).is_dir() else folder
    check("train_split", split, root != folder or split == "train", f"be a folder in {folder}, which holds arrays")
    files = sorted(root.rglob("*.npy"))
    columns: dict[str, Any] = {"image": [str(file) for file in files]}
    if all(file.parent != root for file in files):
        classes = sorted({file.relative_to(root).parts[0] for file in files})
        labels = [classes.index(file.relative_to(root).parts[0]) for file in files]
        features = Features({"image": Value("string"), "label": ClassLabel(names=classes)})
        return Dataset.from_dict({**columns, "label": labels}, features=features)
    return Dataset.from_dict(columns)
