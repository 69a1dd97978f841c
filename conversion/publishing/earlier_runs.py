"""The recipe and licence of training runs from before the first release, whose folders do not say them.

Read for one kind of folder alone: one whose training_config.json has settings but no key `recipe`. Development versions
up to November 2026 wrote such folders. Every run since then notes the names of its recipe's settings under `recipe`,
as `training/settings/fields.py` says at each field, and none of the tables below is read for it. The tables describe
the settings of that time: a setting that is new or renamed today is not to be added.
"""

from typing import Any

# How the run was carried out: its result is the same with any value of these.
# fmt: off
NOT_OF_THE_RECIPE = {
    "run", "local", "output_dir", "overwrite_output_dir", "config", "dry_run", "logging_steps", "eval_steps",
    "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "num_workers", "with_tracking",
    "report_to", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_token", "token", "license", "data_note",
    "metrics", "check_images", "skip_bad_images", "max_bad_images", "per_device_eval_batch_size",
    "activation_checkpointing", "ddp_timeout", "reconstruction_steps",
}
# fmt: on
# A setting, and the one that replaces it when it is given.
REPLACED_BY = {
    "model_size": "model_name_or_path",
    "patch_size": "model_name_or_path",
    "num_stages": "model_name_or_path",
    "base_learning_rate": "learning_rate",
    "num_train_epochs": "max_train_steps",
    "warmup_epochs": "warmup_steps",
    "teacher_decay": "teacher_name_or_path",
    "train_val_split": "eval_split",
}
# A setting, and the one without which it means nothing.
NEEDS = {
    "randaugment_magnitude": "randaugment_num_ops",
    "shuffle_buffer_size": "streaming",
    "feature_target_layers": "target_type",
    "feature_target_norm": "target_type",
    "teacher_decay": "target_type",
}
LICENSE_BY_DEFAULT = "apache-2.0"


def is_earlier_run(settings: dict[str, Any]) -> bool:
    """Whether a run wrote these settings without noting its recipe."""
    return bool(settings) and not isinstance(settings.get("recipe"), list)


def names_of_earlier_recipe(settings: dict[str, Any]) -> list[str]:
    """The settings that the result of such a run depends on, as far as the tables above tell."""
    return [name for name in settings if name not in NOT_OF_THE_RECIPE and _is_in_force(name, settings)]


def has_license_of_nobody(settings: dict[str, Any]) -> bool:
    """Whether nobody may have stated the licence that a run noted.

    Such runs noted the package's own licence for what they trained from random weights, unless told another.
    """
    is_from_random_weights = not settings.get("model_name_or_path")
    return is_earlier_run(settings) and settings.get("license") == LICENSE_BY_DEFAULT and is_from_random_weights


def _is_in_force(name: str, settings: dict[str, Any]) -> bool:
    """Whether the setting was in force; 0 and False are values too."""
    if settings[name] in (None, [], ""):
        return False
    if name in REPLACED_BY and settings.get(REPLACED_BY[name]) is not None:
        return False
    return name not in NEEDS or bool(settings.get(NEEDS[name]))
