"""How many requests of an object store a shard takes, counted by a server on this machine."""

from pathlib import Path

from benchmarks.at_scale.loading import settings
from benchmarks.at_scale.shards import jpeg_photographs, write_parquet_shards, write_shards
from benchmarks.shared.measure import Row
from tests.dropping_server import serving
from training.data.sources import load_source, rows_of


def count_requests(folder: Path, images_each: int) -> list[Row]:
    """Requests of loading and of reading one shard of each form."""
    encode = jpeg_photographs()
    write_shards(folder / "tar", 1, images_each, encode)
    write_parquet_shards(folder / "parquet", 1, images_each, encode)
    rows: list[Row] = []
    for form, column in (("tar", "jpg"), ("parquet", "image")):
        with serving(folder / form) as server:
            (path,) = (folder / form).iterdir()
            source = load_source(settings(f"{server.url}/{path.name}", column), "train", None)
            before = server.num_answered
            count = sum(1 for _ in rows_of(source))  # type: ignore[arg-type]
            assert count == images_each
            row: Row = {"shard": form, "images": images_each, "MB": path.stat().st_size / 1e6}
            rows.append(row | {"requests to load it": before, "to read it": server.num_answered - before})
    return rows
