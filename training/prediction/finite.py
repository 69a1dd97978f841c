"""Finds answers that are no numbers: of broken weights, or where half precision overflows."""

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from training.prediction.parts import Answer


def bad_answer(what: str) -> Answer:
    """The answer to an image whose scores or values are no numbers."""
    return {"error": f"has {what} that are infinite or not a number"}


def finite_answer(answer: Answer, values: Iterable[float], what: str) -> Answer:
    """The answer, or an error if one of its values is no number."""
    return answer if all(map(math.isfinite, values)) else bad_answer(what)


class NanWatch:
    """Whether a detector computes NaN, of which its detections show nothing: a NaN is above no threshold.

    saw_nan: since it was last set to False.
    """

    def __init__(self, model: nn.Module, is_rcnn: bool) -> None:
        self.saw_nan = False
        parts = ("neck", "rpn.head", "roi_heads.box_predictor") if is_rcnn else ("",)
        for part in parts:
            model.get_submodule(part).register_forward_hook(self.look)

    def look(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """See what a part of the model has computed."""
        self.saw_nan |= any(bool(values.isnan().any()) for values in tensors_of(output))


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors of an output, of Transformers' the scores and boxes."""
    if isinstance(output, Tensor):
        return [output]
    if hasattr(output, "pred_boxes"):
        return [output.logits, output.pred_boxes]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in tensors_of(value)]
