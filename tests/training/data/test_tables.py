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


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "told",
    [
        "configs:\n- config_name: default\n  data_files: '*.parquet'\n  columns: [image, label]\n",
        "dataset_info:\n  features:\n  - {name: image, dtype: string}\n  - {name: label, dtype: int64}\n"
        "  - {name: extra, dtype: string}\n",
    ],
    ids=["columns", "features"],
)
def test_columns_that_a_readme_tells_are_those_of_all_files(told, tmp_path, streaming):
    data = write(tmp_path, train_0=COLUMNS, train_1={**COLUMNS, "extra": ["x", "y"]})
    data.streaming = streaming
    (tmp_path / "README.md").write_text(f"---\n{told}---\n")
    rows = list(find_source(data, "train").source)
    assert [row["label"] for row in rows] == [0, 1, 0, 1]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_of_a_split_that_a_stream_does_not_read_does_not_stop_it(tmp_path, streaming):
    data = write(tmp_path, train=COLUMNS, test={**COLUMNS, "extra": ["x", "y"]})
    data.streaming = streaming
    if streaming:
        assert [row["label"] for row in find_source(data, "train").source] == [0, 1]
        return
    with pytest.raises(ValueError, match="also extra"):  # `datasets` prepares all splits
        find_source(data, "train")


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
