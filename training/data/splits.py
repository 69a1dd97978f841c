"""Which splits a data set has, and which of them is evaluated on when nobody says."""

from dataclasses import replace
from pathlib import Path

from datasets import get_dataset_split_names

from training.data.folders.splits import split_name
from training.data.sources import Source, local_splits
from training.run.errors import is_first_process
from training.settings.config import FILE_BUILDERS, DataConfig, FinetuneConfig, ValidateConfig, check

HELD_OUT = ("validation", "val", "valid", "dev", "test", "testing", "eval", "evaluation")  # the first goes first


def with_eval_split(config: ValidateConfig) -> ValidateConfig:
    """The settings with a split to evaluate on: the one that is given, else the first held-out one; says which.

    Raises:
        ValueError: if there is no such split, with the names of those there are.
    """
    if Path(config.dataset_name).suffix in FILE_BUILDERS:  # files are one split, of any name
        return replace(config, eval_split=config.eval_split or HELD_OUT[0])
    if config.eval_split is not None:
        check_split(config, "eval_split", config.eval_split)
        return config
    names = split_names(config)
    others = [name for name in names if config.protocols == ["classifier"] or name != config.train_split]
    chosen = next((name for name in HELD_OUT if name in others), others[0] if len(others) == 1 else None)
    check("eval_split", None, chosen is not None, f"be one of the splits of {config.dataset_name}: {', '.join(names)}")
    if is_first_process():
        only = " If the model was trained on these images, the figures say nothing of new ones."
        warning = only if chosen not in HELD_OUT else ""
        print(f"Evaluating on split `{chosen}` of {config.dataset_name}, which has {', '.join(names)}.{warning}")
    return replace(config, eval_split=chosen)


def check_split(config: DataConfig, setting: str, split: str) -> None:
    """Raise where a split that a setting names is not in a folder; what the Hub has is seen when it is loaded."""
    folder = Path(config.dataset_name).expanduser()
    if not folder.is_dir():
        return
    found = local_splits(config)
    if split == "train" if found is None else split_name(split) in map(split_name, found):
        return
    names = named_by_datasets(config) if found is None else found
    fix = ". `--train_val_split 0.2` evaluates on a fifth of the training images instead"
    fix = fix if isinstance(config, FinetuneConfig) and names == [config.train_split] else ""
    check(setting, split, split in names, f"be one of the splits of {folder}: {', '.join(names)}{fix}")


def say_what_is_left_out(config: FinetuneConfig, source: Source) -> None:
    """Print which held-out splits beside the one that is trained on a run without `eval_split` does not look at."""
    found = {str(name) for name in source.info.splits or {}} | set(local_splits(config) or [])
    others = [name for name in HELD_OUT if name in found - {config.train_split}]
    if config.eval_split is None and others and is_first_process():
        which = ", ".join(f"`{name}`" for name in others)
        print(
            f"Not used: {which} of {config.dataset_name}. `--eval_split {others[0]}` evaluates the classifier on it.",
            flush=True,
        )


def split_names(config: DataConfig) -> list[str]:
    """The splits of a data set that is not given as files."""
    found = local_splits(config)
    return named_by_datasets(config) if found is None else found


def named_by_datasets(config: DataConfig) -> list[str]:
    """The splits that `datasets` finds on the Hub or, slowly where there are many files, in a folder."""
    name, revision = config.dataset_config_name, config.dataset_revision
    return [str(split) for split in get_dataset_split_names(config.dataset_name, name, revision=revision)]
