"""What labels are follows from their columns where that is certain; else an error says what to give."""

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from tests.photographs import message_of
from training.data.problem_type import problem_type_of

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
COLUMNS = {
    "names": (["a", "b"], Value("string")),
    "classes": ([0, 1], ClassLabel(names=["a", "b"])),
    "bits": ([0, 1], Value("int64")),
    "more bits": ([1, 1], Value("int64")),
    "gappy bits": ([0.0, None], Value("float64")),
    "numbers": ([3, 7], Value("int64")),
    "flags": ([True, False], Value("bool")),
    "more flags": ([True, True], Value("bool")),
    "fractions": ([0.5, 2.0], Value("float32")),
    "whole floats": ([1.0, 2.0], Value("float64")),
    "lists": ([["a"], []], List(Value("string"))),
    "class lists": ([[1], []], List(ClassLabel(names=["a", "b"]))),
    "vectors": ([[0.5], [1.0]], List(Value("float32"))),
}
FEATURES = Features({name: feature for name, (_, feature) in COLUMNS.items()})
ROWS = Dataset.from_dict({name: values for name, (values, _) in COLUMNS.items()}, features=FEATURES)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        *((name, SINGLE) for name in ("names", "classes", "bits", "numbers", "flags")),
        *((name, MULTI) for name in ("lists", "class lists", "bits+more bits", "flags+bits", "bits+gappy bits")),
        *((name, REGRESSION) for name in ("fractions", "fractions+numbers", "fractions+whole floats")),
    ],
)
def test_the_problem_follows_from_the_columns(columns, expected):
    assert problem_type_of(ROWS, columns.split("+")) == expected
    assert problem_type_of(ROWS, columns.split("+"), expected) == expected


@pytest.mark.parametrize("columns", ["whole floats", "numbers+bits", "whole floats+numbers"])
def test_what_could_be_two_problems_has_to_be_said(columns):
    message = message_of(lambda: problem_type_of(ROWS, columns.split("+")))
    assert message.startswith("`problem_type` (=None) must be given, multi_label_classification (")
    assert "regression (columns of numbers)" in message and all(
        f"`{name}` holds" in message for name in columns.split("+")
    )
    assert problem_type_of(ROWS, columns.split("+"), REGRESSION) == REGRESSION


def test_an_empty_cell_among_integers_is_told():
    rows = Dataset.from_dict({"label": [1.0, None, 2.0, float("nan")]})
    message = message_of(lambda: problem_type_of(rows, ["label"]))
    assert "holds floats, all of them whole, and 2 missing: an empty cell turns integers into floats" in message
    assert "missing" not in message_of(lambda: problem_type_of(ROWS, ["whole floats"]))


def test_decimal_commas_are_told_where_numbers_are_asked_for():
    for values, is_told in ((["0,5", "-1,25"], True), (["0,5", "cat"], False)):
        message = message_of(lambda values=values: problem_type_of(Dataset.from_dict({"x": values}), ["x"], REGRESSION))
        assert "`x` holds names. It takes columns of numbers" in message
        assert ("with a point instead of the comma" in message) == is_told


def test_a_stream_is_asked_for_where_its_values_would_decide():
    stream = ROWS.to_iterable_dataset()
    for columns, expected in ((["lists"], MULTI), (["names"], SINGLE), (["flags", "more flags"], MULTI)):
        assert problem_type_of(stream, columns) == expected
    for columns in (["fractions"], ["bits", "more bits"]):
        assert "`problem_type` (=None) must be given" in message_of(lambda: problem_type_of(stream, columns))  # noqa: B023
    assert problem_type_of(stream, ["bits", "more bits"], MULTI) == MULTI
    assert problem_type_of(stream, ["fractions"], REGRESSION) == REGRESSION


@pytest.mark.parametrize(
    ("columns", "asked", "held"),
    [
        ("lists", SINGLE, "lists"),
        ("bits+more bits", SINGLE, "integers"),
        ("names", MULTI, "names"),
        ("classes", MULTI, "names"),
        ("bits+lists", MULTI, "lists"),
        ("names", REGRESSION, "names"),
        ("lists", REGRESSION, "lists"),
        ("vectors", REGRESSION, "lists"),
        ("flags", REGRESSION, "booleans"),
        ("fractions+names", REGRESSION, "names"),
    ],
)
def test_a_problem_that_contradicts_its_columns_is_refused(columns, asked, held):
    message = message_of(lambda: problem_type_of(ROWS, columns.split("+"), asked))
    assert message.startswith(f"`problem_type` (={asked}) must fit the labels: ") and f"holds {held}" in message


def test_columns_of_names_or_lists_cannot_be_several():
    for name in ("names", "lists"):
        message = message_of(lambda: problem_type_of(ROWS, ["bits", name]))  # noqa: B023
        assert "must be columns of 0 and 1, or of numbers, if it is several" in message and f"`{name}` holds" in message


def test_one_column_of_bits_is_one_class_of_several_if_that_is_asked_for():
    assert problem_type_of(ROWS, ["bits"], MULTI) == problem_type_of(ROWS, ["flags"], MULTI) == MULTI


def test_a_column_that_is_missing_is_named():
    message = message_of(lambda: problem_type_of(ROWS, ["bits", "kind"]))
    assert message.startswith("`label_column` (=kind) must be a column of the data set, which has names, classes")
