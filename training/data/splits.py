"""Lists the splits of a data set, and chooses the one to evaluate on if the settings name none."""

from dataclasses import replace
from pathlib import Path

from datasets import get_dataset_split_names

from conversion.split_names import HELD_OUT
from training.console.errors import is_first_process
from training.data.folders.splits import split_name
from training.data.sources import Source, local_splits
from training.settings.checks import check
from training.settings.data import FILE_BUILDERS, DataSettings, HeldOutDataSettings, ValidateDataSettings
from training.settings.evaluation import FITTED


def with_eval_split(data: ValidateDataSettings, protocols: list[str] | None) -> ValidateDataSettings:
    """Return the settings with a split to evaluate on: the given one, else the first of `HELD_OUT` that exists.

    If none of them exists, the only other split is used. Prints the split that was chosen.

    Raises:
        ValueError: if there is no such split; the message names the splits of the data set.
    """
    if Path(data.dataset_name).suffix in FILE_BUILDERS:  # files are one split, which may have any name
        return replace(data, eval_split=data.eval_split or HELD_OUT[0])
    if data.eval_split is not None:
        check_split(data, "eval_split", data.eval_split)
        return data
    names = split_names(data)
    is_fitted = bool(set(protocols or ()) & set(FITTED))
    others = [name for name in names if not is_fitted or name != data.train_split]
    chosen = next((name for name in HELD_OUT if name in others), others[0] if len(others) == 1 else None)
    check("eval_split", None, chosen is not None, f"be one of the splits of {data.dataset_name}: {', '.join(names)}")
    if is_first_process():
        only = " If the model was trained on these images, the figures say nothing of new ones."
        warning = only if chosen not in HELD_OUT else ""
        print(f"Evaluating on split `{chosen}` of {data.dataset_name}, which has {', '.join(names)}.{warning}")
    return replace(data, eval_split=chosen)


def chosen_split(data: DataSettings, split: str | None) -> str:
    """The split that is asked for, or else the only one.

    Raises:
        ValueError: if there are several; the message names them.
    """
    if Path(data.dataset_name).suffix in FILE_BUILDERS:  # files are one split, which may have any name
        return split or "train"
    if split is not None:
        check_split(data, "split", split)
        return split
    names = split_names(data)
    check("split", None, len(names) == 1, f"be one of the splits of {data.dataset_name}: {', '.join(names)}")
    return names[0]


def check_split(data: DataSettings, setting: str, split: str) -> None:
    """Raise if a local folder lacks a split that a setting names; a split on the Hub is checked when it is loaded."""
    folder = Path(data.dataset_name).expanduser()
    if not folder.is_dir():
        return
    found = local_splits(data)
    if split == "train" if found is None else split_name(split) in map(split_name, found):
        return
    names = named_by_datasets(data) if found is None else found
    fix = ". `--train_val_split 0.2` evaluates on a fifth of the training images instead"
    fix = fix if isinstance(data, HeldOutDataSettings) and names == [data.train_split] else ""
    check(setting, split, split in names, f"be one of the splits of {folder}: {', '.join(names)}{fix}")


def say_what_is_left_out(data: HeldOutDataSettings, source: Source) -> None:
    """Print the held-out splits that a run without `eval_split` does not use."""
    found = {str(name) for name in source.info.splits or {}} | set(local_splits(data) or [])
    others = [name for name in HELD_OUT if name in found - {data.train_split}]
    if data.eval_split is None and others and is_first_process():
        which = ", ".join(f"`{name}`" for name in others)
        print(
            f"Not used: {which} of {data.dataset_name}. `--eval_split {others[0]}` evaluates the model on it.",
            flush=True,
        )


def split_names(data: DataSettings) -> list[str]:
    """The splits of a data set that is a folder or on the Hub."""
    found = local_splits(data)
    return named_by_datasets(data) if found is None else found


def named_by_datasets(data: DataSettings) -> list[str]:
    """The splits that `datasets` finds on the Hub or in a folder; slow for a folder of many files."""
    name, revision = data.dataset_config_name, data.dataset_revision
    return [str(split) for split in get_dataset_split_names(data.dataset_name, name, revision=revision)]
