"""The output folder of a run: claimed before training, filled after it, uploaded on request."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from conversion.files import read_json, write_json
from conversion.model_folder import RESULTS, SETTINGS
from conversion.publish import publish
from conversion.publishing.hub import Hub
from conversion.publishing.hub_ids import is_hub_id
from conversion.publishing.licenses import OFFICIAL_LICENSE, inherited_license
from training.run.checkpoints import LOGS, numbered_folders
from training.run.disk import writing
from training.settings.config import TrainingConfig, check
from training.settings.fields import names_in_force

CARD = "README.md"  # the last file of a finished run


def check_output_dir(config: TrainingConfig) -> None:
    """Raise if the folder holds something else, or an earlier run that is neither resumed nor to be overwritten.

    Also if the licence asked for is not one that the result may have.
    """
    license_of(config)
    folder = Path(config.output_dir)
    check("output_dir", folder, folder.is_dir() or not folder.exists(), "be a folder")
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    effective = {"effective_ids": True} if os.access in os.supports_effective_ids else {}
    writable = os.access(existing, os.W_OK | os.X_OK, **effective)
    check("output_dir", folder, writable, f"be writable, but {existing} is not")
    # What is left of a start that was killed at its first file is no run yet.
    held = [path for path in folder.iterdir() if path.suffix != ".partial"] if folder.is_dir() else []
    if not held or config.overwrite_output_dir:
        return
    if not holds_run(folder, config):
        raise ValueError(
            f"`output_dir` (={folder}) must be empty or hold a run of this script, but it holds something else. "
            "`--overwrite_output_dir` writes into it all the same."
        )
    if config.resume_from_checkpoint is None:
        raise ValueError(
            f"`output_dir` (={folder}) must not hold an earlier run. Take it up again with `--resume_from_checkpoint "
            "latest`, or start afresh with `--overwrite_output_dir`."
        )


def license_of(config: TrainingConfig) -> str:
    """The licence of the trained weights: as asked for, else that of the weights they start from."""
    inherited = inherited_license(config.model_name_or_path, config.model_revision)
    allowed = inherited != OFFICIAL_LICENSE or config.license in (None, OFFICIAL_LICENSE)
    check("license", config.license, allowed, f"be {inherited}, as that of `model_name_or_path`")
    return config.license or inherited


def claim_output_dir(config: TrainingConfig) -> None:
    """Make the folder and write the run's settings; without a resume, drop an earlier run's checkpoints and metrics."""
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).unlink(missing_ok=True)  # from here on the run is not finished
    if config.resume_from_checkpoint is None and holds_run(folder, config):
        for checkpoint in (*numbered_folders(folder), *folder.glob("superseded-checkpoint-*")):
            shutil.rmtree(checkpoint)
        for log in LOGS:
            (folder / log).unlink(missing_ok=True)
    settings = dataclasses.asdict(config)
    # For the card: what only this machine can tell (which settings are paths, the licence of the weights' start), and
    # which settings the result depends on.
    sources = ("dataset_name", "model_name_or_path", "teacher_name_or_path")
    local = [name for name in sources if settings.get(name) and not is_hub_id(settings[name])]
    local += [name for name in settings.get("mixed_dataset_names") or [] if not is_hub_id(name)]
    noted: dict[str, Any] = {"run": run_name(config), "local": local, "recipe": names_in_force(config)}
    if config.model_name_or_path is not None:
        noted["start"] = read_json(Path(config.model_name_or_path) / "config.json").get("model_type")
    write_json(folder / SETTINGS, {**noted, **settings, "license": license_of(config)})


def holds_run(folder: Path, config: TrainingConfig) -> bool:
    """Whether the folder was claimed by a run of the same script."""
    try:
        marker = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(marker, dict) and marker.get("run") == run_name(config)


def leave_finished(accelerator: Accelerator, config: TrainingConfig, max_steps: int) -> bool:
    """Whether the folder holds all of the run that `--resume_from_checkpoint latest` asks for.

    It is left as it is then, but for an upload that may have failed.
    """
    folder = Path(config.output_dir)
    if config.resume_from_checkpoint != "latest" or not (folder / CARD).is_file():
        return False
    if read_json(folder / RESULTS).get("total_steps") != max_steps:
        return False
    if accelerator.is_main_process:
        print(f"{folder} holds the whole run: nothing is left to do.", flush=True)
        if config.push_to_hub:
            push_folder(config)
    return True


def run_name(config: TrainingConfig) -> str:
    """`pretrain` or `finetune`."""
    return type(config).__name__.removesuffix("Config").lower()


def save_model(folder: Path, model: PreTrainedModel, processor: Any, results: dict[str, Any]) -> None:
    """Weights, config, image processor and all_results.json: complete under another name first, then moved."""
    partial = folder / ".final.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with writing(folder, partial):
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        write_json(partial / RESULTS, results)
    for file in sorted(partial.iterdir(), key=lambda file: (file.name == RESULTS, file.name)):  # which says it is whole
        os.replace(file, folder / file.name)
    partial.rmdir()


def check_hub(config: TrainingConfig) -> None:
    """Raise before any work if the result could not be pushed: no token, a wrong one, a name of somebody else's."""
    if config.push_to_hub and config.hub_model_id is not None:
        hub = Hub(exist_ok=True, private=config.hub_private_repo)
        name = hub.full_name(config.hub_model_id)
        for repo_id in (name, f"{name}-encoder") if run_name(config) == "pretrain" else (name,):
            hub.check(repo_id)


def push_folder(config: TrainingConfig) -> None:
    """Publish the final folder; a pre-training model's encoder too, in a repository of its own."""
    assert config.hub_model_id is not None
    try:
        publish(config.output_dir, config.hub_model_id, private=config.hub_private_repo, exist_ok=True)
    except ValueError as error:
        again = f"python -m conversion.publish {config.output_dir} --repo_id {config.hub_model_id} --exist_ok"
        again += " --private" if config.hub_private_repo else ""
        raise SystemExit(f"{error}\nThe model is complete in {config.output_dir}. To publish it: {again}") from error
