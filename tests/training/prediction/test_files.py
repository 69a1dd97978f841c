"""Files of answers: any name and text survives, and they appear as a whole."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.prediction import files
from training.prediction.files import write_answers

ANSWERS = [
    {"image": 'a, "b"\n.jpg', "label": "naïve, cat", "score": 0.1 + 0.2},
    {"image": "ü.jpg", "error": "cannot be read"},
    {"image": "c.jpg", "label": "=1+1", "score": 1e-9},
]


class Labels:
    columns = {"label": pa.string(), "score": pa.float64()}  # noqa: RUF012

    def rows(self, answer):
        yield answer


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_tables_hold_the_answers_exactly(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROWS", rows)
    full = [{"image": None, "label": None, "score": None, "error": None, **answer} for answer in ANSWERS]
    for suffix in ("csv", "parquet", "jsonl"):
        write_answers(tmp_path / f"new/a.{suffix}", ANSWERS, Labels(), [])
    assert pq.read_table(tmp_path / "new/a.parquet").to_pylist() == full
    assert [json.loads(line) for line in (tmp_path / "new/a.jsonl").read_text().splitlines()] == ANSWERS
    with (tmp_path / "new/a.csv").open(newline="", encoding="utf-8") as lines:
        found = list(csv.DictReader(lines))
    assert found == [{name: "" if value is None else str(value) for name, value in row.items()} for row in full]


def test_a_file_that_is_not_complete_does_not_appear(tmp_path):
    def broken():
        yield ANSWERS[0]
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_answers(tmp_path / "a.csv", broken(), Labels(), [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 1, 3])
def test_coco_is_valid_json_with_any_number_of_images_and_objects(count, tmp_path):
    each = {"label": "cat", "category_id": 0, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}
    answers = [{"image": f"{i}.jpg", "height": 5, "width": 6, "objects": [each] * i} for i in range(count)]
    write_answers(tmp_path / "a.json", answers, Labels(), ["cat"])
    found = json.loads((tmp_path / "a.json").read_text())
    assert [image["id"] for image in found["images"]] == list(range(1, count + 1))
    assert [row["image_id"] for row in found["annotations"]] == [i + 1 for i in range(count) for _ in range(i)]
    assert all(row["area"] == 12.0 for row in found["annotations"])
    assert found["categories"] == [{"id": 0, "name": "cat"}]
