"""What the check of images found in each file, kept for the next run: by path, size and time of the last change."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)
import os
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.console.bars import Phase
from training.data.folders.rows import cache_folder, cache_key, write_table

MISSING = -1  # size and time of a file that is not there


class Stamps(NamedTuple):
    """Size in bytes and time of the last change in ns of each file, `(N,)` int64."""

    sizes: np.ndarray
    times: np.ndarray

    def where(self, chosen: np.ndarray) -> "Stamps":
        """Those of some of the files, by `(N,)` bool."""
        return Stamps(self.sizes[chosen], self.times[chosen])


def stamps_of(paths: pa.ChunkedArray) -> Stamps:
    """Look at every file, but not into it."""
    sizes, times = array("q"), array("q")
    with Phase("Looking for changed images", len(paths)) as phase:
        for chunk in paths.chunks:
            for path in chunk.to_pylist():
                try:
                    status = os.stat(path)
                    sizes.append(status.st_size)
                    times.append(status.st_mtime_ns)
                except OSError:
                    sizes.append(MISSING)
                    times.append(MISSING)
            phase.update(len(chunk))
    return Stamps(np.array(sizes), np.array(times))


class CheckStore:
    """Records of files in an Arrow file of their own for each data set and way of decoding."""

    def __init__(self, *key: object) -> None:
        self.path: Path = cache_folder() / f"checked-{cache_key(*key)}.arrow"
        self.table: pa.Table | None = None
        if self.path.exists():
            self.table = pa.ipc.open_stream(self.path.read_bytes()).read_all()

    def rows_of(self, paths: pa.ChunkedArray, stamps: Stamps | None = None) -> np.ndarray:
        """The row of each file's record, `(N,)`; -1 where there is none.

        With `stamps` also where the file has changed since; and where something was wrong: that may have been mended,
        as by a permission, without a trace.
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
        """Put records beside those of other files, for this run and, on the disk, for others."""
        new = pa.table({"path": paths, "size": stamps.sizes, "time": stamps.times})
        for name in records.column_names:
            new = new.append_column(name, records[name])
        if self.table is not None:
            others = self.table.filter(pc.invert(pc.is_in(self.table["path"], value_set=paths.combine_chunks())))
            new = pa.concat_tables([others, new])
        self.table = new
        write_table(new, self.path)
