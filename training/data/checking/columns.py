"""Checks every value of a column once before training starts, and stores the results for later runs."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import PIL
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features

from training.console.bars import Phase
from training.console.errors import is_first_process
from training.data.checking.store import CheckStore, Stamps, stamps_of
from training.data.sources import values_of
from training.settings.data import DataSettings

FEW = 1000  # up to so many values are checked without other processes
CHUNK = 64  # values that a process checks at a time
BLOCK = 1024  # chunks in the queue of the processes
SECONDS_BETWEEN_SAVES = 60.0


class Check(NamedTuple):
    """How the values of a column are checked.

    subject: what they are, as text.
    record: the types of what `function(value, index, **arguments)` returns. Its `problem` is empty if there is none.
    """

    subject: str
    record: Features
    function: Callable[..., dict[str, Any]]
    arguments: dict[str, Any]


def check_column(source: Dataset, column: str, check: Check, data: DataSettings) -> pa.Table:
    """The record of every value of a column, from an earlier run unless the file has changed since."""
    paths = local_paths(source, column)
    return check_rows(source, column, check, data) if paths is None else check_files(paths, check, data)


def local_paths(source: Dataset, column: str) -> pa.ChunkedArray | None:
    """The paths of the values if all of them are local files; None if the rows hold the values or an address."""
    values = values_of(source, column)
    if pa.types.is_struct(values.type):
        if pc.struct_field(values, "bytes").null_count < len(values):
            return None
        values = pc.struct_field(values, "path")
    if values.type != pa.string() or values.null_count or pc.any(pc.match_substring(values, "://")).as_py():
        return None
    return values


def check_rows(source: Dataset, column: str, check: Check, data: DataSettings) -> pa.Table:
    """Records of values that the rows themselves hold; `datasets` caches the records."""
    if not len(source):
        return check.record.arrow_schema.empty_table()
    with Phase(f"Checking {check.subject}", len(source), f" {check.subject}"):
        checked = source.map(
            check.function,
            with_indices=True,
            input_columns=[column],
            remove_columns=source.column_names,
            features=check.record,
            fn_kwargs=check.arguments,
            num_proc=data.num_workers if data.num_workers > 1 and len(source) > FEW else None,
            desc=f"Checking {check.subject}",
        )
    return checked.with_format("arrow")[:]  # type: ignore[return-value]


def check_files(paths: pa.ChunkedArray, check: Check, data: DataSettings) -> pa.Table:
    """Records of files, from the store or from a check now."""
    if not len(paths):
        return check.record.arrow_schema.empty_table()
    key = (os.path.realpath(data.dataset_name), list(check.record), PIL.__version__, *check.arguments.values())
    store = CheckStore(*key)
    if is_first_process():
        stamps = stamps_of(paths)
        is_known = store.rows_of(paths, stamps) >= 0
        check_unknown(paths.filter(pa.array(~is_known)), stamps.where(~is_known), store, check, data.num_workers)
    rows = store.rows_of(paths)
    if (rows < 0).any():  # this is another machine, which has its own disk
        unknown = paths.filter(pa.array(rows < 0))
        check_unknown(unknown, stamps_of(unknown), store, check, data.num_workers)
        rows = store.rows_of(paths)
    assert store.table is not None
    return store.table.take(rows).select(list(check.record))


def check_unknown(paths: pa.ChunkedArray, stamps: Stamps, store: CheckStore, check: Check, num_workers: int) -> None:
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
        with Phase(f"Checking {check.subject}", len(paths), f" {check.subject}") as phase:
            for records in check_in_processes(paths, check, num_workers):
                found.append(records)
                phase.update(len(records))
                if time.monotonic() - last_save > SECONDS_BETWEEN_SAVES:
                    save()
    finally:
        if found:
            save()


def check_in_processes(paths: pa.ChunkedArray, check: Check, num_workers: int) -> Iterator[pa.Table]:
    """Yield the records of `CHUNK` files at a time, in order, from `num_workers` processes."""
    check_chunk = partial(check_paths, check=check)
    chunks = (paths.slice(start, CHUNK).to_pylist() for start in range(0, len(paths), CHUNK))
    if num_workers < 2 or len(paths) <= FEW:
        yield from map(check_chunk, chunks)
        return
    with ProcessPoolExecutor(num_workers) as pool:
        while block := list(islice(chunks, BLOCK)):
            yield from pool.map(check_chunk, block)


def check_paths(paths: list[str], check: Check) -> pa.Table:
    """The records of some files."""
    records = [check.function(path, index, **check.arguments) for index, path in enumerate(paths)]
    return pa.Table.from_pylist(records, schema=check.record.arrow_schema)
