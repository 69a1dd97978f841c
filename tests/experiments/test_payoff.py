"""The search of what pays and the comparison after it: what is run, for how long, on which photographs; the rows."""

import argparse
import json
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from PIL import Image as Pictures
from scipy import stats

from experiments import payoff, payoff_final, payoff_tables, search
from experiments.arms import UNTRAINED
from experiments.arrangements import AXES, CELLS_OF_16, HALF, KNOWN, PIXELS, UNTRAINED_16, best_of_each, combine
from experiments.label_efficiency import RECIPE
from experiments.readings import READINGS, USUAL, PooledStages, Reading, best_reading, pooled_stages
from experiments.rows import Rows
from experiments.solar_cells import RECIPES
from hf_convnextv2 import ConvNextV2ForPreTraining, create_image_processor
from tests.photographs import message_of, quick_datasets
from tests.small_models import awake, small_fcmae_config
from training.comparison.frozen import features_of
from training.settings.command_line import parse_settings
from training.settings.model import ModelSettings
from training.settings.scripts import PretrainSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
ROOT = Path(__file__).parents[2]
HELD_OUT = 250  # the brightness of photographs that no search may see


def settings_of(*flags):
    required = ["--dataset_name", "images", "--output_dir", "out", "--config", str(RECIPES / f"{RECIPE}.yaml")]
    return parse_settings(PretrainSettings, [*required, *flags])


# Arrangements


@pytest.mark.parametrize("name", KNOWN)
def test_every_arrangement_has_64_crops_in_a_step_and_settings_that_are_there(name):
    found = settings_of(*KNOWN[name].flags(Path("out/teacher")))
    crops = found.augmentation.num_crops
    assert crops * found.data.per_device_train_batch_size == 64
    assert KNOWN[name].arm.images_in_step * crops == 64
    assert found.regularizer.is_on == name.startswith("SIGReg")
    assert (found.targets.teacher_name_or_path is not None) == (name == "frozen teacher")


def test_the_best_of_each_axis_are_put_together():
    scores = {PIXELS: 0.6, UNTRAINED: 0.9, "crops of 0.3 and more": 0.5, "two crops of an image": 0.65}
    scores |= {"average teacher": 0.61, "frozen teacher": 0.62, "SIGReg, all cells, four crops": 0.7}
    best = best_of_each(scores)
    assert best == ["two crops of an image", "frozen teacher", "SIGReg, all cells, four crops"]
    found = combine(best)
    assert (found.share, found.teacher) == (0.5, HALF)
    values = settings_of(*found.flags(Path("teacher")))
    assert (values.augmentation.num_crops, values.data.per_device_train_batch_size) == (4, 16)
    assert (values.regularizer.sigreg_cells, values.targets.teacher_name_or_path) == ("all", "teacher")
    assert best_of_each({PIXELS: 0.6, "average teacher": 0.6}) == []


# Readings


def write_model(folder):
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config()))
    model.save_pretrained(folder)
    create_image_processor(model.config).save_pretrained(folder)
    return folder


def squares(values, size=64):
    """Photographs of one brightness each, with some noise, and their labels."""
    random = np.random.default_rng(0)
    images = [np.clip(value + random.integers(0, 5, (size, size)), 0, 255).astype(np.uint8) for value in values]
    columns = {"image": [Pictures.fromarray(image) for image in images], "label": [n % 2 for n in range(len(images))]}
    features = Features({"image": Image(), "label": ClassLabel(names=["functional", "defective"])})
    return Dataset.from_dict(columns, features=features)


def test_a_reading_of_the_pooled_stages_is_what_an_evaluation_with_its_settings_reads(tmp_path):
    folder, images = write_model(tmp_path), {"train": squares(range(0, 200, 20)), "test": squares([5, 105])}
    stages = pooled_stages(folder, images)
    assert list(stages.widths) == [8, 16, 24, 32]
    for reading in (USUAL, Reading("last two stages", ("mean", "max"), 3), Reading("stage before", ("gem",))):
        model = ModelSettings(model_name_or_path=str(folder))
        expected, found = features_of(model, images, 0, reading.settings(4)), stages.read(reading)
        for split in images:
            assert torch.equal(found[split][1], expected[split][1])
            torch.testing.assert_close(found[split][0], expected[split][0], rtol=1e-4, atol=1e-4)
    assert USUAL.name in READINGS and len(READINGS) == 32
    assert best_reading({"a": {"x": 0.5, "y": 0.9}, "b": {"x": 0.8, "y": 0.7}}) == "b"


def test_collapsed_features_are_read_without_whitening():
    features = torch.ones(40, 3 * 80) + torch.arange(40)[:, None]
    labels = torch.arange(40) % 2
    stages = PooledStages({"train": (features, labels), "test": (features[:4], labels[:4])}, [80])
    found = {name for name in READINGS if "last" in name and "two" not in name}
    reads = {name: stages.read(READINGS[name]) for name in found if "whitened" not in name}
    assert len(reads) == 4
    message = message_of(lambda: stages.read(READINGS[f"{USUAL.name}, whitened"]))
    assert message.startswith("`whitened_components` (=64)")


# Rows


def test_a_row_replaces_the_one_of_the_same_key(tmp_path):
    file = tmp_path / "rows.json"
    Rows(file, ("name", "seed")).add({"name": "a", "seed": 0, "score": 0.1})
    Rows(file, ("name", "seed")).add({"name": "a", "seed": 1, "score": 0.2})
    Rows(file, ("name", "seed")).state(machine="some")
    Rows(file, ("name", "seed")).add({"name": "a", "seed": 0, "score": 0.3})
    stored = json.loads(file.read_text())
    assert stored == {
        "machine": "some",
        "rows": [{"name": "a", "seed": 1, "score": 0.2}, {"name": "a", "seed": 0, "score": 0.3}],
    }


def test_rows_of_other_values_are_refused(tmp_path):
    rows = Rows(tmp_path / "rows.json", ("name",))
    rows.keep(epochs=20)
    rows.keep(epochs=50)  # there is no row yet
    rows.add({"name": "a"})
    rows.keep(epochs=50.0)
    with pytest.raises(SystemExit, match=r"holds rows of {'epochs': 50.0}, not of {'epochs': 20}"):
        rows.keep(epochs=20)
    assert Rows(rows.file, ("name",)).head == {"epochs": 50.0}


# The search


def write_cells(folder):
    """In the form of the solar cells: dark photographs to train on, bright ones held out."""
    for split, values in (("train", list(range(0, 192, 3))), ("test", [HELD_OUT] * 6)):
        rows = squares(values, 8)
        (folder / "labelled").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(folder / f"labelled/{split}.parquet")
        if split == "train":
            (folder / "unlabelled").mkdir(parents=True, exist_ok=True)
            rows.select_columns("image").to_parquet(folder / "unlabelled/train.parquet")


def brightest(folder):
    """Of all photographs in the parquet files of a folder."""
    files = [str(file) for file in folder.rglob("*.parquet")]
    rows = load_dataset("parquet", data_files=files, columns=["image"], split="train")
    return max(np.asarray(image).max() for image in rows["image"])


class Runs:
    """Stands in for everything that computes, and notes what it is given; models are empty folders."""

    def __init__(self, monkeypatch, module, scores=lambda name: 0.6):
        self.pretrained, self.finetuned, self.measured, self.seen, self.fails_at = [], [], [], [], None
        self.scores, self.starts = scores, {}
        for name in ("pretrain", "finetune", "pooled_stages", "save_untrained"):
            monkeypatch.setattr(module, name, getattr(self, name))
        monkeypatch.setattr(search, "write_solar_cells", write_cells)
        if module is payoff:
            monkeypatch.setattr(payoff, "measure_rates", self.measure_rates)
            monkeypatch.setattr(payoff, "last_figures", lambda folder: {"loss": 0.5})
            monkeypatch.setattr(payoff, "SHARES", (0.5, 1.0))
            monkeypatch.setattr(payoff, "READINGS", {name: READINGS[name] for name in [USUAL.name]})
            monkeypatch.setattr(payoff, "read_every_way", lambda *_: {USUAL.name: {"probe": 0.5}})

    def pretrain(self, output, folder, flags, jobs):
        if not folder.is_dir():
            assert all(Path(flag.split("=")[1]).is_dir() for flag in flags if "teacher_name" in flag)
            folder.mkdir(parents=True)
            self.pretrained.append((folder.name, list(flags)))

    def save_untrained(self, shape, folder, seed):
        assert shape.is_dir()
        self.seen.append(("untrained", shape.name, folder.name))

    def measure_rates(self, output, arms, normalization, jobs):
        teachers = [flag for arm in arms.values() for flag in arm.flags if "teacher_name" in flag]
        assert all(Path(flag.split("=")[1]).is_dir() for flag in teachers)
        self.measured += list(arms)
        return {name: 0.5 if name.startswith("SIGReg") else 1.0 for name in arms}

    def finetune(self, subset, test, name, seed, start, jobs):
        self.finetuned.append((subset.name, name, seed))
        self.starts[name] = list(start)
        if self.fails_at == len(self.finetuned):
            raise KeyboardInterrupt
        return self.scores(name)

    def pooled_stages(self, folder, images):
        self.seen.append(
            (folder.name, max(np.asarray(image).max() for part in images.values() for image in part["image"]))
        )
        labels = {split: torch.tensor(part["label"][:]) for split, part in images.items()}
        noise = torch.Generator().manual_seed(0)  # frozen features are as good after every run
        features = {split: (torch.randn(len(x), 3 * 4, generator=noise), x) for split, x in labels.items()}
        return PooledStages(features, [4])


def searched(monkeypatch, tmp_path, *flags):
    arguments = ["payoff", "--output_dir", str(tmp_path / "out"), "--output", str(tmp_path / "search.json")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--jobs", "1", *flags])
    payoff.main()
    return json.loads((tmp_path / "search.json").read_text())


def scores(name):
    return {"SIGReg": 0.8, "cells": 0.7}.get(name.split("_")[0].strip(","), 0.6) + ("300" in name) / 10


def test_every_arrangement_of_an_axis_takes_the_same_time_and_the_best_are_trained_longer(monkeypatch, tmp_path):
    runs = Runs(monkeypatch, payoff, scores)
    found = searched(monkeypatch, tmp_path, "--epochs", "64", "--lengths", "128", "300")
    rows = {(row["arrangement"], row["epochs"]): row for row in found["rows"]}
    tried = [name for axis in AXES.values() for name in axis]
    assert {name for name, epochs in rows if epochs == 64} > {PIXELS, HALF, UNTRAINED, *tried}
    # 44 photographs of which each of FCMAE's steps takes 64; SIGReg's steps take twice the time.
    assert rows[PIXELS, 64]["steps"] == 44 and rows[HALF, 64]["steps"] == 22
    assert {rows[name, 64]["steps"] for name in tried if name.startswith("SIGReg")} == {22}
    assert rows["average teacher", 64]["steps"] == 44 and rows[PIXELS, 128]["steps"] == 88
    combined = {name for name, _ in rows if " + " in name}
    assert len(combined) == 1 and "SIGReg" in combined.pop()
    assert {epochs for name, epochs in rows if name == PIXELS} == {64, 128, 300}
    assert len([key for key in rows if key[1] == 300]) == 2
    assert found["chosen"]["epochs"] == 300 and found["chosen"]["arrangement"] != UNTRAINED
    flags = dict(runs.pretrained)["frozen_teacher_64-0"]
    assert f"--teacher_name_or_path={tmp_path}/out/pretrain/pixels_half_of_the_time_64-0" in flags
    assert payoff_tables.search(tmp_path / "search.json")[0]["epochs"] == "300"


def test_a_frozen_teacher_and_its_student_share_the_time_of_the_run(monkeypatch, tmp_path):
    runs = Runs(monkeypatch, payoff, lambda name: 0.6 + ("frozen" in name) / 10)
    found = searched(monkeypatch, tmp_path, "--epochs", "64", "--lengths", "128", "300")
    assert found["chosen"]["arrangement"] == "frozen teacher"
    flags = dict(runs.pretrained)
    of_teacher = {name: given for name, given in flags.items() if name.startswith("pixels_half")}
    assert len(of_teacher) == 3
    for epochs in (64, 128, 300):
        teacher = f"pixels_half_of_the_time_{epochs}-0"
        assert f"--teacher_name_or_path={tmp_path}/out/pretrain/{teacher}" in flags[f"frozen_teacher_{epochs}-0"]
        steps = {name: steps_of(flags[name]) for name in (teacher, f"frozen_teacher_{epochs}-0", f"pixels_{epochs}-0")}
        *both, whole = steps.values()
        assert abs(sum(both) - whole) <= 1 and abs(both[0] - both[1]) <= 1, steps
    (row,) = [row for row in found["rows"] if row["epochs"] == 300 and row["arrangement"] == "frozen teacher"]
    run = payoff.Run("length", "frozen teacher", 300, 0, KNOWN["frozen teacher"])
    pixels = payoff.Run("length", PIXELS, 300, 0, KNOWN[PIXELS])
    assert payoff.seconds_of(run) > payoff.seconds_of(pixels) and row["share"] == 0.5


def steps_of(flags):
    (steps,) = [flag.split("=")[1] for flag in flags if flag.startswith("--max_train_steps=")]
    return int(steps)


def test_random_weights_of_each_shape_are_read_and_fine_tuned_as_such(monkeypatch, tmp_path):
    runs = Runs(monkeypatch, payoff)
    found = searched(monkeypatch, tmp_path, "--parts", "reference", "masks")
    rows = {row["arrangement"]: row for row in found["rows"]}
    assert {"reading", "readings", "score"} <= rows[UNTRAINED].keys() & rows[UNTRAINED_16].keys()
    assert ("untrained", "cells_of_16_0.6_hidden_50-0", "no_pre-training_cells_of_16_50-0") in runs.seen
    starts = {name: start for name, start in runs.starts.items() if name.startswith("no_pre-training")}
    assert [set(CELLS_OF_16) <= set(start) for start in starts.values()] == [False, True]
    assert found["chosen"]["arrangement"] not in (UNTRAINED, UNTRAINED_16)


def test_a_search_goes_on_from_its_results_file_alone(monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        whole = Runs(patched, payoff, scores)
        expected = searched(patched, tmp_path / "whole")
    runs = Runs(monkeypatch, payoff, scores)
    for parts in (["reference"], list(AXES), ["combined"], ["length"]):
        searched(monkeypatch, tmp_path, "--parts", *parts)
        shutil.rmtree(tmp_path / "out")
    found = searched(monkeypatch, tmp_path)  # all is done
    names = ("arrangement", "epochs", "steps", "score", "reading")
    rows = [sorted(str([row.get(name) for name in names]) for row in each["rows"]) for each in (found, expected)]
    assert rows[0] == rows[1]
    assert (found["speeds"], found["chosen"]["speed"]) == (expected["speeds"], expected["chosen"]["speed"])
    again = [name for name, _ in runs.pretrained]
    again.remove("pixels_half_of_the_time_50-0")  # the frozen teacher, whose weights are needed
    assert sorted(again) == sorted(name for name, _ in whole.pretrained)
    assert (sorted(runs.finetuned), runs.measured) == (sorted(whole.finetuned), whole.measured)


def test_random_weights_get_their_shape_from_a_model_that_is_trained_again(monkeypatch, tmp_path):
    runs = Runs(monkeypatch, payoff)
    expected = searched(monkeypatch, tmp_path, "--parts", "reference")
    file = tmp_path / "search.json"
    kept = [row for row in expected["rows"] if row["arrangement"] != UNTRAINED]
    file.write_text(json.dumps({**expected, "rows": kept}))
    shutil.rmtree(tmp_path / "out")
    assert searched(monkeypatch, tmp_path, "--parts", "reference")["rows"] == expected["rows"]
    assert [name for name, _ in runs.pretrained].count("pixels_50-0") == 2


def test_a_speed_that_is_not_known_is_an_error(monkeypatch, tmp_path):
    Runs(monkeypatch, payoff, scores)
    found = searched(monkeypatch, tmp_path, "--parts", "reference", "regulariser")
    best = found["chosen"]["arrangement"]
    assert found["chosen"]["speed"] == 0.5
    (tmp_path / "search.json").write_text(json.dumps({**found, "speeds": {PIXELS: 1.0}}))
    with pytest.raises(SystemExit, match=rf"`speeds` in .*search.json must have that of '{best}'"):
        searched(monkeypatch, tmp_path, "--parts", "reference", "regulariser")


def test_a_results_file_of_another_time_is_refused(monkeypatch, tmp_path):
    Runs(monkeypatch, payoff)
    searched(monkeypatch, tmp_path, "--parts", "reference")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(SystemExit, match=r"search\.json holds rows of .*'epochs': 50.*not of .*'epochs': 20"):
        searched(monkeypatch, tmp_path, "--parts", "reference", "--epochs", "20")


def test_a_search_that_was_killed_goes_on_and_has_every_row_once(monkeypatch, tmp_path):
    parts = ["--parts", "reference", "crops"]
    with monkeypatch.context() as patched:
        whole = Runs(patched, payoff)
        expected = searched(patched, tmp_path / "whole", *parts)
    killed = Runs(monkeypatch, payoff)
    killed.fails_at = 4
    with pytest.raises(KeyboardInterrupt):
        searched(monkeypatch, tmp_path / "killed", *parts)
    kept = json.loads((tmp_path / "killed/search.json").read_text())["rows"]
    assert 0 < len(kept) < len(expected["rows"])
    killed.fails_at = None
    for _ in range(2):
        found = searched(monkeypatch, tmp_path / "killed", *parts)
    names = [(row["arrangement"], row["epochs"], row["seed"]) for row in found["rows"]]
    assert len(set(names)) == len(names)
    assert names == [(row["arrangement"], row["epochs"], row["seed"]) for row in expected["rows"]]
    assert len(killed.finetuned) == len(whole.finetuned) + 2  # those of the run under way are asked for again
    assert len([name for name in killed.measured if name == "two crops of an image"]) == 1


def test_the_search_never_sees_a_held_out_photograph(monkeypatch, tmp_path):
    runs = Runs(monkeypatch, payoff)
    searched(monkeypatch, tmp_path, "--parts", "reference")
    assert max(value for name, value in [row for row in runs.seen if len(row) == 2]) < HELD_OUT
    assert brightest(tmp_path / "out") < HELD_OUT and len(list((tmp_path / "out").rglob("*.parquet"))) > 3
    # The control: were they in the folder, these checks would find them.
    write_cells(tmp_path / "out/all/data")
    assert brightest(tmp_path / "out") >= HELD_OUT
    (tmp_path / "out/data/labelled/test.parquet").write_bytes(
        (tmp_path / "out/all/data/labelled/test.parquet").read_bytes()
    )
    (tmp_path / "search.json").unlink()
    searched(monkeypatch, tmp_path, "--parts", "reference")
    assert max(row[1] for row in runs.seen if len(row) == 2) >= HELD_OUT


@pytest.mark.parametrize("part", ["targets", "combined"])
def test_parts_come_after_the_reference(part, monkeypatch, tmp_path):
    runs = Runs(monkeypatch, payoff)
    with pytest.raises(SystemExit, match=rf"`parts` \(={part}\) must come after reference"):
        searched(monkeypatch, tmp_path, "--parts", part)
    assert not runs.pretrained
    searched(monkeypatch, tmp_path, "--parts", "reference")
    searched(monkeypatch, tmp_path, "--parts", part)


def test_random_weights_have_their_shape_from_a_model_that_has_been_trained(monkeypatch, tmp_path):
    """Side by side, the reference is still being trained when half of it is done."""
    Runs(monkeypatch, payoff)
    done = []

    def pretrain(output, folder, flags, jobs):
        if folder.name not in done:
            time.sleep(0.0 if "half" in folder.name else 0.3)
            done.append(folder.name)

    monkeypatch.setattr(payoff, "pretrain", pretrain)
    monkeypatch.setattr(payoff, "save_untrained", lambda shape, folder, seed: done.append((shape.name, folder.name)))
    found = searched(monkeypatch, tmp_path, "--parts", "reference", "--jobs", "2")
    assert done[-1] == ("pixels_50-0", "no_pre-training_50-0") and done.count("pixels_50-0") == 1
    assert len(found["rows"]) == 3


def test_a_dry_run_writes_nothing_and_counts_the_hours(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["payoff", "--dry_run", "--output", str(tmp_path / "none.json")])
    payoff.main()
    printed = capsys.readouterr().out
    hours = float(printed.splitlines()[-1].split(" hours")[0])
    lines = [float(line.split()[-2]) for line in printed.splitlines()[:-1]]
    assert hours == pytest.approx(sum(lines), abs=0.15) and len(lines) == len(KNOWN) + 7  # random weights 2, 1 + 2 * 2
    assert not list(tmp_path.iterdir())


# The comparison


CHOSEN = {
    "chosen": {
        "arrangement": "cells of 16, 0.6 hidden + frozen teacher",
        "epochs": 100,
        "flags": [
            "--patch_size=4",
            "--num_stages=3",
            "--target_type=pixel+feature",
            "--teacher_name_or_path=elsewhere",
        ],
        "model": ["--patch_size=4", "--num_stages=3"],
        "share": 0.5,
        "teacher": HALF,
        "speed": 2.0,
        "reading": USUAL.name,
        "score": 0.7,
    },
    "rows": [
        {"arrangement": HALF, "epochs": 50, "reading": "last stage, gem"},
        {"arrangement": PIXELS, "epochs": 50, "reading": "unused"},
        {"arrangement": PIXELS, "epochs": 100, "reading": "last stage, mean + max"},
        {"arrangement": UNTRAINED, "epochs": 50, "reading": "last stage, max"},
        {"arrangement": UNTRAINED_16, "epochs": 50, "reading": "all stages, mean"},
    ],
}
READ = {
    payoff_final.BEFORE: "last stage, gem",
    payoff_final.AS_LONG: "last stage, mean + max",
    payoff_final.AFTER: USUAL.name,
    UNTRAINED: "last stage, max",
    payoff_final.UNTRAINED_SHAPE: "all stages, mean",
}


def search_of(folder, **changed):
    (folder / "search.json").write_text(json.dumps({**CHOSEN, **changed}))
    return Rows(folder / "search.json", payoff.KEYS)


def compared(monkeypatch, tmp_path, *flags):
    search_of(tmp_path)
    arguments = ["payoff_final", "--output_dir", str(tmp_path / "out"), "--search", str(tmp_path / "search.json")]
    arguments += ["--output", str(tmp_path / "payoff.json"), "--photographs", "solar", "--jobs", "1"]
    monkeypatch.setattr(payoff_final, "SOURCES", {"solar": (write_cells, [])})
    monkeypatch.setattr(sys, "argv", [*arguments, *flags])
    payoff_final.main()
    return json.loads((tmp_path / "payoff.json").read_text())["rows"]


def test_the_comparison_has_a_row_for_each_start_seed_and_share(monkeypatch, tmp_path, capsys):
    runs = Runs(monkeypatch, payoff_final)
    shares = ["0.02", "0.25", "1"]
    found = compared(monkeypatch, tmp_path, "--seeds", "0", "1", "--fractions", *shares)
    starts = [payoff_final.BEFORE, payoff_final.AS_LONG, payoff_final.AFTER, UNTRAINED, payoff_final.UNTRAINED_SHAPE]
    starts.append(payoff_final.STATISTICS)
    keys = {(row["arm"], row["seed"], row["share"]) for row in found}
    assert keys == {(start, seed, share) for start in starts for seed in (0, 1) for share in (0.25, 1)}
    assert len(found) == len(keys) and "solar: 2% of the labels are left out" in capsys.readouterr().out
    steps = {name: [flag for flag in flags if "max_train_steps" in flag] for name, flags in runs.pretrained}
    # 64 photographs, 64 in a step: 27 epochs, 100 of FCMAE, half of them at twice the speed, and for the teacher.
    assert steps["the_recipe-0"] == ["--max_train_steps=27"]
    assert steps["the_recipe_as_long-0"] == steps["the_chosen_arrangement-0"] == ["--max_train_steps=100"]
    assert steps[f"{HALF.replace(',', '').replace(' ', '_')}-1"] == ["--max_train_steps=50"]
    flags = dict(runs.pretrained)["the_chosen_arrangement-1"]
    assert [flag for flag in flags if "teacher" in flag] == [
        f"--teacher_name_or_path={tmp_path}/out/solar/pretrain/pixels_half_of_the_time-1"
    ]
    for start, reading in READ.items():  # each as the search found it best for the same start
        mine = [row for row in found if row["arm"] == start]
        assert {row["reading"] for row in mine} == {reading}
        assert all(set(row["frozen"]) == {USUAL.name, reading} for row in mine)
    table = payoff_tables.final("solar", tmp_path / "payoff.json")
    assert len(table) == 3 * 5 + 1 and table[-1]["25%"] == "60.0 ± 0.0"
    aims = payoff_tables.aims("solar", tmp_path / "payoff.json")
    assert [(row["method"], row["labels"]) for row in aims] == [
        (method, share) for method in payoff_tables.METHODS[:2] for share in ("25%", "100%")
    ]
    before = len(runs.finetuned)
    assert compared(monkeypatch, tmp_path, "--seeds", "0", "1", "--fractions", *shares) == found
    assert len(runs.finetuned) == before
    # From the results file alone, random weights need the shape of a model, which is trained again with its teacher.
    stored = json.loads((tmp_path / "payoff.json").read_text())
    stored["rows"] = [row for row in stored["rows"] if row["arm"] != payoff_final.UNTRAINED_SHAPE]
    (tmp_path / "payoff.json").write_text(json.dumps(stored))
    shutil.rmtree(tmp_path / "out")
    count = len(runs.pretrained)
    again = compared(monkeypatch, tmp_path, "--seeds", "0", "1", "--fractions", *shares)
    assert {(row["arm"], row["seed"], row["share"]) for row in again} == keys
    assert [name for name, _ in runs.pretrained[count:]] == ["pixels_half_of_the_time-0", "the_chosen_arrangement-0"]


def test_a_comparison_needs_a_choice_and_a_reading_of_each_start(tmp_path):
    with pytest.raises(SystemExit, match="must hold a choice"):
        payoff_final.starts_of(Rows(tmp_path / "none.json", payoff.KEYS))
    assert {name: start.reading for name, start in payoff_final.starts_of(search_of(tmp_path)).items()} == READ
    rows = [row for row in CHOSEN["rows"] if row["arrangement"] != UNTRAINED_16]
    with pytest.raises(SystemExit, match=f"must have a row of .*{UNTRAINED_16}"):
        payoff_final.starts_of(search_of(tmp_path, rows=rows))


def write_results(file, values):
    """Of a figure with all labels, by start the values of the seeds."""
    rows = [
        {"photographs": "solar", "arm": arm, "seed": seed, "share": share, "reading": "r"}
        | {"fine-tuned": value, "frozen": {"r": dict.fromkeys(payoff_tables.METHODS[:2], value), USUAL.name: {}}}
        for arm, found in values.items()
        for seed, value in found.items()
        for share in (0.05, 1.0)
    ]
    file.write_text(json.dumps({"readings": dict.fromkeys(values, "r"), "rows": rows}))
    return file


def test_gains_are_over_the_better_random_weights_seed_by_seed(tmp_path):
    after, recipe = {2: 0.75, 0: 0.70, 1: 0.72}, {0: 0.60, 1: 0.63, 2: 0.61}
    shape = {1: 0.71, 0: 0.66, 2: 0.76}
    values = {payoff_final.AFTER: after, UNTRAINED: recipe, payoff_final.UNTRAINED_SHAPE: shape}
    for other, best in ((shape, payoff_final.UNTRAINED_SHAPE), ({**shape, 2: 0.2}, UNTRAINED)):
        values[payoff_final.UNTRAINED_SHAPE] = other
        found = payoff_tables.aims("solar", write_results(tmp_path / "payoff.json", values))
        assert {row["random weights"] for row in found} == {best}
        mine, others = ([values[name][seed] for seed in range(3)] for name in (payoff_final.AFTER, best))
        expected = [100 * value for value in stats.ttest_rel(mine, others).confidence_interval(0.95)]
        assert {row["95 % interval"] for row in found} == {"{:.1f} to {:.1f}".format(*expected)}
        assert found[0]["gain"] == f"{100 * (np.mean(mine) - np.mean(others)):+.1f}"
        assert len(found) == 5  # fine-tuning has no aim with all labels
    values[payoff_final.UNTRAINED_SHAPE] = {0: 0.5, 1: 0.5}  # under way
    waiting = payoff_tables.aims("solar", write_results(tmp_path / "payoff.json", values))
    assert waiting == [{"Result": "not yet run: `python -m experiments.payoff_final`"}]


@pytest.mark.parametrize(
    ("gains", "reached", "above"),
    [((0.01, 0.02, 0.03), True, False), ((0.02, 0.021, 0.022), True, True), ((-0.02, -0.021, -0.022), False, False)],
)
def test_only_an_interval_without_zero_is_above_random_weights(gains, reached, above, tmp_path):
    values = {
        payoff_final.AFTER: {seed: 0.6 + gain for seed, gain in enumerate(gains)},
        UNTRAINED: dict.fromkeys(range(3), 0.6),
    }
    row = payoff_tables.aims("solar", write_results(tmp_path / "payoff.json", values))[0]
    assert (row["reached"], row["above random weights"]) == (reached, above)


def test_the_target_writes_the_page_after_the_runs():
    (lines,) = re.findall(r"^payoff:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.M)
    modules = re.findall(r"-m (\S+)", lines)
    assert modules == ["experiments.payoff", "experiments.payoff_final", "benchmarks.pages"]


def test_the_hours_of_the_comparison_are_those_of_its_runs(tmp_path):
    options = argparse.Namespace(photographs=["natural"], fractions=[0.02, 1.0], seeds=[0], jobs=2, output="none.json")
    starts = payoff_final.starts_of(search_of(tmp_path))
    text = payoff_final.plan(starts, options)
    assert "1 of 1 shares" in text  # 2 % of 2,064 crops lack some of 43 classes
    alone = {name: start for name, start in starts.items() if name == UNTRAINED}
    assert payoff_final.plan(alone, options).splitlines()[-1] != text.splitlines()[-1]


def test_what_is_not_yet_run_is_said(tmp_path):
    for table in (payoff_tables.search, payoff_tables.readings):
        assert table(tmp_path / "none.json") == [{"Result": "not yet run: `python -m experiments.payoff`"}]
    expected = [{"Result": "not yet run: `python -m experiments.payoff_final`"}]
    assert payoff_tables.final("solar", tmp_path / "none.json") == expected
    assert payoff_tables.aims("solar", tmp_path / "none.json") == expected
