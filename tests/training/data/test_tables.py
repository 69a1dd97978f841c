"""Parquet files of one data set have the columns that `datasets` reads from the first of them."""

import pyarrow as pa
import pytest
from datasets import Dataset

from training.data.sources import find_source
from training.settings.data import DataSettings

COLUMNS = {"image": ["a.png", "b.png"], "label": [0, 1]}


def write(folder, **files):
    for name, columns in files.items():
        Dataset.from_dict(columns).to_parquet(folder / f"{name}.parquet")
    return DataSettings(dataset_name=str(folder), image_column="image")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_that_the_first_file_does_not_have_is_refused_with_both_names(tmp_path, streaming):
    data = write(tmp_path, train_0=COLUMNS, train_1={**COLUMNS, "extra": ["x", "y"]})
    data.streaming = streaming
    expected = r"`dataset_name` .*train_0\.parquet has image, label and train_1\.parquet also extra"
    with pytest.raises(ValueError, match=expected):
        find_source(data, "train")


def test_the_first_file_is_that_of_the_first_split_as_datasets_reads_them(tmp_path):
    data = write(tmp_path, train=COLUMNS, test={"image": ["c.png"]})  # no labels in the test split
    assert find_source(data, "test").source["label"] == [None]


def test_files_in_a_pattern_are_checked_alike(tmp_path):
    data = write(tmp_path, a={**COLUMNS}, b={**COLUMNS, "extra": ["x", "y"]})
    data.dataset_name = str(tmp_path / "*.parquet")
    with pytest.raises(ValueError, match="also extra"):
        find_source(data, "train")


def test_other_files_that_datasets_cannot_join_are_an_error_that_names_the_setting(tmp_path):
    for name, columns in (("train_0", COLUMNS), ("train_1", {**COLUMNS, "extra": ["x", "y"]})):
        table = pa.table(columns)
        with pa.ipc.new_stream(tmp_path / f"{name}.arrow", table.schema) as file:
            file.write_table(table)
    with pytest.raises(ValueError, match=r"`dataset_name` .* with the same columns in all files"):
        find_source(DataSettings(dataset_name=str(tmp_path / "*.arrow"), image_column="image"), "train")
