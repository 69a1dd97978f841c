"""What the shapes of a model's parameters show of any family."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def num_labels(tensors: Mapping[str, Tensor], width: int) -> int:
    """The number of classes of a head that fits the encoder's width."""
    found = []
    for name, tensor in tensors.items():
        is_weight = name == "classifier.weight" and tensor.ndim == 2 and tensor.shape[1] == width
        is_bias = name == "classifier.bias" and tensor.ndim == 1
        if is_weight or is_bias:
            found.append(len(tensor))
    return most_common(found)


def most_common(numbers: list[Any]) -> Any:
    """The number that most have; 1 where there are none."""
    return Counter(numbers or [1]).most_common(1)[0][0]
