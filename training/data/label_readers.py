"""Turns the labels of a row into what the loss takes: a class, several classes or values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from training.settings.checks import check


class LabelReader(Protocol):
    """Reads the labels of a row. `columns` are those it reads."""

    @property
    def columns(self) -> list[str]: ...

    def __call__(self, row: Mapping[str, Any]) -> int | Tensor:
        """The labels of a row; raises a `ValueError` that names the column, its value and the rule."""
        ...

    def in_words(self, row: Mapping[str, Any], names: Sequence[str]) -> str:
        """The labels of a row as text; `names` are those of the classes or values."""
        ...


@dataclass
class ClassColumn:
    """A column whose values are class numbers, or what `mapping` maps to these."""

    column: str
    num_labels: int
    mapping: Mapping[Any, int] | None = None

    @property
    def columns(self) -> list[str]:
        return [self.column]

    def number(self, value: Any) -> int:
        """The model's class for a value; raises a `ValueError` if there is none."""
        label = value if self.mapping is None else self.mapping.get(value)
        is_class = isinstance(label, int) and 0 <= label < self.num_labels
        check(self.column, value, is_class, f"be a class in [0, `num_labels` (={self.num_labels}))")
        assert isinstance(label, int)
        return int(label)  # a bool is an int too


class ClassReader(ClassColumn):
    """Reads the class of an image."""

    def __call__(self, row: Mapping[str, Any]) -> int:
        return self.number(row[self.column])

    def in_words(self, row: Mapping[str, Any], names: Sequence[str]) -> str:
        return names[self(row)]


class ClassListReader(ClassColumn):
    """Reads the classes of an image from a list to `(num_labels,)` float32: 1 for each class in it, else 0."""

    def __call__(self, row: Mapping[str, Any]) -> Tensor:
        values = row[self.column]
        check(self.column, values, values is not None, "be a list of classes, empty for an image that has none")
        numbers = [self.number(value) for value in values]
        check(self.column, values, len(numbers) == len(set(numbers)), "name each class once")
        labels = torch.zeros(self.num_labels)
        labels[numbers] = 1
        return labels

    def in_words(self, row: Mapping[str, Any], names: Sequence[str]) -> str:
        return classes_in_words(self(row), names)


@dataclass
class IndicatorReader:
    """Reads the classes of an image from a column for each class to `(num_labels,)` float32 of 0 and 1."""

    columns: list[str]

    def __call__(self, row: Mapping[str, Any]) -> Tensor:
        values = [row[column] for column in self.columns]
        for column, value in zip(self.columns, values, strict=True):
            check(column, value, value is not None and value in (0, 1), "be 0 or 1")
        return torch.tensor(values, dtype=torch.float32)

    def in_words(self, row: Mapping[str, Any], names: Sequence[str]) -> str:
        return classes_in_words(self(row), names)


@dataclass
class ValueReader:
    """Reads the values of an image to `(num_values,)` float32, less `mean` and divided by `std`."""

    columns: list[str]
    mean: list[float]
    std: list[float]

    def __call__(self, row: Mapping[str, Any]) -> Tensor:
        values = []
        for column, mean, std in zip(self.columns, self.mean, self.std, strict=True):
            value = row[column]
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            check(column, value, is_number, "be a finite number")
            values.append((value - mean) / std)
        return torch.tensor(values, dtype=torch.float32)

    def in_words(self, row: Mapping[str, Any], names: Sequence[str]) -> str:
        self(row)
        return ", ".join(f"{name} {row[column]:.6g}" for name, column in zip(names, self.columns, strict=True))


def classes_in_words(labels: Tensor, names: Sequence[str]) -> str:
    """The classes in `(num_labels,)` of 0 and 1 as text."""
    return ", ".join(name for name, there in zip(names, labels.tolist(), strict=True) if there) or "no class"
