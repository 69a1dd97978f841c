"""Files of features: they hold the arrays to the bit, and parts take no more memory than they may."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

from tests.photographs import message_of
from training.prediction import feature_files
from training.prediction.feature_files import FeatureTables, as_array, write_features
from training.prediction.neighbors import StoredFeatures
from training.prediction.parts import Parts

SHAPES = [{"features": (5,)}, {"stage_2": (2, 3, 4)}]


def answers_of(shapes, dtype, count):
    values = np.random.default_rng(0)
    rows = []
    for place in range(count):
        features = {name: values.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
        rows.append({"image": f"ü,{place}\n.jpg", **({"error": "bad"} if place in (0, 4) else features)})
    return rows


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("lengths", [(7,), (1, 2, 4), (5, 2)])
def test_both_files_hold_the_arrays_of_all_parts(lengths, shapes, dtype, tmp_path):
    answers = answers_of(shapes, dtype, 7)
    ((name, shape),) = shapes.items()
    tables = FeatureTables(shapes, dtype, {"stages": [1]})
    expected = np.stack([answer[name] for answer in answers if "error" not in answer])
    for suffix in ("parquet", "npy"):
        parts = Parts(tmp_path / f"a.{suffix}", {}, tables)
        parts.begin(overwrite=False)
        end = 0
        for length in lengths:
            parts.add(answers[end : end + length])
            parts.write()
            end += length
        write_features(tmp_path / f"a.{suffix}", parts, tables)
    assert_array_equal(np.load(tmp_path / "a.npy"), expected)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["image"].to_pylist() == [answer["image"] for answer in answers]
    assert table["error"].to_pylist() == [answer.get("error") for answer in answers]
    assert table[name].is_null().to_pylist() == ["error" in answer for answer in answers]
    assert_array_equal(as_array(table[name], shape), expected)


def test_large_features_are_written_in_smaller_parts(monkeypatch):
    assert FeatureTables({"features": (16,)}, "float32", {}).most_answers == 10_000
    assert FeatureTables({"stage_1": (96, 56, 56)}, "float32", {}).most_answers == 55  # of 1.2 MB each
    monkeypatch.setattr(feature_files, "PART_BYTES", 1)
    assert FeatureTables({"features": (16,)}, "float16", {}).most_answers == 1


@pytest.mark.parametrize(("stopped", "is_whole"), [("write_npy", True), ("write_json", False), ("write_csv", False)])
def test_features_whose_writing_stopped_never_have_the_names_of_other_images(stopped, is_whole, tmp_path, monkeypatch):
    def write(names):
        parts = Parts(tmp_path / "a.npy", {"images": names}, tables)
        if parts.begin(overwrite=True) == 0:
            parts.add([{"image": name, "features": np.full(2, ord(name), np.float32)} for name in names])
            parts.write()
        write_features(tmp_path / "a.npy", parts, tables)

    def stop(*_):
        raise OSError("No space left on device")

    def read():
        stored = StoredFeatures(tmp_path / "a.npy")
        return stored.names, [chr(int(row[0])) for rows in stored.batches() for row in rows]

    tables = FeatureTables({"features": (2,)}, "float32", {"stages": [1]})
    write("abc")
    assert read() == (["a", "b", "c"], ["a", "b", "c"])
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(feature_files, stopped, stop)
        write("xyz")
    if is_whole:
        assert read() == (["a", "b", "c"], ["a", "b", "c"])
    else:
        assert "`features_file`" in message_of(read)
    write("xyz")
    assert read() == (["x", "y", "z"], ["x", "y", "z"])
