"""Settings of the labels of images."""

from dataclasses import dataclass

from training.settings.checks import check
from training.settings.fields import recipe

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)  # as Transformers calls them


@dataclass(kw_only=True)
class LabelSettings:
    """Labels and what they are."""

    label_column: str | list[str] = recipe(
        ["label"],
        "column that holds the class of an image, a list of its classes, or a value; or several columns, of 0 and 1 for"
        " a class each, or of values",
    )
    problem_type: str | None = recipe(
        None,
        f"{SINGLE_LABEL} (one class for each image), {MULTI_LABEL} (any number of classes) or {REGRESSION} (values)"
        " (default: from the label column, or the model's)",
        on_resume="refuse",
    )

    def check_labels(self) -> None:
        """Raise if the label columns or the problem type are wrong. One column in a list becomes a name alone."""
        problem, columns = self.problem_type, self.label_columns
        check("problem_type", problem, problem in (None, *PROBLEM_TYPES), f"be one of {', '.join(PROBLEM_TYPES)}")
        check("label_column", columns, len(columns) == len(set(columns)) > 0, "name different columns")
        self.label_column = columns[0] if len(columns) == 1 else columns

    @property
    def label_columns(self) -> list[str]:
        """The columns that hold the labels."""
        return [self.label_column] if isinstance(self.label_column, str) else list(self.label_column)

    def one_label_column(self) -> str:
        """The column that holds the classes, where an image has one class."""
        column = self.label_column
        check("label_column", column, isinstance(column, str), "be one column, which holds the class of each image")
        assert isinstance(column, str)
        return column
