"""Checkpoints of a run. They are written atomically, damage is detected, and only a matching run resumes from them.

`checkpoint-{step}` holds:
- what Accelerate saves: model, optimizer, schedule, averaged weights, random states of every training process;
- the model's configuration and the image processor;
- `progress_{process}.json`: the position in the data, and the losses that are not logged yet;
- `training_state.json`, written last: the step, the settings that identify the run, the number of lines of its logs,
  size and SHA-256 of every other file, and a SHA-256 of this file's own content.
"""

import copy
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from conversion.files import atomic_path, flush, read_json, sha256
from training.machine.disk import writing
from training.models.architecture import compared_settings, describe_architecture
from training.run.checkpoint_schedule import CheckpointSchedule
from training.run.plan import Plan
from training.settings.checks import check
from training.settings.run import CheckpointSettings
from training.settings.scripts import Record

NAME = re.compile(r"checkpoint-(\d+)")
STATE = "training_state.json"
LOGS = ("metrics.jsonl", "bad_images.jsonl")
# The settings that determine the shapes of the weights.
OLDER = {
    "background": "none",
    "lr_scheduler_type": "cosine",
    "lr_step_epochs": [],
}  # the values that hold for checkpoints written before these settings existed


class Resumed(NamedTuple):
    """The step after which a run continues, and the progress that each training process saved in the checkpoint."""

    step: int
    progress: list[dict[str, Any]]

    def of(self, name: str) -> list[dict[str, Any]]:
        """One part of the progress, for every training process. Empty at the start of a run."""
        return [progress[name] for progress in self.progress]


class Checkpoints:
    """Saves and loads a run's checkpoints: all that `accelerator` prepared or registered, and the progress."""

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        settings: CheckpointSettings,
        record: Record,
        model: PreTrainedModel,
        processor: Any,
        plan: Plan,
    ) -> None:
        self.accelerator = accelerator
        self.processor = processor
        self.model_config = copy.deepcopy(model.config)
        self.model_config.architectures = [type(model).__name__]  # so that `from_pretrained` can load a checkpoint
        self.folder = folder
        self.schedule = CheckpointSchedule(settings)
        self.saved_step: int | None = None
        self.resume_from = settings.resume_from_checkpoint
        self.ema_decay = record.values["ema_decay"]
        self.teacher = record.values.get("teacher_name_or_path")
        self.own_teacher = getattr(model.config, "target_type", "pixel") != "pixel" and self.teacher is None
        self.max_steps = plan.max_steps
        self.state = {
            "averaged": bool(self.ema_decay),
            "own_teacher": self.own_teacher,
            "num_processes": accelerator.num_processes,
            "architecture": describe_architecture(model.config),
            "run": {
                "total_batch_size": plan.total_batch_size,
                "num_samples": plan.num_samples,
                "max_steps": plan.max_steps,
                "learning_rate": plan.learning_rate,
                **compared_settings(record, model.config),
            },
        }

    def resume(self) -> Resumed:
        """Load the checkpoint that the settings name. `latest` is the newest undamaged one; without any, start anew.

        Raises:
            ValueError: if the checkpoint is damaged, belongs to another model or cannot be loaded.
        """
        chosen = [self.choose() if self.accelerator.is_main_process else None]
        path = broadcast_object_list(chosen)[0]
        if path is None:
            if self.resume_from is not None and self.accelerator.is_main_process:
                self.take_up(0, {})
            return Resumed(0, [])
        state = read_state(path)
        self.check_state(path, state)
        progress = self.read_progress(path, state["num_processes"])
        try:
            self.accelerator.load_state(str(path))
        except Exception as error:  # each file format raises its own errors
            raise ValueError(
                f"`resume_from_checkpoint` (={path}) must be of this run, but cannot be loaded: {error}. Resume from "
                "another one, or with the settings that it was written with."
            ) from error
        # Accelerate restores its count of forward passes. After a change of `gradient_accumulation_steps`, that count
        # would place the next optimizer step in the middle of an accumulation.
        self.accelerator.step = 0
        if self.accelerator.is_main_process:
            self.take_up(state["step"], state["logs"] if path.parent.resolve() == self.folder.resolve() else {})
            print(f"Resuming from {path} after step {state['step']}.", flush=True)
        self.saved_step = state["step"] if path.parent.resolve() == self.folder.resolve() else None
        return Resumed(state["step"], progress)

    def read_progress(self, path: Path, num_processes: int) -> list[dict[str, Any]]:
        """What each process had saved. The main process reads it for all, of whom there may be hundreds."""
        found: list[Any] = [None]
        if self.accelerator.is_main_process:
            found = [[json.loads(progress_file(path, rank).read_text()) for rank in range(num_processes)]]
        return broadcast_object_list(found)[0]

    def take_up(self, step: int, logs: dict[str, int]) -> None:
        """Cut the logs and put later checkpoints aside, since the run repeats everything after `step`."""
        for name in LOGS:
            cut_lines(self.folder / name, logs.get(name, 0))
        for partial in self.folder.glob(".checkpoint-*.partial"):
            shutil.rmtree(partial)
        for later in numbered_folders(self.folder, after=step):
            aside = later.with_name(f"superseded-{later.name}")
            shutil.rmtree(aside, ignore_errors=True)
            later.rename(aside)
            print(f"{later} is of a part of the run that is done again: it is {aside.name} now.", flush=True)

    def choose(self) -> Path | None:
        """The checkpoint to load, after a check for damage. None to start from the beginning."""
        if self.resume_from is None:
            return None
        if self.resume_from == "latest":
            return self.newest_whole()
        path = Path(self.resume_from)
        damage = find_damage(path)
        check("resume_from_checkpoint", path, not damage, f"be a whole checkpoint of this package, but {damage}")
        return path

    def newest_whole(self) -> Path | None:
        """The newest checkpoint that is not damaged. Prints a warning for each damaged one."""
        paths = numbered_folders(self.folder)
        for path in reversed(paths):
            damage = find_damage(path)
            if not damage:
                return path
            print(f"Warning: {path} is damaged, {damage}. Trying the one before.", flush=True)
        rule = f"find a checkpoint in {self.folder} that is not damaged, but all of them are"
        check("resume_from_checkpoint", "latest", not paths, rule)
        return None

    def check_state(self, path: Path, state: dict[str, Any]) -> None:
        """Raise if the checkpoint belongs to another model. Print each difference in the run's data or length."""
        for name, value in self.state["architecture"].items():
            stored = state["architecture"].get(name, value)  # old checkpoints may lack the setting
            if stored != value:
                raise ValueError(
                    f"`resume_from_checkpoint` (={path}) must be of the model that is trained, but its "
                    f"`{name}` is {stored}, not {value}."
                )
        self.check_classes(path)
        own_teacher = state.get("own_teacher", self.own_teacher)
        rule = f"be {'left out' if own_teacher else 'given'} to go on from {path}"
        check("teacher_name_or_path", self.teacher, own_teacher == self.own_teacher, rule)
        rule = f"be {'more than 0' if state['averaged'] else '0'} to go on from {path}"
        check("ema_decay", self.ema_decay, state["averaged"] == bool(self.ema_decay), rule)
        check("max_train_steps", self.max_steps, state["step"] <= self.max_steps, f"not end before {path}")
        for name, value in self.state["run"].items():
            stored = state["run"].get(name, OLDER.get(name, value))
            if stored != value and self.accelerator.is_main_process:
                print(f"{path} was written with `{name}` {stored}; it is {value} now.", flush=True)

    def check_classes(self, path: Path) -> None:
        """Raise if a class has another name than in the checkpoint: the order of the names is that of the weights."""
        stored = read_json(path / CONFIG_NAME).get("id2label", {})
        for index, name in (self.model_config.id2label or {}).items():
            before = stored.get(str(index), name)  # names that nobody has given are not stored
            if before != name:
                raise ValueError(
                    f"`resume_from_checkpoint` (={path}) must be of the same classes in the same order, but class "
                    f"{index} was `{before}` and is `{name}` now. To train its weights on other classes, give the "
                    "folder as `--model_name_or_path` of a new run."
                )

    def is_late(self) -> bool:
        """Whether a checkpoint is due by the clock of the main process."""
        return self.accelerator.is_main_process and self.schedule.is_late()

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due at this step."""
        return self.schedule.is_due(step)

    def save(self, step: int, **progress: dict[str, Any]) -> None:
        """Write `checkpoint-{step}` under a temporary name, rename it, and delete the oldest beyond the limit.

        `progress` is the progress of this training process. Every training process has to make the call.
        """
        final = self.folder / f"checkpoint-{step}"
        partial = self.folder / f".{final.name}.partial"
        self.schedule.begin()
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with writing(final, partial):
            self.accelerator.save_state(str(partial))
            progress_file(partial, self.accelerator.process_index).write_text(json.dumps(progress))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.check_shared(partial)
            with writing(final, partial):
                self.complete(partial, final, {"step": step, **self.state})
            for old in self.schedule.superseded(numbered_folders(self.folder)):
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        self.saved_step = step
        self.schedule.end()

    def check_shared(self, partial: Path) -> None:
        """Raise unless all processes have written to the same folder."""
        for rank in range(self.accelerator.num_processes):
            shared = progress_file(partial, rank).is_file()
            check(
                "output_dir", self.folder, shared, f"be a folder that all machines share, but process {rank}'s is not"
            )

    def complete(self, partial: Path, final: Path, state: dict[str, Any]) -> None:
        """Add the main process's files, then rename the checkpoint once all of it is on the disk."""
        self.model_config.save_pretrained(partial)
        self.processor.save_pretrained(partial)
        logs = [self.folder / name for name in LOGS if (self.folder / name).is_file()]
        state |= {"logs": {log.name: count_lines(log) for log in logs}, "files": describe_files(partial)}
        (partial / STATE).write_text(json.dumps({**state, "sha256": digest_of(state)}, indent=2))
        for path in (*logs, *partial.rglob("*"), partial):
            flush(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        flush(self.folder)


def progress_file(checkpoint: Path, rank: int) -> Path:
    return checkpoint / f"progress_{rank}.json"


def describe_files(folder: Path) -> dict[str, list[Any]]:
    """Size and SHA-256 of every file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): [path.stat().st_size, sha256(path)] for path in files}


def find_damage(checkpoint: Path) -> str:
    """A description of how a checkpoint is damaged. Empty if it is not."""
    if not (checkpoint / STATE).is_file():
        return f"it has no {STATE}"
    try:
        state = read_state(checkpoint)
        is_whole = state.pop("sha256") == digest_of(state)
    except (ValueError, KeyError, TypeError, AttributeError):
        is_whole = False
    if not is_whole:
        return f"its {STATE} is damaged"
    for name, (size, digest) in state["files"].items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if sha256(file) != digest:
            return f"{name} is not what was written"
    return ""


def digest_of(state: dict[str, Any]) -> str:
    """SHA-256 of a state as JSON. The text stays the same when the JSON is read and written again."""
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def numbered_folders(folder: Path, after: int = -1) -> list[Path]:
    """The folders named `checkpoint-{step}`, by step. Each was complete when it got its name."""
    found = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found) if step > after]


def read_state(path: Path) -> dict[str, Any]:
    """The content of a checkpoint's `training_state.json`."""
    return json.loads((path / STATE).read_text(encoding="utf-8"))


def averaged_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The moving average in a checkpoint, with the names of the model's weights."""
    for file in sorted(checkpoint.glob("custom_checkpoint_*.pkl")):
        state = torch.load(file, map_location="cpu", weights_only=True)
        if "n_averaged" in state:
            return {name.removeprefix("module."): value for name, value in state.items() if name != "n_averaged"}
    raise ValueError(f"`use_ema` (=True) must be of a training checkpoint with `ema_decay`, but {checkpoint} is none.")


def count_lines(log: Path) -> int:
    return len(log.read_bytes().splitlines())


def cut_lines(log: Path, count: int) -> None:
    """Keep the first `count` lines of a log and drop a line that a crash cut off. Warn if the log has fewer lines."""
    if not log.is_file():
        return
    stored = log.read_bytes().splitlines(keepends=True)
    lines = [line for line in stored if line.endswith(b"\n")]
    if len(lines) < count:
        print(f"Warning: {log} has lost {count - len(lines)} of its {count} lines.", flush=True)
    if len(stored) > min(count, len(lines)):
        with atomic_path(log) as partial:
            partial.write_bytes(b"".join(lines[:count]))
