"""The search of settings: what its pre-training is told."""

import argparse

import pytest

from experiments import label_efficiency as study
from experiments.search import START, try_out
from experiments.solar_cells import normalization_flags


def test_a_candidate_is_pretrained_with_the_statistics_of_the_photographs(tmp_path, monkeypatch):
    def launch(script, recipe, *flags, at_a_time):
        assert script == "pretrain"
        expected = normalization_flags()
        start = flags.index(expected[0])
        assert list(flags[start : start + len(expected)]) == expected
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "launch", launch)
    with pytest.raises(KeyboardInterrupt):
        try_out(tmp_path, START, argparse.Namespace(jobs=1, seeds=[0]))
