"""Settings and figures as a reader elsewhere understands them."""

import math
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

# For folders of earlier runs, which did not note their recipe: what is no part of it, and which setting puts another
# out of force by being given (OVERRIDDEN_BY) or left out (MEANT_BESIDE).
# fmt: off
NO_RECIPE = {
    "run", "local", "output_dir", "overwrite_output_dir", "config", "dry_run", "logging_steps", "eval_steps",
    "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "num_workers", "with_tracking",
    "report_to", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_token", "token", "license", "data_note",
    "metrics", "check_images", "skip_bad_images", "max_bad_images", "per_device_eval_batch_size",
    "activation_checkpointing", "ddp_timeout", "reconstruction_steps",
}
# fmt: on
OVERRIDDEN_BY = {
    "model_size": "model_name_or_path",
    "patch_size": "model_name_or_path",
    "num_stages": "model_name_or_path",
    "base_learning_rate": "learning_rate",
    "num_train_epochs": "max_train_steps",
    "warmup_epochs": "warmup_steps",
    "teacher_decay": "teacher_name_or_path",
    "train_val_split": "eval_split",
}
MEANT_BESIDE = {
    "randaugment_magnitude": "randaugment_num_ops",
    "shuffle_buffer_size": "streaming",
    **dict.fromkeys(("feature_target_layers", "feature_target_norm", "teacher_decay"), "target_type"),
}


def is_hub_id(name: str | None) -> bool:
    """Whether `name` is the id of a repository rather than a file or folder of this machine."""
    if not name or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_local_setting(name: str, settings: dict[str, Any]) -> bool:
    """Whether a setting was a path where the run was started, as the run has noted; else, whether it is one here."""
    value = settings.get(name)
    if not isinstance(value, str):
        return False
    local = settings.get("local")
    return name in local if isinstance(local, list) else not is_hub_id(value)


def describe_source(source: str, kind: str, is_local: bool) -> str:
    """A Hub id as it is; of a local path only its last part, since the rest says nothing to a reader elsewhere."""
    return f"{kind} `{Path(source).name}`" if is_local else f"`{source}`"


def data_sets(settings: dict[str, Any]) -> list[tuple[str, bool]]:
    """The data sets that a run trained on, and whether each was a path where it was started."""
    if not settings.get("dataset_name"):
        return []
    local = settings.get("local")
    mixed = settings.get("mixed_dataset_names") or []
    others = [(name, name in local if isinstance(local, list) else not is_hub_id(name)) for name in mixed]
    return [(settings["dataset_name"], is_local_setting("dataset_name", settings)), *others]


def describe_data(settings: dict[str, Any]) -> str | None:
    """What a run trained on, in words; nothing if it does not say."""
    names = [describe_source(name, "the data set", is_local) for name, is_local in data_sets(settings)]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]])) or None


def sides(size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """Height and width."""
    if isinstance(size, int):
        return size, size
    if len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise ValueError(f"`image_size` (={size}) must be a number of pixels, or height and width.")
    return size[0], size[1]


def recipe_names(settings: dict[str, Any]) -> list[str]:
    """The settings that a run's result depends on: as the run has noted them, else as far as their names tell."""
    if isinstance(noted := settings.get("recipe"), list):
        return [name for name in noted if name in settings]
    return [name for name in settings if name not in NO_RECIPE and _is_in_force(name, settings)]


def _is_in_force(name: str, settings: dict[str, Any]) -> bool:
    """Whether a setting of a run that did not note its recipe was in force; 0 and False are values too."""
    if settings[name] in (None, [], "") or settings.get(OVERRIDDEN_BY.get(name, "")) is not None:
        return False
    return name not in MEANT_BESIDE or bool(settings.get(MEANT_BESIDE[name]))


def is_figure(value: Any) -> bool:
    """Whether a result is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def show(value: Any, is_path: bool = False) -> str:
    """A setting or figure as text; of a path only its last part."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(show(each, is_path) for each in value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return Path(value).name if is_path else str(value)


def show_cell(column: str, value: str) -> str:
    """A cell of a table of classes, in Markdown: shares in percent, a name in one line."""
    if column in ("precision", "recall", "f1"):
        return f"{100 * float(value):.1f} %" if value else "-"
    return " ".join(value.split()).replace("|", "\\|")


def first_line(error: Exception) -> str:
    """What an error says in its first line, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
