"""The images to train on, and those that are held out to evaluate on."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset

from training.data.sources import Source, limit
from training.data.splits import check_split, say_what_is_left_out
from training.settings.checks import check
from training.settings.data import DataSettings, HeldOutDataSettings


def load_train_and_eval(
    data: HeldOutDataSettings, load: Callable[..., Source], *arguments: Any
) -> tuple[Source, Source | None]:
    """The images to train on, and those to evaluate on if there are any.

    `load(data, split, max_samples, *arguments)` loads a split. Images are held out by `eval_split` or by
    `train_val_split`.
    """
    source = load(data, data.train_split, data.max_train_samples, *arguments)
    say_what_is_left_out(data, source)
    if data.eval_split is not None:
        check_split(data, "eval_split", data.eval_split)
        return source, load(data, data.eval_split, data.max_eval_samples, *arguments)
    if data.train_val_split:
        assert isinstance(source, Dataset)
        check("train_val_split", data.train_val_split, len(source) > 1, "be left out for one image: it has two parts")
        parts = source.train_test_split(test_size=data.train_val_split, seed=data.seed)
        return parts["train"], limit(parts["test"], data, data.max_eval_samples)
    return source, None


def is_trained_on(data: DataSettings, split: str) -> bool:
    """Whether a split is the one to train on."""
    return isinstance(data, HeldOutDataSettings) and split == data.train_split
