"""Stores the result of the image check for later runs, by each file's path, size and time of the last change."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
import hashlib
import os
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.console.bars import Phase
from training.data.folders.rows import cache_folder, cache_key, write_table

MISSING = -1  # size and time of a file that does not exist


class Stamps(NamedTuple):
    """The size in bytes and the time of the last change in ns of each file, `(N,)` int64."""

    sizes: np.ndarray
    times: np.ndarray

    def where(self, chosen: np.ndarray) -> "Stamps":
        """The stamps of the files that `chosen`, `(N,)` bool, selects."""
        return Stamps(self.sizes[chosen], self.times[chosen])


def stamps_of(paths: pa.ChunkedArray) -> Stamps:
    """Return the size and time of every file, without reading its content."""
    sizes, times = array("q"), array("q")
    with Phase("Looking for changed images", len(paths)) as phase:
        for chunk in paths.chunks:
            for path in chunk.to_pylist():
                try:
                    status = os.stat(path)
                    sizes.append(status.st_size)
                    times.append(status.st_mtime_ns)
                except (OSError, ValueError):  # no path at all
                    sizes.append(MISSING)
                    times.append(MISSING)
            phase.update(len(chunk))
    return Stamps(np.array(sizes), np.array(times))


def digest_of_files(paths: pa.ChunkedArray) -> str:
    """A text that differs if one of the files has another size or has changed since."""
    stamps = stamps_of(paths)
    return hashlib.sha256(stamps.sizes.tobytes() + stamps.times.tobytes()).hexdigest()[:16]


class CheckStore:
    """Records of checked files, in one Arrow file for each data set and each way of decoding."""

    def __init__(self, *key: object) -> None:
        self.path: Path = cache_folder() / f"checked-{cache_key(*key)}.arrow"
        self.table: pa.Table | None = None
        if self.path.exists():
            self.table = pa.ipc.open_stream(self.path.read_bytes()).read_all()

    def rows_of(self, paths: pa.ChunkedArray, stamps: Stamps | None = None) -> np.ndarray:
        """The row of each file's record, `(N,)`; -1 for a file without a record.

        With `stamps`, also -1 for a file that has changed since its check, and for one that had a problem: a problem
        can be solved without a change of the file, e.g. by a permission.
        """
        if self.table is None:
            return np.full(len(paths), -1)
        rows = pc.index_in(paths, value_set=self.table["path"].combine_chunks()).fill_null(-1).to_numpy()
        if stamps is None or not len(self.table):
            return rows
        sizes, times = (self.table[name].to_numpy()[rows] for name in ("size", "time"))
        was_good = pc.equal(self.table["problem"], "").to_numpy()[rows]
        return np.where((sizes == stamps.sizes) & (times == stamps.times) & was_good, rows, -1)

    def add(self, paths: pa.ChunkedArray, stamps: Stamps, records: pa.Table) -> None:
        """Add the records of files, or replace older ones, in memory and in the stored file."""
        new = pa.table({"path": paths, "size": stamps.sizes, "time": stamps.times})
        for name in records.column_names:
            new = new.append_column(name, records[name])
        if self.table is not None:
            others = self.table.filter(pc.invert(pc.is_in(self.table["path"], value_set=paths.combine_chunks())))
            new = pa.concat_tables([others, new])
        self.table = new
        write_table(new, self.path)
