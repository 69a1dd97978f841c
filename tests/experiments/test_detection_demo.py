"""The demo of detection, with stand-ins for its data and for the training scripts."""

import json
import sys
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from PIL import Image

from experiments import dense, detection
from experiments.detection_scores import ROWS_FILE
from training.settings.command_line import parse_settings
from training.settings.scripts import DetectSettings, PretrainSettings


def write_tiles(folder):
    (folder / "unlabelled").mkdir(parents=True)
    for split in ("train", "test"):
        target = folder / "labelled" / split
        target.mkdir(parents=True)
        for number in range(4):
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(target / f"{split}{number}.png")
        (target / ROWS_FILE).write_text("".join(f'{{"file_name": "{split}{n}.png"}}\n' for n in range(4)))


@pytest.fixture
def launched(monkeypatch):
    """The flags of the runs that the demo launches, whose figures are 1 from FCMAE and 0 from random weights."""
    runs = []

    def launch(script, recipe, *flags, at_a_time=1):
        runs.append((script, recipe, flags))
        folder = Path(flags[flags.index("--output_dir") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        start = float("--model_name_or_path" in flags)
        (folder / "all_results.json").write_text(json.dumps(dict.fromkeys(("eval_map", "eval_map_mask"), start)))

    monkeypatch.setattr(dense, "launch", launch)
    control = {"eval_map": 0.5, "eval_map_mask": 0.25, "f1_50_mask": 0.75}
    task = detection.TASKS["cells"]._replace(write=write_tiles, control_figures=lambda _: control)
    monkeypatch.setitem(detection.TASKS, "cells", task)
    return runs


def test_each_case_is_trained_from_both_starts_and_reported(launched, tmp_path, monkeypatch, capsys):
    flags = ["cells", "--shares", "0.5", "1", "--seeds", "0", "1", "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["detection", *flags])
    detection.main()
    assert [script for script, _, _ in launched] == ["pretrain"] + ["detect"] * 8
    report = json.loads((tmp_path / "out/report.json").read_text())
    names = ["0.5-0", "0.5-1", "1-0", "1-1"]
    assert report["tiles"] == {"train": 4, "test": 4}
    assert report["mask AP"] == {
        dense.PRETRAINED: dict.fromkeys(names, 1.0),
        dense.SCRATCH: dict.fromkeys(names, 0.0),
        detection.TASKS["cells"].control: dict.fromkeys(names, 0.25),
    }
    assert report["mask F1 at IoU .5"] == {detection.TASKS["cells"].control: dict.fromkeys(names, 0.75)}
    told = capsys.readouterr().out
    assert "100.0 % (sd 0.0)" in told
    assert "mask F1 at IoU .5 on the held-out tiles" in told and "75.0 % (sd 0.0)" in told


def test_flags_are_settings_of_the_scripts(launched, tmp_path, monkeypatch):
    flags = ["cells", "--shares", "1", "--seeds", "0", "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["detection", *flags])
    detection.main()
    (_, _, pretrain), *detectors = launched
    assert parse_settings(PretrainSettings, list(pretrain), "").model.num_channels == 1
    for _, _, of_one in detectors:
        settings = parse_settings(DetectSettings, list(of_one), "")
        assert settings.model.architecture == "mask_rcnn" and settings.schedule.max_train_steps == 200


def test_two_detectors_are_trained_at_a_time_and_share_the_cores(launched, tmp_path, monkeypatch):
    both = Barrier(2, timeout=20)  # two runs at a time get past it, one alone does not
    of_detectors = []
    stand_in = dense.launch

    def launch(script, recipe, *flags, at_a_time=1):
        stand_in(script, recipe, *flags)
        if script == "detect":
            of_detectors.append(at_a_time)
            both.wait()

    monkeypatch.setattr(dense, "launch", launch)
    flags = ["cells", "--shares", "1", "--seeds", "0", "1", "--jobs", "2", "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["detection", *flags])
    detection.main()
    assert of_detectors == [2, 2, 2, 2]


def test_a_run_that_fails_ends_the_demo_before_a_report(launched, tmp_path, monkeypatch):
    stand_in, trained = dense.launch, []

    def launch(script, recipe, *flags, at_a_time=1):
        stand_in(script, recipe, *flags)
        if script == "detect":
            trained.append(flags)
            sys.exit(3)

    monkeypatch.setattr(dense, "launch", launch)
    flags = ["cells", "--shares", "1", "--seeds", "0", "1", "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["detection", *flags])
    with pytest.raises(SystemExit, match="3"):
        detection.main()
    assert len(trained) == 1 and not (tmp_path / "out/report.json").exists()
