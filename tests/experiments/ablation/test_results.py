"""The results and their tables: computed from written files, and plain about what is not there."""

import numpy as np
import pytest
from datasets import Dataset

from experiments.ablation import tables
from experiments.ablation.arms import BLOCKS, GATE, PRIMARY, SEEDS
from experiments.ablation.cases import Case, Length
from experiments.ablation.results import results_of
from experiments.ablation.study import Ablations
from training.comparison.records import Times
from training.comparison.runner import Runner

LABELS = np.array([0, 1] * 60)
RIGHT = {"v2_fcmae": 0.85, "v2_random": 0.65, "v1_fcmae": 0.85, "dense": 0.7, "grn_dropped": 0.6, "grn_added": 0.7}
NO_COLLAPSE = {"0": {"diversity": [0.5, 0.5], "dead channels": [0.0, 0.0]}}


def answers_of(arm, seed):
    """So many right answers, in every second seed one more, of V1 one less; of other images in each arm and seed."""
    number = round(120 * (1 - RIGHT[arm])) + (seed % 2 if arm == "v1_fcmae" else -(seed % 2))
    wrong = np.random.default_rng([seed, len(arm)]).permutation(120)[:number]
    answers = LABELS.copy()
    answers[wrong] = 1 - answers[wrong]
    return answers


def add_arm(study, arm, seeds=SEEDS):
    for seed in seeds:
        answers = answers_of(arm, seed)
        right = float(np.mean([(answers == LABELS)[label == LABELS].mean() for label in (0, 1)]))
        row = {"arm": arm, "seed": seed, "figures": {"fine-tuned": right, "linear probe": 0.5}, "settings": {}}
        study.rows[Case(arm, seed)] = row | {"answers": "".join(map(str, answers)), "collapse": NO_COLLAPSE}


def add_collapse(study, name, diversity, dead, seeds=SEEDS):
    for seed in seeds:
        figures = {"fine-tuned": 0.5 if name.startswith("v2") else 0.4}
        found = study.rows.setdefault(Case(name, seed), {"arm": name, "seed": seed, "figures": figures})
        found.setdefault("answers", "0" * len(LABELS))
        steps = {"0": [0.5, 0.5], "600": [diversity, diversity + 0.02]}
        found["collapse"] = {step: {"diversity": d, "dead channels": [dead, 0.0]} for step, d in steps.items()}


@pytest.fixture
def study(tmp_path):
    photographs = {"test": Dataset.from_dict({"label": LABELS})}
    runner = Runner(tmp_path, Times(tmp_path), 1)
    return Ablations(tmp_path, tmp_path / "ablations.json", photographs, Length(), runner)


def test_contrasts_wait_for_all_seeds_and_holm_for_all_contrasts(study):
    for contrast in PRIMARY[1:]:
        add_arm(study, contrast.other)
    add_arm(study, "v2_fcmae")
    add_arm(study, "v2_random", SEEDS[:7])
    found = {row["other"]: row for row in results_of(study)["contrasts"]}
    assert found["v2_random"]["p"] is None and found["dense"]["p"] == 2 / 256
    assert {row["p corrected"] for row in found.values()} == {row["resolved"] for row in found.values()} == {None}

    add_arm(study, "v2_random")
    found = {row["other"]: row for row in results_of(study)["contrasts"]}
    assert found["v2_random"]["gain"] == pytest.approx(np.mean(found["v2_random"]["gains"]))
    assert found["v2_random"]["low"] < 0.2 < found["v2_random"]["high"]
    resolved = {other: row["resolved"] for other, row in found.items()}
    assert resolved == {"v2_random": True, "v1_fcmae": False, "dense": True, "grn_dropped": True, "grn_added": True}
    assert found["dense"]["p corrected"] == 5 * 2 / 256


def test_a_contrast_whose_interval_holds_0_is_not_resolved(study):
    """All seeds agree by one image of 120: the seeds are certain, but other images might not have it."""
    for contrast in PRIMARY:
        add_arm(study, contrast.other)
    add_arm(study, "v2_fcmae")
    for seed in SEEDS:
        row = study.rows[Case("dense", seed)] = dict(study.rows[Case("v2_fcmae", seed)], arm="dense")
        answers = np.array(list(row["answers"])).astype(int)
        first = np.flatnonzero(answers == LABELS)[0]
        answers[first] = 1 - answers[first]
        row["answers"] = "".join(map(str, answers))
        row["figures"] = {"fine-tuned": row["figures"]["fine-tuned"] - 1 / 120}
    found = {row["other"]: row for row in results_of(study)["contrasts"]}
    assert found["dense"]["p"] == 2 / 256 and found["dense"]["p corrected"] <= 0.05
    assert found["dense"]["low"] <= 0 <= found["dense"]["high"] and found["dense"]["resolved"] is False
    assert found["grn_dropped"]["resolved"] is True  # the control


def test_arms_that_never_differ_are_refused_as_one_model(study):
    add_arm(study, "v2_fcmae")
    for seed in SEEDS:
        study.rows[Case("dense", seed)] = dict(study.rows[Case("v2_fcmae", seed)], arm="dense")
    with pytest.raises(ValueError, match="v2_fcmae and dense must differ"):
        results_of(study)


def test_the_difference_in_a_block_is_that_of_its_seeds(study):
    for arm in ("v2_fcmae", "v1_fcmae"):
        add_arm(study, arm)
    study.write(**results_of(study))
    found = {row["block"]: row["seeds"] for row in results_of(study)["intervals"] if row["arm"] == "v1_fcmae"}
    assert found == {"E1": list(range(8)), "E3": [0, 1, 2]}
    shown = {block: tables.arms(block, study.results)[1]["minus V2, FCMAE"] for block in found}
    gains = [
        np.mean(answers_of("v1_fcmae", seed) == LABELS) - np.mean(answers_of("v2_fcmae", seed) == LABELS)
        for seed in SEEDS
    ]
    for block, seeds in found.items():
        assert float(shown[block].split(" (")[0]) == pytest.approx(100 * np.mean(gains[: len(seeds)]), abs=0.05)


def test_collapse_is_shown_if_every_seed_has_it(study):
    add_collapse(study, "v2_fcmae", 0.45, 0.0)
    assert results_of(study)["collapse shown"] == {"ordinary": None, "ten times": None}
    add_collapse(study, "v1_fcmae", 0.36, 0.1)
    assert results_of(study)["collapse shown"]["ordinary"] is False
    add_collapse(study, "v1_fcmae", 0.34, 0.0)
    assert results_of(study)["collapse shown"]["ordinary"] is True
    add_collapse(study, "v1_fcmae", 0.45, 0.21)  # one of two blocks: 10 % and more in the mean
    assert results_of(study)["collapse shown"]["ordinary"] is True
    add_collapse(study, "v1_fcmae", 0.45, 0.0, [7])
    assert results_of(study)["collapse shown"]["ordinary"] is False
    add_collapse(study, "v1_fcmae_long", 0.2, 0.0, [0])
    add_collapse(study, "v2_fcmae_long", 0.4, 0.0, [0])
    assert results_of(study)["collapse shown"]["ten times"] is True


def test_tables_are_computed_from_the_file(study):
    for arm in RIGHT:
        add_arm(study, arm)
    add_collapse(study, "v2_fcmae", 0.45, 0.1)
    study.write(**results_of(study))
    results = study.results
    rows = {row["contrast"]: row for row in tables.contrasts(results)}
    first = rows["FCMAE against random weights"]
    assert (first["paper"], first["here"], first["p"], first["p, Holm"]) == ("+0.3", "+20.0", "0.008", "0.039")
    assert first["conclusion"] == "higher" and first["95 % interval"].startswith("+")
    assert rows["V2 against V1, both from FCMAE"]["conclusion"] == "not resolved"
    by_arm = {row["arm"]: row for row in tables.arms("E1", results)}
    scores = [np.mean(answers_of("v1_fcmae", seed) == LABELS) for seed in SEEDS]
    assert by_arm["V1, FCMAE"]["seeds"] == "8 of 8" and by_arm["V1, FCMAE"]["linear probe"] == "50.0 ± 0.0"
    assert float(by_arm["V1, FCMAE"]["fine-tuned"].split(" ±")[0]) == pytest.approx(100 * np.mean(scores), abs=0.5)
    assert by_arm["V1, FCMAE"]["minus V2, FCMAE"].startswith("-") and by_arm["V2, FCMAE"]["minus V2, FCMAE"] == ""
    assert by_arm["V1, random weights"]["fine-tuned"] == tables.NOT_RUN
    three = {row["arm"]: row["seeds"] for row in tables.arms("E3", results)}
    assert three["V2, FCMAE"] == "3 of 3" and three["LRN in GRN's place"] == "0 of 3"
    found = [row for row in tables.collapse(results) if row["pre-training"] == "V2, FCMAE"]
    assert [row["step"] for row in found] == ["0", "600"]
    assert (found[1]["distance, mean"], found[1]["least block"]) == ("0.460", "0.450")
    assert (found[1]["dead, mean"], found[1]["worst block"]) == ("5.0 %", "10.0 %")


def test_without_results_every_table_says_that_nothing_was_run(tmp_path):
    missing = tmp_path / "none.json"
    given = [tables.contrasts, tables.rates, tables.collapse, tables.verdicts]
    given += [lambda file, block=block: tables.arms(block, file) for block in BLOCKS if block != "G"]
    for table in given:
        assert all(tables.NOT_RUN in row.values() for row in table(missing))
    assert len(tables.rates(missing)) == len(GATE) // 2


def test_an_effect_in_the_other_direction_is_lower():
    assert tables.conclusion({"resolved": True, "gain": -0.1}) == "lower"
    assert tables.conclusion({"resolved": None, "gain": 0.1}).startswith("open")
