"""Loading weights to start from: what a task draws anew on purpose is a line, anything else that differs an error."""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from transformers import PreTrainedModel
from transformers.modeling_utils import logger

from training.console.errors import is_first_process
from training.settings.checks import check

ENCODER = re.compile(r"(^|\.)(embeddings|encoder)\.")
HEAD = r"^classifier\."
FINAL_NORM = r"^(convnextv2\.)?layernorm\."  # pre-training has none
DECODER = r"^decoder\."


class Expected(NamedTuple):
    """Patterns of weights that a task draws anew where the source lacks them, and of those that it has no use for."""

    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    is_told: bool = True  # which are new


FINETUNING = Expected(new=(HEAD, FINAL_NORM), unused=(DECODER,))
PRETRAINING = Expected(new=(DECODER,), unused=(HEAD, FINAL_NORM))
FEATURES = Expected(new=(FINAL_NORM,), unused=(HEAD, DECODER), is_told=False)  # which are taken before that norm
NOTHING = Expected()


@contextmanager
def model_named(name: str | None) -> Iterator[None]:
    """Say which setting names a model that cannot be found, as a `ValueError`."""
    try:
        yield
    except OSError as error:
        found = " ".join(str(error).split())
        raise ValueError(
            f"`model_name_or_path` (={name}) must be a folder that holds a model, or a model on the Hub: {found}"
        ) from error


def load_pretrained(model_class: type[PreTrainedModel], name: str | None, expected: Expected, **arguments: Any) -> Any:
    """`model_class.from_pretrained(name, **arguments)`, with the report of Transformers reduced to what matters.

    Raises:
        ValueError: if other weights than those expected would be drawn anew, or some of the encoder left out.
    """
    with model_named(name), held_report():
        loaded: Any = model_class.from_pretrained(name, output_loading_info=True, **arguments)
    model, report = loaded
    anew = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    drawn = {key for key in anew if matches(key, expected.new)}
    left_out = {key for key in report["unexpected_keys"] if not matches(key, (*expected.new, *expected.unused))}
    lost = sorted(anew - drawn) or sorted(key for key in left_out if ENCODER.search(key))
    rule = f"hold the weights of this model and no others, but {len(lost)} differ, e.g. `{next(iter(lost), None)}`"
    check("model_name_or_path", name, not lost, rule)
    if is_first_process() and drawn and expected.is_told:
        print(f"Weights of {name}; those of {layers(drawn)} are new.", flush=True)
    if is_first_process() and left_out:
        print(f"Warning: the model has no place for weights in {name}: {layers(left_out)}.", flush=True)
    return model


def matches(key: str, patterns: Iterable[str]) -> bool:
    """Whether a weight's name is one of the patterns."""
    return any(re.search(pattern, key) for pattern in patterns)


def layers(keys: Iterable[str]) -> str:
    """The layers of weights in words: `classifier.weight` and `classifier.bias` are one."""
    return ", ".join(sorted({key.rpartition(".")[0] or key for key in keys}))


class HeldReports(logging.Filter):
    """Keeps reports of a loading instead of letting them through."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if "LOAD REPORT" not in record.getMessage():
            return True
        self.records.append(record)
        return False


@contextmanager
def held_report() -> Iterator[None]:
    """Hold back the table that Transformers logs of a loading; show it after all if the loading fails."""
    held = HeldReports()
    logger.addFilter(held)
    try:
        yield
    except Exception:
        logger.removeFilter(held)
        for record in held.records:
            logger.handle(record)
        raise
    finally:
        logger.removeFilter(held)
