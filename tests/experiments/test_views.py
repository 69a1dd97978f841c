"""The study of views: every arm gets the same time, and the table has the means and spreads of the seeds."""

import argparse
import json

import pytest

from experiments import views as views_study
from experiments.views import ARMS, ONE_VIEW, plan, table


def test_every_arm_has_the_steps_of_the_first_ones_time(tmp_path, monkeypatch):
    rates = {arm: 0.5 * (1 + index) for index, arm in enumerate(ARMS)}
    monkeypatch.setattr(views_study, "measure_rates", lambda *_: rates)
    found = plan(tmp_path, argparse.Namespace(epochs=4, jobs=1), (), 640)
    assert found["seconds"] == 80 and found["steps"] == {arm: 80 * rate for arm, rate in rates.items()}
    monkeypatch.setattr(views_study, "measure_rates", lambda *_: pytest.fail("the rates were measured again"))
    assert plan(tmp_path, argparse.Namespace(epochs=4, jobs=1), (), 640) == json.loads(json.dumps(found))


def test_the_table_has_means_and_deviations_over_the_seeds():
    figures = [{"20 nearest neighbours": x, "linear probe": x, "fine-tuned": 2 * x} for x in (0.2, 0.3, 0.4)]
    lines = table({ONE_VIEW: dict(zip("012", figures, strict=True))}, {ONE_VIEW: 1200}).splitlines()
    assert lines[-1] == "| one view | 1,200 | 30.0 ± 10.0 | 30.0 ± 10.0 | 60.0 ± 20.0 |"
