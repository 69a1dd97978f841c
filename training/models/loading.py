"""Loading initial weights. Layers that a task initialises anew are printed; any other missing weight is an error."""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import logger

from training.console.errors import is_first_process, is_of_ours
from training.settings.checks import check

ENCODER = re.compile(r"(^|\.)(embeddings|encoder)\.")
HEAD = r"^classifier\."
FINAL_NORM = r"^((convnextv2|convmae)\.)?layernorm\."  # pre-training has none
DECODER = r"^decoder\."


# What Transformers, safetensors and the checks of a configuration raise for files that they cannot use.
NOT_LOADED = (ValueError, KeyError, TypeError, AttributeError, ImportError, SafetensorError, StrictDataclassError)


class Expected(NamedTuple):
    """Patterns of weights that a task initialises anew if the source lacks them, and of weights that it ignores."""

    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    is_told: bool = True  # whether to print which layers are new


FINETUNING = Expected(new=(HEAD, FINAL_NORM), unused=(DECODER,))
PRETRAINING = Expected(new=(DECODER,), unused=(HEAD, FINAL_NORM))
FEATURES = Expected(new=(FINAL_NORM,), unused=(HEAD, DECODER), is_told=False)  # features are taken before that norm
NOTHING = Expected()


@contextmanager
def model_named(name: str | None) -> Iterator[None]:
    """Turn errors about a model that cannot be found or loaded into a `ValueError` that names the setting.

    Code that a repository holds is never run here, and an error about it is one of these.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"`model_name_or_path` (={name}) must be a folder that holds a model, or a model on the Hub: "
            f"{' '.join(str(error).split())}"
        ) from error
    except NOT_LOADED as error:
        if is_of_ours(error):
            raise
        told = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"`model_name_or_path` (={name}) must hold a model that can be loaded: {told}") from error


def load_pretrained(model_class: type[PreTrainedModel], name: str | None, expected: Expected, **arguments: Any) -> Any:
    """`model_class.from_pretrained(name, **arguments)`, with one line instead of Transformers' report of the weights.

    Raises:
        ValueError: if weights other than the expected ones would be initialised anew, if encoder weights of the source
            would not be used, or if weights are NaN or infinite.
    """
    with model_named(name), held_report(), refused_shapes(name):
        loaded: Any = model_class.from_pretrained(name, output_loading_info=True, **arguments)
    model, report = loaded
    anew = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    drawn = {key for key in anew if matches(key, expected.new)}
    left_out = {key for key in report["unexpected_keys"] if not matches(key, expected.unused)}
    lost = sorted(anew - drawn) or sorted(key for key in left_out if ENCODER.search(key))
    rule = f"hold the weights of this model and no others, but {len(lost)} differ, e.g. `{next(iter(lost), None)}`"
    check("model_name_or_path", name, not lost, rule)
    check_finite_weights(model, name)
    if is_first_process() and drawn and expected.is_told:
        print(f"Weights of {name}; those of {layers(drawn)} are new.", flush=True)
    if is_first_process() and left_out:
        print(f"Warning: the model has no place for weights in {name}: {layers(left_out)}.", flush=True)
    if hasattr(model.config, "auto_map"):  # of a repository with code, which is not saved along
        del model.config.auto_map
    return model


def check_finite_weights(model: PreTrainedModel, name: str | None) -> None:
    """Raise if a model has weights that are NaN or infinite, as a run that diverged leaves them."""
    here = [named for named in model.state_dict().items() if not named[1].is_meta]  # else another process has them
    wrong = [key for key, weight in here if not weight.isfinite().all()]
    rule = f"hold finite weights, but {len(wrong)} have NaN or infinity in them, e.g. `{next(iter(wrong), None)}`"
    check("model_name_or_path", name, not wrong, rule)


def stored_config(name: str | None, revision: str | None) -> dict[str, Any]:
    """The config.json of a folder or Hub id."""
    with model_named(name):
        return PreTrainedConfig.get_config_dict(name or "", revision=revision or "main")[0]


def matches(key: str, patterns: Iterable[str]) -> bool:
    """Whether a weight's name matches one of the patterns."""
    return any(re.search(pattern, key) for pattern in patterns)


def layers(keys: Iterable[str]) -> str:
    """The names of the layers that weights belong to, as text: `classifier.weight` and `.bias` are one layer."""
    return ", ".join(sorted({key.rpartition(".")[0] or key for key in keys}))


class HeldReports(logging.Filter):
    """A logging filter that keeps the reports about loaded weights instead of passing them on."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if "LOAD REPORT" not in record.getMessage():
            return True
        self.records.append(record)
        return False


@contextmanager
def refused_shapes(name: str | None) -> Iterator[None]:
    """Say in a line what Transformers says with an error that does not name the model."""
    try:
        yield
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        rule = "hold weights of the shapes that the settings ask for. Leave out the settings that change those of the "
        raise ValueError(f"`model_name_or_path` (={name}) must {rule}weights marked MISMATCH above.") from error


@contextmanager
def held_report() -> Iterator[None]:
    """Hold back the table of loaded weights that Transformers logs, and show it only if loading fails."""
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
