"""The settings that the result of a training run depends on."""

from pathlib import Path
from typing import Any

from conversion.publishing.earlier_runs import is_earlier_run, names_of_earlier_recipe
from conversion.publishing.hub_ids import is_local_setting
from conversion.publishing.sections.data import data_sets_of
from conversion.publishing.wording import format_value


def read_recipe(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the settings, as text."""
    recipe = {name: settings[name] for name in _names(settings)}
    mixed = data_sets_of(settings)[1:]
    if mixed:
        recipe["mixed_dataset_names"] = [Path(each.name).name if each.is_local else each.name for each in mixed]
    return [(name, format_value(value, is_local_setting(name, settings))) for name, value in recipe.items()]


def _names(settings: dict[str, Any]) -> list[str]:
    """The names that the run has noted; of an earlier run, those that its settings suggest."""
    if is_earlier_run(settings):
        return names_of_earlier_recipe(settings)
    return [name for name in settings.get("recipe", []) if name in settings]
