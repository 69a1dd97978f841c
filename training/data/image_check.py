"""Decodes every image once before training starts, and stores the result for later runs."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Value

from training.console.bars import Phase
from training.console.errors import is_first_process
from training.data.check_store import CheckStore, Stamps, stamps_of
from training.data.decoding import BadImageError, decode_image, fate_of_transparency
from training.data.sources import array_dtype, values_of
from training.settings.data import DataSettings

# The record of an image: its problem (empty: none), and true-or-false facts.
RECORD = Features({"problem": Value("string"), "is_transparent": Value("bool")})
FEW = 1000  # up to so many images are checked without other processes
CHUNK = 64  # images that a process checks at a time
BLOCK = 1024  # chunks in the queue of the processes
SECONDS_BETWEEN_SAVES = 60.0


class CheckedImages(NamedTuple):
    """A source without its unreadable images, their problems, and for each fact the number of images it is true of."""

    source: Dataset
    problems: list[str]
    counts: dict[str, int]


def check_images(source: Dataset, data: DataSettings, num_channels: int) -> CheckedImages:
    """Decode every image once, except images that an earlier run has checked and that have not changed since."""
    paths = local_paths(source, data.image_column)
    arguments = {"num_channels": num_channels, "dtype": array_dtype(source, data.image_column)}
    records = check_rows(source, data, arguments) if paths is None else check_files(paths, data, arguments)
    problems = records["problem"]
    is_good = pc.equal(problems, "").to_numpy()
    counts = {name: pc.sum(records[name]).as_py() or 0 for name in RECORD if name != "problem"}
    source = source if is_good.all() else source.select(np.flatnonzero(is_good))
    return CheckedImages(source, problems.filter(pc.not_equal(problems, "")).to_pylist(), counts)


def local_paths(source: Dataset, column: str) -> pa.ChunkedArray | None:
    """The paths of the images if all of them are local files; None if the rows hold the images or an address."""
    values = values_of(source, column)
    if pa.types.is_struct(values.type):
        if pc.struct_field(values, "bytes").null_count < len(values):
            return None
        values = pc.struct_field(values, "path")
    if values.type != pa.string() or values.null_count or pc.any(pc.match_substring(values, "://")).as_py():
        return None
    return values


def check_rows(source: Dataset, data: DataSettings, arguments: dict[str, Any]) -> pa.Table:
    """Records of images that the rows themselves hold; `datasets` caches the records."""
    with Phase("Checking images", len(source), " images"):
        checked = source.map(
            check_image,
            with_indices=True,
            input_columns=[data.image_column],
            remove_columns=source.column_names,
            features=RECORD,
            fn_kwargs=arguments,
            num_proc=data.num_workers if data.num_workers > 1 and len(source) > FEW else None,
            desc="Checking images",
        )
    return checked.with_format("arrow")[:]  # type: ignore[return-value]


def check_files(paths: pa.ChunkedArray, data: DataSettings, arguments: dict[str, Any]) -> pa.Table:
    """Records of images that are files, from the store or from a check now."""
    store = CheckStore(os.path.realpath(data.dataset_name), list(RECORD), PIL.__version__, *arguments.values())
    if is_first_process():
        stamps = stamps_of(paths)
        is_known = store.rows_of(paths, stamps) >= 0
        check_unknown(paths.filter(pa.array(~is_known)), stamps.where(~is_known), store, data, arguments)
    rows = store.rows_of(paths)
    if (rows < 0).any():  # this is another machine, which has its own disk
        unknown = paths.filter(pa.array(rows < 0))
        check_unknown(unknown, stamps_of(unknown), store, data, arguments)
        rows = store.rows_of(paths)
    assert store.table is not None
    return store.table.take(rows).select(list(RECORD))


def check_unknown(
    paths: pa.ChunkedArray, stamps: Stamps, store: CheckStore, data: DataSettings, arguments: dict[str, Any]
) -> None:
    """Decode the files and store their records, every minute so that an interrupted run loses little."""
    if not len(paths):
        return
    found: list[pa.Table] = []
    done, last_save = 0, time.monotonic()

    def save() -> None:
        nonlocal done, last_save
        records = pa.concat_tables(found)
        part = slice(done, done + len(records))
        store.add(paths.slice(done, len(records)), Stamps(stamps.sizes[part], stamps.times[part]), records)
        done, last_save = done + len(records), time.monotonic()
        found.clear()

    try:
        with Phase("Checking images", len(paths), " images") as phase:
            for records in check_in_processes(paths, data.num_workers, arguments):
                found.append(records)
                phase.update(len(records))
                if time.monotonic() - last_save > SECONDS_BETWEEN_SAVES:
                    save()
    finally:
        if found:
            save()


def check_in_processes(paths: pa.ChunkedArray, num_workers: int, arguments: dict[str, Any]) -> Iterator[pa.Table]:
    """Yield the records of `CHUNK` files at a time, in order, from `num_workers` processes."""
    check = partial(check_paths, **arguments)
    chunks = (paths.slice(start, CHUNK).to_pylist() for start in range(0, len(paths), CHUNK))
    if num_workers < 2 or len(paths) <= FEW:
        yield from map(check, chunks)
        return
    with ProcessPoolExecutor(num_workers) as pool:
        while block := list(islice(chunks, BLOCK)):
            yield from pool.map(check, block)


def check_paths(paths: list[str], num_channels: int, dtype: str | None) -> pa.Table:
    """The records of some files."""
    records = [check_image(path, index, num_channels, dtype) for index, path in enumerate(paths)]
    return pa.Table.from_pylist(records, schema=RECORD.arrow_schema)


def check_image(value: Any, index: int, num_channels: int, dtype: str | None) -> dict[str, Any]:
    """The record of an image; raises a `WrongChannelsError` if it has a wrong number of channels."""
    try:
        decoded = decode_image(value, num_channels, f"example {index}", dtype)
    except BadImageError as error:
        return {"problem": str(error), "is_transparent": False}
    return {"problem": "", "is_transparent": decoded.is_transparent}


def transparency_note(checked: CheckedImages | None, data: DataSettings) -> list[str]:
    """A line on what happens to transparent images; none if the check has found no transparent image."""
    if checked is None:
        return [f"images are not checked: transparent ones are {fate_of_transparency(data)}"]
    count, total = checked.counts["is_transparent"], len(checked.source)
    return [f"{count:,} of {total:,} images are transparent: {fate_of_transparency(data)}."] if count else []


def refuse_bad_images(problems: list[str], data: DataSettings) -> None:
    """Raise if there are unreadable images and skipping is off, or if there are more than `max_bad_images`."""
    count, most = len(problems), data.max_bad_images
    listed = "\n  ".join(problems[:20]) + ("\n  ..." if count > 20 else "")
    if problems and not data.skip_bad_images:
        files = "1 file" if count == 1 else f"{count:,} files"
        raise ValueError(f"{files} cannot be read as images; `--skip_bad_images` skips such files:\n  {listed}")
    if count > most:
        raise ValueError(f"`max_bad_images` (={most}) must be at least {count} to skip these:\n  {listed}")
