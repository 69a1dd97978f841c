"""The demo's split, on a stand-in for the package that carries the photographs."""

import sys
from collections import Counter
from types import ModuleType

import numpy as np
import pytest
from datasets import Dataset, disable_progress_bars

from experiments.solar_cells import STORED_SIZE, write_solar_cells

PROBABILITIES = np.repeat([0.0, 1 / 3, 2 / 3, 1.0], [48, 16, 8, 24])


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The written parts; each photograph is one grey value, its index."""
    photographs = np.arange(len(PROBABILITIES), dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    module = ModuleType("elpv_dataset.utils")
    module.load_dataset = lambda: (photographs, PROBABILITIES, np.array(["mono", "poly"] * 48))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "elpv_dataset.utils", module)
    monkeypatch.setitem(sys.modules, "elpv_dataset", ModuleType("elpv_dataset"))
    disable_progress_bars()
    counts = write_solar_cells(tmp_path)
    names = ("labelled/train", "labelled/test", "unlabelled/train")
    return counts, [Dataset.from_parquet(str(tmp_path / f"{name}.parquet"), cache_dir=str(tmp_path)) for name in names]


def indices(part):
    return [np.asarray(image)[0, 0].item() for image in part["image"]]


def test_held_out_photographs_are_in_no_training_part(parts):
    counts, (train, test, unlabelled) = parts
    assert sorted(indices(train) + indices(test)) == list(range(96))
    assert indices(unlabelled) == indices(train) and unlabelled.column_names == ["image"]
    assert counts == {"train": 72, "test": 24, "test_defective": 8, "train_defective": 24}
    assert train[0]["image"].size == (STORED_SIZE, STORED_SIZE)


def test_split_keeps_the_shares_and_labels_follow_the_probability(parts):
    _, (train, test, _) = parts
    for part, share in ((train, 0.75), (test, 0.25)):
        assert Counter(PROBABILITIES[indices(part)]) == {
            0.0: 48 * share,
            1 / 3: 16 * share,
            2 / 3: 8 * share,
            1.0: 24 * share,
        }
        assert part["label"] == [int(PROBABILITIES[i] >= 0.5) for i in indices(part)]
    assert train.features["label"].names == ["functional", "defective"]


def test_the_share_that_is_held_out_can_be_chosen(parts, tmp_path):
    counts = write_solar_cells(tmp_path / "half", 0.5)
    assert counts["train"] == counts["test"] == 48 and counts["train_defective"] == counts["test_defective"] == 16
