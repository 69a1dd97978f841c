"""Files of features: parts of an unfinished run, .parquet, and .npy with the names of the images beside it."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy_format

from conversion.files import atomic_path, flush, write_json
from training.prediction.parts import MOST_RECORDS, Answer, Parts
from training.settings.embedding import NPY, files_beside

ABOUT = b"embedding"  # of the metadata of a .parquet file: the settings as JSON
PART_BYTES = 64 * 2**20  # of features in memory


@dataclass
class FeatureTables:
    """How features are stored in parts, as Arrow files: `image`, a column of fixed-size lists each, and `error`.

    shapes: of an image's features, by column.
    about: what the features are, for the metadata of the file.
    """

    shapes: dict[str, tuple[int, ...]]
    dtype: str
    about: dict[str, Any]

    suffix = ".arrow"

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        columns = {name: type_of(shape, self.dtype) for name, shape in self.shapes.items()}
        metadata = {ABOUT: json.dumps(self.about).encode()}
        return pa.schema({"image": pa.string(), **columns, "error": pa.string()}, metadata=metadata)

    @property
    def most_answers(self) -> int:
        size = np.dtype(self.dtype).itemsize * sum(int(np.prod(shape)) for shape in self.shapes.values())
        return max(1, min(MOST_RECORDS, PART_BYTES // size))

    def write(self, file: Path, answers: list[Answer]) -> None:
        with pa.OSFile(str(file), "wb") as stream, pa.ipc.new_file(stream, self.schema) as writer:
            writer.write_table(self.table(answers))

    def read(self, file: Path) -> Iterator[pa.Table]:
        with pa.memory_map(str(file)) as stream:
            yield pa.ipc.open_file(stream).read_all()

    def table(self, answers: list[Answer]) -> pa.Table:
        """A row for each image; features are null where there is an error."""
        is_bad = np.array(["error" in answer for answer in answers])
        columns: list[pa.Array] = [pa.array([answer["image"] for answer in answers], pa.string())]
        for name, shape in self.shapes.items():
            values = np.zeros((len(answers), *shape), self.dtype)
            for row, answer in enumerate(answers):
                if not is_bad[row]:
                    values[row] = answer[name]
            columns.append(as_lists(values, is_bad))
        columns.append(pa.array([answer.get("error") for answer in answers], pa.string()))
        return pa.Table.from_arrays(columns, schema=self.schema)


def type_of(shape: tuple[int, ...], dtype: str) -> pa.DataType:
    """Fixed-size lists for an array of this shape."""
    kind = pa.from_numpy_dtype(np.dtype(dtype))
    for size in reversed(shape):
        kind = pa.list_(kind, size)
    return kind


def as_lists(values: np.ndarray, is_missing: np.ndarray) -> pa.FixedSizeListArray:
    """An array `(N, ...)` as N fixed-size lists, null where `is_missing` `(N,)`."""
    first, *others = values.shape[1:]
    lists = pa.array(values.ravel())
    for size in reversed(others):
        lists = pa.FixedSizeListArray.from_arrays(lists, size)
    return pa.FixedSizeListArray.from_arrays(lists, first, mask=pa.array(is_missing))


def as_array(lists: pa.ChunkedArray, shape: tuple[int, ...]) -> np.ndarray:
    """The reverse of `as_lists`, without the null ones: `(n, *shape)`."""
    flat: Any = lists.combine_chunks()
    for _ in shape:
        flat = flat.flatten()  # leaves null lists out
    return flat.to_numpy(zero_copy_only=False).reshape(-1, *shape)


def write_features(output: Path, parts: Parts, tables: FeatureTables) -> None:
    """Write the features of all parts in the format that the name of the file implies."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(output) as new:
        if output.suffix == NPY:
            write_npy(new, parts, tables, parts.num_done - parts.num_bad)
            flush(new)
            output.unlink(missing_ok=True)  # so that a kill leaves no old features beside the names of other images
            write_files_beside(output, parts, tables.about)
        else:
            write_parquet(new, parts, tables.schema)


def write_parquet(file: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """A row for each image. No dictionary is made of the features: hardly two are equal."""
    with pq.ParquetWriter(file, schema, use_dictionary=False) as writer:
        for table in tables:
            writer.write_table(table)


def write_npy(file: Path, parts: Iterable[pa.Table], tables: FeatureTables, count: int) -> None:
    """An array `(count, ...)` of the images without an error, written piece by piece."""
    ((name, shape),) = tables.shapes.items()
    descr = npy_format.dtype_to_descr(np.dtype(tables.dtype))
    with file.open("wb") as stream:
        header = {"descr": descr, "fortran_order": False, "shape": (count, *shape)}
        npy_format.write_array_header_1_0(stream, header)
        for table in parts:
            stream.write(as_array(table[name], shape).tobytes())


def write_files_beside(npy: Path, parts: Iterable[pa.Table], about: dict[str, Any]) -> None:
    """Name the images of the rows of a .npy file, with their places among all images, and those with an error."""
    files = files_beside(npy)
    good = ((image, index) for image, index, error in names_and_errors(parts) if error is None)
    bad = (row for row in names_and_errors(parts) if row[2] is not None)
    write_json(files["about"], about)
    write_csv(files["images"], ("image", "index"), good)
    write_csv(files["errors"], ("image", "index", "error"), bad)


def names_and_errors(parts: Iterable[pa.Table]) -> Iterator[tuple[str, int, str | None]]:
    """The name of each image, its place, and its error."""
    pairs = (zip(table["image"].to_pylist(), table["error"].to_pylist(), strict=True) for table in parts)
    for index, (image, error) in enumerate(chain.from_iterable(pairs)):
        yield image, index, error


def write_csv(file: Path, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    """Write a table."""
    with atomic_path(file) as new, new.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)
