"""Searches a file of features for the images that are most alike."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import normalize

from conversion.files import read_json
from training.prediction.feature_files import ABOUT, as_array
from training.prediction.features import POOLED
from training.settings.checks import check
from training.settings.embedding import NPY, files_beside

ROWS = 10_000  # in memory


class StoredFeatures:
    """The pooled features in a file of embed.py.

    names: of the images that have features, in the order of these.
    indices: the places of these images among all images that were embedded.
    about: what the features are.
    """

    def __init__(self, file: Path) -> None:
        rule = "be a file of embed.py that exists"
        check("features_file", file, file.is_file(), rule)
        self.file = file
        read = self.read_npy if file.suffix == NPY else self.read_parquet
        self.about: dict[str, Any] = {}
        self.names: list[str] = []
        self.indices: list[int] = []
        read()
        check("features_file", file, bool(self.about), rule)
        check("features_file", file, bool(self.names), "hold the features of an image, but has errors alone")

    def read_npy(self) -> None:
        """Read what lies beside a .npy file."""
        beside = files_beside(self.file)
        self.about = read_json(beside["about"])
        is_pooled = len(np.load(self.file, mmap_mode="r").shape) == 2
        check("features_file", self.file, is_pooled, "hold pooled features, not maps")
        check("features_file", self.file, beside["images"].is_file(), f"lie beside {beside['images'].name}")
        with beside["images"].open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                self.names.append(row["image"])
                self.indices.append(int(row["index"]))

    def read_parquet(self) -> None:
        """Read the names of a .parquet file."""
        schema = pq.read_schema(self.file)
        self.about = json.loads((schema.metadata or {}).get(ABOUT, b"{}"))
        if not self.about:
            return
        check("features_file", self.file, POOLED in schema.names, "hold pooled features, not maps")
        table = pq.read_table(self.file, columns=["image", "error"])
        self.indices = np.flatnonzero(table["error"].is_null().to_numpy()).tolist()
        self.names = table["image"].take(pa.array(self.indices, pa.int64())).to_pylist()

    def batches(self) -> Iterator[Tensor]:
        """The features of all images that have some, `(n, D)` float32 at a time."""
        if self.file.suffix == NPY:
            stored = np.load(self.file, mmap_mode="r")
            for start in range(0, len(stored), ROWS):
                yield torch.from_numpy(stored[start : start + ROWS].astype(np.float32))
            return
        with pq.ParquetFile(self.file) as parquet:
            size = parquet.schema_arrow.field(POOLED).type.list_size
            for batch in parquet.iter_batches(ROWS, columns=[POOLED]):
                values = as_array(pa.chunked_array(batch.columns), (size,))
                yield torch.from_numpy(values.astype(np.float32))

    def row(self, number: int) -> Tensor:
        """The features `(D,)` of one image."""
        for values in self.batches():
            if number < len(values):
                return values[number]
            number -= len(values)
        raise IndexError(number)


def nearest(stored: StoredFeatures, query: Tensor, count: int, without: int | None) -> list[tuple[int, float]]:
    """The rows of at most `count` images nearest to a query `(D,)`, and their cosine similarities, the highest first.

    `without`: a row that does not count, that of the query itself.
    """
    best, rows, start = torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0
    for values in stored.batches():
        numbers = torch.arange(start, start + len(values))
        is_other = numbers != (-1 if without is None else without)
        similarity = normalize(values) @ normalize(query, dim=0)
        best, rows = torch.cat([best, similarity[is_other]]), torch.cat([rows, numbers[is_other]])
        order = best.sort(descending=True, stable=True).indices[:count]  # of equal ones, the first row comes first
        best, rows, start = best[order], rows[order], start + len(values)
    return list(zip(rows.tolist(), best.tolist(), strict=True))
