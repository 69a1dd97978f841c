"""Figures of each class: counted right, written, drawn, told and put into the card."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from conversion.publishing.contents import read_contents
from conversion.publishing.publication import Publication
from hf_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification
from training.evaluation import pictures
from training.evaluation.metrics import in_words
from training.evaluation.per_class import Answers, class_table, confusions, save_class_figures, table_in_words

NAMES = ["cat", "dog", "two\nlines", "$猫"]


@pytest.fixture
def drawn(monkeypatch):
    figures, save = [], pictures.save_figure
    monkeypatch.setattr(pictures, "save_figure", lambda figure, output: (figures.append(figure), save(figure, output)))
    return figures


def answers(num_classes=4, count=200):
    random = np.random.default_rng(0)
    true = random.integers(0, num_classes - 1, count)  # the last class has no image
    return Answers(true, np.where(random.random(count) < 0.6, true, random.integers(0, num_classes, count)))


def rows_of(file):
    with file.open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def test_the_table_holds_the_counted_figures_of_every_class():
    found = answers()
    for row in class_table(found, NAMES):
        pairs = list(zip(found.references == row["label"], found.predictions == row["label"], strict=True))
        hits, of_class, given = sum(a and b for a, b in pairs), sum(a for a, _ in pairs), sum(b for _, b in pairs)
        assert (row["class"], row["images"]) == (NAMES[row["label"]], of_class)
        assert row["precision"] == pytest.approx(hits / given)
        assert row["recall"] == (pytest.approx(hits / of_class) if of_class else None)
        assert row["f1"] == pytest.approx(2 * hits / (of_class + given))


def test_a_class_that_is_neither_there_nor_given_has_no_figures():
    row = class_table(Answers(np.array([0, 1]), np.array([0, 0])), NAMES)[2]
    assert (row["images"], row["precision"], row["recall"], row["f1"]) == (0, None, None, None)


def test_confusions_are_all_wrong_answers_the_most_frequent_pair_first():
    found = answers()
    rows = confusions(found, NAMES)
    assert sum(row["images"] for row in rows) == (found.references != found.predictions).sum()
    assert [row["images"] for row in rows] == sorted((row["images"] for row in rows), reverse=True)
    first = rows[0]
    both = (found.references == first["label"]) & (found.predictions == first["taken_label"])
    assert first["images"] == both.sum() and first["share"] == both.sum() / (found.references == first["label"]).sum()
    assert (first["class"], first["taken_for"]) == (NAMES[first["label"]], NAMES[first["taken_label"]])


def test_the_majority_is_what_always_giving_the_largest_class_would_reach():
    found = answers()
    assert found.majority_accuracy == max((found.references == label).mean() for label in range(4))


@pytest.mark.parametrize("num_classes", [2, 4, 12, 50])
def test_the_matrix_shows_every_count(num_classes, tmp_path, drawn):
    found, names = answers(num_classes), (NAMES * 13)[:num_classes]
    save_class_figures(tmp_path, found, names)
    axes = drawn[0].axes[0]
    shown = {text.get_position()[::-1]: int(text.get_text().split("\n")[0]) for text in axes.texts}
    pairs = list(zip(found.references.tolist(), found.predictions.tolist(), strict=True))
    assert {pair: count for pair, count in shown.items() if count} == {pair: pairs.count(pair) for pair in pairs}
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[:4] == ["cat", "dog", "two lines", "class 3"][:num_classes]  # the font has no such letter
    assert {row["class"] for row in rows_of(tmp_path / "eval_per_class.csv")} == set(names)
    with Image.open(tmp_path / "confusion_matrix.png") as picture:
        assert picture.width > 300


def test_of_many_classes_the_most_confused_pairs_are_drawn(tmp_path, drawn):
    found, names = answers(120, 4000), [f"class {label}" for label in range(120)]
    save_class_figures(tmp_path, found, names)
    rows = rows_of(tmp_path / "eval_confusions.csv")
    bars = [bar.get_width() for bar in drawn[0].axes[0].patches]
    assert len(bars) == 25 and bars == [int(row["images"]) for row in rows[:25]]
    assert (tmp_path / "most_confused.png").exists() and not (tmp_path / "confusion_matrix.png").exists()


def test_figures_of_an_earlier_run_are_not_left_beside_a_new_one(tmp_path):
    save_class_figures(tmp_path, answers(), NAMES)
    save_class_figures(tmp_path, answers(60), [str(label) for label in range(60)])
    assert not (tmp_path / "confusion_matrix.png").exists()
    save_class_figures(tmp_path, None, NAMES)
    assert not list(tmp_path.iterdir())


def test_the_table_is_printed_whole_for_few_classes_and_the_worst_of_many():
    few = table_in_words(answers(), NAMES).splitlines()
    assert [line.split("  ")[0] for line in few[1:]] == ["cat", "dog", "two lines", "$猫"]
    assert few[4].split()[1:] == ["0", "0.0", "%", "-", "0.0", "%"]
    found = answers(30, 900)
    many = table_in_words(found, [f"class{label}" for label in range(30)]).splitlines()
    table = [row for row in class_table(found, [f"class{label}" for label in range(30)]) if row["images"]]
    lowest = sorted(table, key=lambda row: row["f1"])[:10]
    assert many[0].startswith("the 10 worst of 30 classes")
    assert [line.split()[0] for line in many[1:]] == [row["class"] for row in lowest]


def test_an_evaluation_in_words_puts_the_majority_beside_the_accuracy():
    results = {"eval_accuracy": 0.729, "eval_majority_accuracy": 0.544, "eval_accuracy_top5": 0.951, "eval_loss": 0.8}
    expected = "accuracy 72.9 % (always the largest class: 54.4 %), top-5 95.1 %, loss 0.8000, 1,234 images"
    assert in_words({**results, "eval_samples": 1234, "train_loss": 1.0}) == expected
    assert "top-5" not in in_words({**results, "eval_accuracy_top5": 1.0, "eval_samples": 5})


@pytest.mark.parametrize("num_classes", [4, 60])
def test_the_card_holds_the_figures_of_each_class_or_of_the_worst_ten(num_classes, tmp_path):
    from conversion.publishing.card import render_card

    names = (["a|b", *NAMES[1:]] * 15)[:num_classes]
    config = ConvNextV2Config(depths=[1, 1], hidden_sizes=[8, 8], id2label=dict(enumerate(names)))
    ConvNextV2ForImageClassification(config).save_pretrained(tmp_path)
    without = render_card(tmp_path)
    assert "Figures per class" not in without
    found = answers(num_classes, 2000)
    save_class_figures(tmp_path, found, names)
    (tmp_path / "all_results.json").write_text(json.dumps({"eval_accuracy": 0.5}))
    section = render_card(tmp_path).split("## Figures per class")[1].split("##")[0]
    lines = section.strip().splitlines()
    rows = [line.replace(r"\|", "/").split("|")[1:-1] for line in lines[4:]]
    expected = class_table(found, names)
    if num_classes == 60:
        expected = sorted((row for row in expected if row["images"]), key=lambda row: row["f1"])[:10]
        assert "the 10 classes with the lowest F1" in lines[0]
    cells = [[" ".join(row["class"].split()).replace("|", "/"), str(row["images"])] for row in expected]
    assert [[cell.strip() for cell in row[:2]] for row in rows] == cells
    assert "eval_per_class" not in section if num_classes == 4 else "eval_per_class.csv" in section
    assert read_contents(tmp_path, Publication()).results.pictures[-1][0] in (
        "confusion_matrix.png",
        "most_confused.png",
    )
