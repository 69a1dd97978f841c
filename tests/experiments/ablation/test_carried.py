"""The study goes on from its results file alone: what is in there is not run again, and no other settings get in.

Runs leave a log and nothing else here, and their answers are drawn by arm and seed.
"""

import json
import shutil
from zlib import crc32

import numpy as np
import pytest
from datasets import Dataset

from experiments import ablations
from experiments.ablation import study as study_module
from experiments.ablation.study import Ablations
from training.comparison.runner import Runner

LABELS = {"train": [0, 1] * 24, "test": [0, 1] * 10}
CHANGES = {
    "photographs": "another split",
    "learning_rate": 1.0,
    "change": "other",
    "fine-tuning": "--max_train_steps=1",
    "pretraining": "--max_train_steps=1",
    "replacement": "other",
}


def drawn_answers(study, case, *_):
    """The labels of the held-out images with a fifth of errors, of other images in each arm and seed."""
    labels = np.array(study.images_of(case)["test"]["label"][:])
    wrong = np.random.default_rng(crc32(str(case).encode())).random(len(labels)) < 0.2
    return {"fine-tuned": np.where(wrong, 1 - labels, labels)}


def drawn_figures(study, name, seed):
    """Of four blocks, at three steps."""
    for step in (0, 300, 600):
        values = np.random.default_rng(crc32(f"{name}-{seed}-{step}".encode())).random((2, 4)).round(4).tolist()
        yield str(step), dict(zip(("diversity", "dead channels"), values, strict=True))


@pytest.fixture
def launched(monkeypatch):
    """The folders of the runs, one after the other."""
    found = []

    def launch(self, script, recipe, folder, *flags):
        folder.mkdir(parents=True)
        speed = {"images_per_second": 80 if folder.parent.name == "pretrain" else 64}
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5, **speed}) + "\n")
        (folder / "all_results.json").write_text('{"loss": 0.5}')
        found.append(f"{folder.parent.name}/{folder.name}")

    monkeypatch.setattr(Runner, "launch", launch)
    monkeypatch.setattr(Runner, "side_by_side", lambda self, tasks: [task() for task in tasks])
    monkeypatch.setattr(Ablations, "answers", drawn_answers)
    monkeypatch.setattr(Ablations, "collapse_figures", drawn_figures)
    monkeypatch.setattr(Ablations, "subset", lambda study, case: case)
    monkeypatch.setattr(study_module, "write_changed", lambda pretrained, change, folder: folder)
    monkeypatch.setattr(ablations, "write_solar_cells", lambda *_: None)
    monkeypatch.setattr(ablations, "photographs_of", lambda _, split: Dataset.from_dict({"label": LABELS[split]}))
    return found


@pytest.fixture
def run(launched, tmp_path, capsys):
    """Runs the study, in a new folder each time; gives the runs that it made, the results, and what it printed last."""

    def run(*flags, blocks=("E1", "E2")):
        launched.clear()
        shutil.rmtree(tmp_path / "study", ignore_errors=True)
        given = ["--output_dir", str(tmp_path / "study"), "--results", str(tmp_path / "results/ablations.json")]
        ablations.main([*given, "--jobs", "1", "--blocks", *blocks, *flags])
        return list(launched), read(tmp_path), capsys.readouterr().out

    return run


def read(tmp_path):
    return json.loads((tmp_path / "results/ablations.json").read_text())


def edit(tmp_path, change):
    results = read(tmp_path)
    results["rows"] = [row for row in results["rows"] if change(row) is not False]
    (tmp_path / "results/ablations.json").write_text(json.dumps(results))


def test_without_the_folder_of_its_runs_the_study_runs_what_is_missing_alone(run, tmp_path):
    runs, whole, printed = run()
    assert len(runs) == 118 and len(whole["rows"]) == 8 * 3 + 64
    assert all(row["p corrected"] is not None for row in whole["contrasts"]) and len(whole["intervals"]) == 8
    assert None not in (whole["collapse shown"]["ordinary"], whole["steps"]["fine-tuning, same time"])

    table = printed[printed.index("| arm |") :]
    runs, found, printed = run()
    assert runs == [] and found == whole and printed.endswith(table)
    _, _, printed = run("--dry_run")
    assert "0 runs are left" in printed

    missing = [("grn_added", 3), ("v2_random_same_time", 5), ("v2_fcmae-0.001", 8)]
    edit(tmp_path, lambda row: (row["arm"], row["seed"]) not in missing)
    _, _, printed = run("--dry_run")
    assert "5 runs are left" in printed
    runs, found, printed = run()
    gate = ["pretrain/v2_fcmae-8", "finetune/v2_fcmae-0.001-8"]
    assert runs == [*gate, "pretrain/v1_fcmae-3", "finetune/grn_added-3", "finetune/v2_random_same_time-5"]
    assert found == whole and printed.endswith(table)


def test_a_kill_loses_the_row_under_way_alone(run, launched, monkeypatch, tmp_path):
    _, whole, _ = run()
    (tmp_path / "results/ablations.json").unlink()
    launch = Runner.launch

    def killed(self, script, recipe, folder, *flags):
        launch(self, script, recipe, folder, *flags)
        if folder.name == "v1_random-2":
            raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "launch", killed)
    with pytest.raises(KeyboardInterrupt):
        run()
    kept = read(tmp_path)["rows"]
    classifiers = [folder for folder in launched if folder.startswith("finetune/")]
    assert [f"finetune/{row['arm']}-{row['seed']}" for row in kept] == classifiers[:-1]
    assert kept[-1] == whole["rows"][len(kept) - 1]

    monkeypatch.setattr(Runner, "launch", launch)
    runs, found, _ = run()
    assert found == whole and runs[0].startswith("pretrain/") and not set(runs) & set(classifiers[:-1])


@pytest.mark.parametrize("name", CHANGES)
def test_a_row_of_other_settings_is_refused_and_left_as_it_is(name, run, launched, tmp_path):
    run("--seeds", "0", blocks=["E1"])

    def change(row):
        if row["arm"] == "v2_fcmae":
            row["settings"][name] = CHANGES[name]

    edit(tmp_path, change)
    before = (tmp_path / "results/ablations.json").read_bytes()
    with pytest.raises(ValueError, match=f"v2_fcmae-0 has {name}: {CHANGES[name]}, now .*Name another file"):
        run("--seeds", "1", blocks=["E2"])
    assert launched == [] and (tmp_path / "results/ablations.json").read_bytes() == before


def test_rows_of_other_steps_or_of_an_unknown_arm_are_refused(run, launched, tmp_path):
    run("--seeds", "0", blocks=["E2"])
    for flag in ("--pretrain_steps", "--finetune_steps"):
        with pytest.raises(ValueError, match=r"-8 has .*--max_train_steps=(600|308).*now .*--max_train_steps=4"):
            run(flag, "4", blocks=["E2"])
    assert launched == []
    edit(tmp_path, lambda row: row.update(arm="gone") if row["arm"] == "dense" else None)
    with pytest.raises(ValueError, match=r"gone-0 has photographs: .*, now None"):
        run(blocks=["E2"])


def test_a_learning_rate_that_block_g_would_not_choose_again_is_refused_as_soon_as_it_is_done(run, launched, tmp_path):
    run("--seeds", "0", blocks=["E2"])

    def change(row):
        if row["arm"].startswith("v2_fcmae-"):
            return False
        if row["arm"] == "dense":
            row["settings"]["learning_rate"] = 1.0
        return None

    edit(tmp_path, change)
    with pytest.raises(ValueError, match=r"dense-0 has learning_rate: 1.0, now"):
        run("--seeds", "0", blocks=["E2"])
    pretrained = [f"pretrain/v2_fcmae-{seed}" for seed in (8, 9, 10)]
    assert launched[:3] == pretrained
    assert set(launched[3:]) == {f"finetune/v2_fcmae-{rate}-{seed}" for rate in (0.001, 0.0005) for seed in (8, 9, 10)}


def test_the_results_of_all_blocks_stay_small(run, monkeypatch):
    monkeypatch.setitem(LABELS, "test", [0, 1] * 656)
    monkeypatch.setattr(ablations, "results_of", lambda study: {})  # a tenth of it, and minutes of bootstrap
    monkeypatch.setattr(
        Ablations,
        "collapse_figures",
        lambda *_: ((str(step), dict.fromkeys(("diversity", "dead channels"), [0.1234] * 12)) for step in range(4)),
    )
    _, found, _ = run(blocks=["E1", "E2", "E3", "E4", "E5", "L"])
    assert len(found["rows"]) == 126 and len(json.dumps(found, indent=2)) < 400_000
