"""Checkpoints of a run: written whole or not at all, and taken up again only by the run they belong to."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedConfig

from training.config import TrainingConfig, check
from training.plan import Plan

NAME = re.compile(r"checkpoint-(\d+)")
STATE = "training_state.json"
# What the shapes of the weights follow from.
ARCHITECTURE = ("model_type", "hidden_sizes", "depths", "num_channels", "patch_size", "use_grn", "num_labels")
ARCHITECTURE += ("decoder_hidden_size", "decoder_num_hidden_layers")


class Checkpoints:
    """The folders `checkpoint-{step}` of a run: model, optimizer, schedule, random states, averaged weights, step.

    What is in it is what `accelerator` has prepared or registered for checkpointing.
    """

    def __init__(
        self, accelerator: Accelerator, config: TrainingConfig, model_config: PreTrainedConfig, plan: Plan
    ) -> None:
        self.accelerator = accelerator
        self.folder = Path(config.output_dir)
        self.limit = config.checkpoints_total_limit
        self.resume_from = config.resume_from_checkpoint
        self.ema_decay = config.ema_decay
        self.max_steps = plan.max_steps
        self.state = {
            "averaged": bool(config.ema_decay),
            "architecture": describe_architecture(model_config),
            "run": {
                "seed": config.seed,
                "total_batch_size": plan.total_batch_size,
                "num_samples": plan.num_samples,
                "max_steps": plan.max_steps,
            },
        }

    def resume(self) -> int:
        """Load the checkpoint that the settings name and return its step; 0 if there is none to load."""
        if self.resume_from == "latest":
            found = list_checkpoints(self.folder)
            path = found[-1] if found else None
        else:
            path = Path(self.resume_from) if self.resume_from else None
        if path is None:
            return 0
        state = read_state(path)
        self.check_state(path, state)
        try:
            self.accelerator.load_state(str(path))
        except Exception as error:  # each of its files has a reader with errors of its own
            raise ValueError(
                f"`resume_from_checkpoint` (={path}) must be a whole checkpoint, but cannot be loaded: {error}. Resume "
                "from an earlier one."
            ) from error
        if self.accelerator.is_main_process:
            cut_metrics(self.folder / "metrics.jsonl", state["step"])
            print(f"Resuming from {path} after step {state['step']}.", flush=True)
        return state["step"]

    def check_state(self, path: Path, state: dict[str, Any]) -> None:
        """Raise if the checkpoint is of another model; say so if it is of a run with other data or another length."""
        for name, value in self.state["architecture"].items():
            stored = state["architecture"].get(name)
            if stored != value:
                raise ValueError(
                    f"`resume_from_checkpoint` (={path}) must be of the model that is trained, but its "
                    f"`{name}` is {stored}, not {value}."
                )
        rule = f"be {'more than 0' if state['averaged'] else '0'} to go on from {path}"
        check("ema_decay", self.ema_decay, state["averaged"] == bool(self.ema_decay), rule)
        check("max_train_steps", self.max_steps, state["step"] <= self.max_steps, f"not end before {path}")
        for name, value in self.state["run"].items():
            if state["run"].get(name) != value and self.accelerator.is_main_process:
                print(f"{path} was written with `{name}` {state['run'].get(name)}; it is {value} now.", flush=True)

    def save(self, step: int) -> None:
        """Write `checkpoint-{step}` under a temporary name, rename it, and delete the oldest beyond the limit."""
        final = self.folder / f"checkpoint-{step}"
        partial = self.folder / f".{final.name}.partial"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (partial / STATE).write_text(json.dumps({"step": step, **self.state}, indent=2))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            for old in list_checkpoints(self.folder)[: -self.limit] if self.limit else []:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()


def describe_architecture(config: PreTrainedConfig) -> dict[str, Any]:
    """The settings that the weights' shapes follow from, as JSON has them."""
    settings = {name: getattr(config, name, None) for name in ARCHITECTURE}
    return json.loads(json.dumps(settings))


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found) if (found[step] / STATE).is_file()]


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint of ours."""
    rule = f"be a checkpoint folder of this package (with {STATE}), or `latest`"
    check("resume_from_checkpoint", str(path), (path / STATE).is_file(), rule)
    try:
        return json.loads((path / STATE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`resume_from_checkpoint` (={path}) must be whole, but its {STATE} is damaged.") from error


def cut_metrics(file: Path, step: int) -> None:
    """Drop the lines after `step`, and one that a crash left half written."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except ValueError:
            break
        kept.append(line + "\n")
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, file)
