"""Which split is evaluated on: the one that is given, else the held-out one that is there, and it is said."""

from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from tests.photographs import message_of
from training.data.held_out import load_train_and_eval
from training.data.sources import load_source
from training.data.splits import check_split, say_what_is_left_out, with_eval_split
from training.settings.scripts import FinetuneSettings, ValidateSettings

MODEL = {"model_name_or_path": "me/model"}


def with_split(settings):
    return with_eval_split(settings.data, settings.evaluation.protocols)


def write_splits(folder, *splits, array=False):
    """A folder with two images, or arrays, of one class in each split."""
    for split in splits:
        (folder / split / "cat").mkdir(parents=True)
        for index in range(2):
            file = folder / split / "cat" / f"{index}.{'npy' if array else 'png'}"
            np.save(file, np.zeros((8, 8, 4))) if array else Image.new("RGB", (8, 8)).save(file)
    return str(folder)


@pytest.mark.parametrize(
    ("there", "protocols", "chosen"),
    [
        (("train", "test"), ["classifier"], "test"),
        (("train", "val", "test"), ["classifier"], "validation"),
        (("train", "dev"), ["knn"], "validation"),
        (("train", "evaluation"), ["classifier", "linear_probe"], "test"),
        (("train",), ["classifier"], "train"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_the_held_out_split_that_is_there_is_evaluated_on_and_said(
    tmp_path, capsys, there, protocols, chosen, streaming
):
    folder = write_splits(tmp_path / "images", *there)
    config = with_split(ValidateSettings(dataset_name=folder, protocols=protocols, streaming=streaming, **MODEL))
    said = capsys.readouterr().out
    assert config.eval_split == chosen and f"Evaluating on split `{chosen}` of {folder}" in said
    assert ("the figures say nothing of new ones" in said) == (chosen == "train")
    next(iter(load_source(config, chosen, None)))  # as `datasets` calls it


def test_a_folder_of_arrays_and_one_of_parquet_files_have_splits_too(tmp_path):
    arrays = write_splits(tmp_path / "arrays", "train", "val", array=True)
    assert with_split(ValidateSettings(dataset_name=arrays, **MODEL)).eval_split == "val"
    for split in ("train", "test"):
        Dataset.from_dict({"label": [0]}).to_parquet(str(tmp_path / f"parquet/{split}.parquet"))
    assert with_split(ValidateSettings(dataset_name=str(tmp_path / "parquet"), **MODEL)).eval_split == "test"
    one_file = ValidateSettings(dataset_name=str(tmp_path / "parquet/test.parquet"), **MODEL)
    assert with_split(one_file).eval_split == "validation"  # the file, whatever it is called


def test_a_data_set_on_the_hub_is_asked_for_its_splits(monkeypatch):
    monkeypatch.setattr("training.data.splits.get_dataset_split_names", lambda *_, **__: ["train", "valid", "extra"])
    assert with_split(ValidateSettings(dataset_name="me/images", **MODEL)).eval_split == "valid"
    monkeypatch.setattr("training.data.splits.get_dataset_split_names", lambda *_, **__: ["fold1", "fold2"])
    message = message_of(lambda: with_split(ValidateSettings(dataset_name="me/images", **MODEL)))
    assert message == "`eval_split` (=None) must be one of the splits of me/images: fold1, fold2."


def test_nothing_is_left_to_evaluate_features_on(tmp_path):
    folder = write_splits(tmp_path / "images", "train")
    message = message_of(lambda: with_split(ValidateSettings(dataset_name=folder, protocols=["knn"], **MODEL)))
    assert message == f"`eval_split` (=None) must be one of the splits of {folder}: train."


@pytest.mark.parametrize("array", [False, True])
def test_a_split_that_is_asked_for_and_missing_is_an_error_with_those_there_are(tmp_path, array):
    folder = write_splits(tmp_path / "images", "train", "test", array=array)
    config = ValidateSettings(dataset_name=folder, eval_split="validation", **MODEL)
    names = "test, train" if array else "train, test"
    rule = f"`eval_split` (=validation) must be one of the splits of {folder}: {names}."
    assert message_of(lambda: with_split(config)) == rule
    config = FinetuneSettings(dataset_name=folder, eval_split="test", output_dir="out").data
    check_split(config, "eval_split", "test")
    undivided = write_splits(tmp_path / "undivided", ".", array=array)
    message = message_of(lambda: check_split(replace(config, dataset_name=undivided), "eval_split", "test"))
    assert "`--train_val_split 0.2` evaluates on a fifth of the training images instead." in message


def test_the_images_that_are_held_out_are_at_most_as_many_as_asked_for(tmp_path):
    folder = write_splits(tmp_path / "images", "train")
    for index in range(2, 10):
        Image.new("RGB", (8, 8)).save(f"{folder}/train/cat/{index}.png")
    config = FinetuneSettings(dataset_name=folder, output_dir="out", train_val_split=0.5).data
    for most, expected in ((None, 5), (3, 3), (7, 5)):
        train, held_out = load_train_and_eval(replace(config, max_eval_samples=most), load_source)
        assert (len(train), len(held_out)) == (5, expected)
    message = message_of(lambda: load_train_and_eval(replace(config, max_train_samples=1), load_source))
    assert message == "`train_val_split` (=0.5) must be left out for one image: it has two parts."


def test_fine_tuning_says_which_images_it_leaves_out(tmp_path, capsys):
    folder = write_splits(tmp_path / "images", "train", "test")
    config = FinetuneSettings(dataset_name=folder, output_dir="out").data
    say_what_is_left_out(config, load_source(config, "train", None))
    assert capsys.readouterr().out == f"Not used: `test` of {folder}. `--eval_split test` evaluates the model on it.\n"
    config = FinetuneSettings(dataset_name=folder, output_dir="out", eval_split="test").data
    say_what_is_left_out(config, load_source(config, "train", None))
    assert capsys.readouterr().out == ""
