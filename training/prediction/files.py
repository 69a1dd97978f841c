"""Writes the answers to all images into one file, which appears when it is complete."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from conversion.files import atomic_path
from training.prediction.answers import Answers
from training.prediction.parts import Answer
from training.settings.prediction import COCO

ROWS = 10_000  # of a table in memory


def write_answers(output: Path, answers: Iterable[Answer], kind: Answers, names: list[str]) -> None:
    """Write the answers in the format that the name of the file implies; `names` are those of the classes.

    `answers` is iterated several times.
    """
    write: dict[str, Callable[[Path], None]] = {
        ".csv": lambda file: write_csv(file, schema_of(kind), rows_of(answers, kind)),
        ".parquet": lambda file: write_parquet(file, schema_of(kind), rows_of(answers, kind)),
        ".jsonl": lambda file: write_lines(file, answers),
        COCO: lambda file: write_coco(file, answers, names),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(output) as new:
        write[output.suffix](new)


def schema_of(kind: Answers) -> pa.Schema:
    """The columns of a table."""
    return pa.schema({"image": pa.string(), **kind.columns, "error": pa.string()})


def rows_of(answers: Iterable[Answer], kind: Answers) -> Iterator[dict[str, Any]]:
    """The rows of a table: those of each image, or one with the error."""
    for answer in answers:
        if "error" in answer:
            yield answer
        else:
            yield from kind.rows(answer)


def write_csv(file: Path, schema: pa.Schema, rows: Iterator[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, schema.names)
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(file: Path, schema: pa.Schema, rows: Iterator[dict[str, Any]]) -> None:
    with pq.ParquetWriter(file, schema) as writer:
        while chunk := list(islice(rows, ROWS)):
            writer.write_table(pa.Table.from_pylist(chunk, schema))


def write_lines(file: Path, answers: Iterable[Answer]) -> None:
    """An object in a line for each image."""
    with file.open("w", encoding="utf-8") as stream:
        stream.writelines(f"{json.dumps(answer, ensure_ascii=False)}\n" for answer in answers)


def write_coco(file: Path, answers: Iterable[Answer], names: list[str]) -> None:
    """COCO's format: `images`, `annotations` with scores, and `categories`. Images have their places as ids, from 1 on.

    An image that cannot be read has an `error` instead of a size.
    """
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    with file.open("w", encoding="utf-8") as stream:
        stream.write('{"images": [')
        stream.writelines(joined(coco_images(answers)))
        stream.write('\n], "annotations": [')
        stream.writelines(joined(coco_annotations(answers)))
        stream.write(f'\n], "categories": {json.dumps(categories)}}}\n')


def coco_images(answers: Iterable[Answer]) -> Iterator[dict[str, Any]]:
    for image_id, answer in enumerate(answers, start=1):
        about = {name: answer[name] for name in ("height", "width", "error") if name in answer}
        yield {"id": image_id, "file_name": answer["image"], **about}


def coco_annotations(answers: Iterable[Answer]) -> Iterator[dict[str, Any]]:
    number = 0
    for image_id, answer in enumerate(answers, start=1):
        for each in answer.get("objects", ()):
            number += 1
            _, _, width, height = each["bbox"]
            known = {name: each[name] for name in ("category_id", "bbox", "score", "segmentation") if name in each}
            yield {"id": number, "image_id": image_id, **known, "area": width * height, "iscrowd": 0}


def joined(values: Iterator[dict[str, Any]]) -> Iterator[str]:
    """The texts of the elements of a JSON list."""
    for place, value in enumerate(values):
        yield f"{',' if place else ''}\n{json.dumps(value)}"
