"""validate.py on detectors: the figures of the run that trained them, for every form of the data."""

import json
from pathlib import Path

import pytest

from tests.photographs import (
    apart,
    forget_accelerate,
    fresh_accelerate,
    message_of,
    quick_datasets,
    write_coco_folder,
    write_objects_folder,
    write_objects_parquet,
)
from training import detect, validate
from training.settings.scripts import DetectSettings, ValidateSettings

__all__ = ["fresh_accelerate", "quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets", "fresh_accelerate")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root, splits = tmp_path_factory.mktemp("objects"), {"train": 4, "test": 3}
    writers = {"folder": write_objects_folder, "parquet": write_objects_parquet, "coco": write_coco_folder}
    return {name: write(root / name, splits) for name, write in writers.items()}


def train(output, dataset, **fields):
    settings = {"dataset_name": str(dataset), "output_dir": str(output), "eval_split": "test", "num_stages": 3}
    settings |= {"image_size": 48, "decoder_hidden_size": 32, "box_head_size": 16, "box_batch_size": 32}
    settings |= {"anchor_sizes": [8, 16, 32, 64], "scale_range": [1.0, 1.0], "per_device_train_batch_size": 6}
    settings |= {"num_workers": 0, "max_train_steps": 6, "checkpointing_steps": 6, "learning_rate": 3e-3}
    forget_accelerate()
    with apart():
        detect.main(DetectSettings(**{**settings, "with_tracking": False, "ema_decay": 0.3, **fields}))
    return Path(output)


def validated(model, dataset, **fields):
    forget_accelerate()
    where = {"model_name_or_path": str(model), "dataset_name": str(dataset), "num_workers": 0}
    with apart():
        return validate.main(ValidateSettings(**where, **fields))


def figures_of(folder):
    results = json.loads((folder / "all_results.json").read_text())
    return {name: value for name, value in results.items() if name.startswith("eval_")}


def test_the_figures_are_those_of_the_run_itself(data, tmp_path, capsys):
    run = train(tmp_path / "run", data["parquet"])
    expected = figures_of(run)
    assert expected["eval_samples"] == 9 and "eval_map_mask" in expected
    found = validated(run, data["parquet"], output_dir=str(tmp_path / "validated"))
    assert found == pytest.approx(expected, abs=1e-6)
    printed = capsys.readouterr().out
    assert "box AP" in printed and "rectangle" in printed and "published" not in printed
    table = (tmp_path / "validated/eval_per_class.csv").read_text()
    assert table == (run / "eval_per_class.csv").read_text()
    assert (tmp_path / "validated/predictions.png").stat().st_size > 0
    streamed = validated(run, data["parquet"], streaming=True, eval_split="test", per_device_eval_batch_size=4)
    assert streamed == pytest.approx(expected, abs=1e-6)
    averaged = validated(run / "checkpoint-6", data["parquet"], use_ema=True)  # a run evaluates and saves the average
    assert averaged == pytest.approx(expected, abs=1e-6)
    assert validated(run, data["folder"])["eval_objects"] == expected["eval_objects"]
    assert validated(run, data["coco"])["eval_objects"] == expected["eval_objects"]
    message = message_of(lambda: validated(run, data["parquet"], protocols=["classifier"]))
    assert "`protocols` (=['classifier']) must be detection for" in message


@pytest.mark.parametrize("architecture", ["faster_rcnn", "rt_detr_v2"])
def test_boxes_alone_are_validated(architecture, data, tmp_path):
    run = train(tmp_path / "run", data["folder"], architecture=architecture)
    assert validated(run, data["folder"]) == pytest.approx(figures_of(run), abs=1e-6)


def test_other_classes_than_the_models_are_named(data, tmp_path):
    run = train(tmp_path / "run", data["coco"], architecture="faster_rcnn", max_train_steps=1, checkpointing_steps=1)
    other = tmp_path / "other"
    file = "annotations/instances_test2017.json"
    (other / "annotations").mkdir(parents=True)
    stored = json.loads((data["coco"] / file).read_text())
    stored["categories"] = [{**each, "name": f"a {each['name']}"} for each in stored["categories"]]
    (other / file).write_text(json.dumps(stored))
    (other / "test2017").symlink_to(data["coco"] / "test2017")
    message = message_of(lambda: validated(run, other))
    assert (
        "must have the 2 classes of the model, in their order: disc, rectangle, but has a disc, a rectangle" in message
    )
