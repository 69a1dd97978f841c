"""Settings of a run: processes, output folder, checkpoints and upload to the Hub."""

from dataclasses import dataclass

from training.settings.checks import check, check_at_least, check_finite
from training.settings.fields import REQUIRED, operation, recipe


@dataclass(kw_only=True)
class ProcessSettings:
    """What the training processes compute with."""

    mixed_precision: str | None = recipe(None, "no, fp16 or bf16 (default: as `accelerate config` says)")
    ddp_timeout: int = operation(
        7200, "seconds that processes wait for each other: the first one checks all images alone"
    )

    def __post_init__(self) -> None:
        check_finite(self)
        precisions = (None, "no", "fp16", "bf16")
        check("mixed_precision", self.mixed_precision, self.mixed_precision in precisions, "be no, fp16 or bf16")
        check_scalable(self.mixed_precision)


@dataclass(kw_only=True)
class RunSettings(ProcessSettings):
    """Where a run works, and what it tells."""

    output_dir: str = operation(REQUIRED, "folder for checkpoints, metrics and the final model")
    overwrite_output_dir: bool = operation(False, "start afresh in a folder that holds an earlier run of this script")
    full_determinism: bool = recipe(False, "deterministic algorithms on a GPU too, for a resume to the bit; slower")
    dry_run: bool = operation(False, "try a few steps, print plan, time and memory as a page, and write nothing")
    json: bool = operation(False, "with dry_run: print all of it as JSON instead")
    logging_steps: int = operation(50, "optimizer steps between lines of metrics.jsonl")
    with_tracking: bool = operation(True, "also log to Accelerate's trackers")
    report_to: str = operation("tensorboard", "tracker of with_tracking: tensorboard, wandb, trackio, ..., or all")

    def __post_init__(self) -> None:
        super().__post_init__()
        check("output_dir", self.output_dir, bool(self.output_dir), "be given")
        check("json", self.json, self.dry_run or not self.json, "come with `dry_run`")
        check_at_least(self, ("logging_steps",), 1)


@dataclass(kw_only=True)
class CheckpointSettings:
    """When a run is saved, and what it goes on from."""

    checkpointing_steps: int | None = operation(None, "optimizer steps between checkpoints")
    checkpointing_minutes: float = operation(
        10,
        "save a checkpoint when the last one is so old, or later where saving would take over 5 % of the time; 0: off",
    )
    checkpoints_total_limit: int | None = operation(
        None, "keep only so many, the newest (default: all of checkpointing_steps, and of the others the newest two)"
    )
    resume_from_checkpoint: str | None = operation(None, "a checkpoint folder, or `latest` (none there: start afresh)")

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, ("checkpointing_steps", "checkpoints_total_limit"), 1)
        check_at_least(self, ("checkpointing_minutes",), 0)


@dataclass(kw_only=True)
class HubSettings:
    """What is published, where, and what its card says."""

    push_to_hub: bool = operation(False, "upload the final folder in one commit")
    hub_model_id: str | None = operation(None, "repository on the Hub, e.g. me/name")
    hub_private_repo: bool = operation(False, "make that repository a private one")
    license: str | None = operation(
        None, "licence of the trained weights (default: that of the weights it starts from; else none is stated)"
    )
    data_note: str | None = operation(None, "for the model card: what the images are, whose, and under which licence")

    def __post_init__(self) -> None:
        named = bool(self.hub_model_id) or not self.push_to_hub
        check("hub_model_id", self.hub_model_id, named, "be given with `push_to_hub`")


def check_scalable(mixed_precision: str | None) -> None:
    """Raise if fp16 is requested without an accelerator."""
    if mixed_precision == "fp16":
        import torch  # imported here: it takes seconds, and other settings do not need it

        check("mixed_precision", mixed_precision, torch.accelerator.is_available(), "be no or bf16 on a CPU")
