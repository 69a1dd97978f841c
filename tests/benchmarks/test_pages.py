"""The figures in README and docs are those that the code computes or the benchmarks have measured."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.pages import AT_SCALE, COMPUTED, PAGES, TABLE, as_table, filled
from benchmarks.plot import digest_of_speeds
from benchmarks.shared import measured_tables
from experiments import dense_tables, payoff_tables
from experiments.ablation import tables as ablation_tables

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "docs/benchmarks"
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_the_tables_that_the_code_computes_and_the_benchmarks_have_measured(page):
    """Else: python -m benchmarks.pages"""
    assert filled(page.read_text()) == page.read_text()


def test_every_table_is_on_one_page():
    found = Counter((kind, name) for page in PAGES for _, kind, name, _ in TABLE.findall(page.read_text()))
    of_studies = (*ablation_tables.TABLES, *payoff_tables.MEASURED, *dense_tables.TABLES)
    names = (*json.loads(AT_SCALE.read_text())["parts"], *measured_tables.TABLES, *of_studies)
    expected = {("measured", name) for name in names}
    assert found == Counter(expected | {("computed", name) for name in COMPUTED})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_figure_that_was_changed_by_hand_is_found(page):
    text = page.read_text()
    rows = TABLE.search(text)[0].splitlines()[2:]  # type: ignore[index]
    row = next(line for line in reversed(rows) if re.search(r"\d", line))
    assert filled(text.replace(row, re.sub(r"\d(?=\D*$)", "x", row))) == text


def test_a_table_shows_numbers_at_the_right_and_words_at_the_left():
    rows = [{"size": "tiny", "s": 1.234, "n": 12345, "ok": True}, {"size": "base", "s": 123.4, "n": 1, "ok": False}]
    assert as_table(rows).splitlines() == [
        "| size | s | n | ok |",
        "| --- | ---: | ---: | --- |",
        "| tiny | 1.23 | 12,345 | yes |",
        "| base | 123 | 1 | **no** |",
    ]


def test_the_picture_of_speeds_was_drawn_from_these_figures():
    """Else: python -m benchmarks.plot"""
    with Image.open(ROOT / "docs/speed.png") as picture:
        assert picture.text["Source"] == digest_of_speeds()


# What the README says, the file of the figures, the row, and its columns of speed and of memory.
CLAIMS = (
    ("FCMAE step, tiny", "fcmae_step", {"size": "tiny", "what": "step"}, "times masked-dense", "memory / masked-dense"),
    (
        *("classifier, inference, tiny", "classifier", {"size": "tiny", "what": "inference", "batch": 8}),
        *("times Transformers", "memory / Transformers'"),
    ),
    (
        *("classifier, training step, tiny", "classifier", {"size": "tiny", "what": "training", "batch": 8}),
        *("times Transformers", "memory / Transformers'"),
    ),
    ("ConvMAE encoder step, base", "convmae", {"size": "base", "sets": 1}, "times official", "memory / official"),
)


@pytest.mark.parametrize(("what", "file", "case", "speed", "memory"), CLAIMS, ids=[claim[0] for claim in CLAIMS])
def test_the_readme_has_the_figures_of_the_benchmarks(what, file, case, speed, memory):
    rows = json.loads((MEASURED / f"{file}.json").read_text())["rows"]
    (row,) = [row for row in rows if case.items() <= row.items()]
    expected = f"{row[speed]['median']:.2f} x as fast, {row[memory]:.2f} x the memory"
    (found,) = re.findall(rf"^\| {re.escape(what)}[^|]*\| ([^|]+) \|", README, re.M)
    assert found == expected
