"""Settings of a run: processes, output folder, checkpoints and upload to the Hub."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from training.settings.checks import check, check_at_least, check_finite
from training.settings.fields import REQUIRED, operation, recipe

# Accelerate's trackers by their names, each with the packages of which it needs one.
TRACKERS = {
    "aim": ("aim",),
    "clearml": ("clearml",),
    "comet_ml": ("comet_ml",),
    "dvclive": ("dvclive",),
    "mlflow": ("mlflow",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


@dataclass(kw_only=True)
class ProcessSettings:
    """Precision and processes."""

    mixed_precision: str | None = recipe(None, "no, fp16 or bf16 (default: as `accelerate config` says)")
    ddp_timeout: int = operation(
        7200, "seconds that processes wait for each other, e.g. while the first one checks all images"
    )

    def __post_init__(self) -> None:
        check_finite(self)
        precisions = (None, "no", "fp16", "bf16")
        check("mixed_precision", self.mixed_precision, self.mixed_precision in precisions, "be no, fp16 or bf16")
        check_scalable(self.mixed_precision)


@dataclass(kw_only=True)
class RunSettings(ProcessSettings):
    """Output, logging and processes."""

    output_dir: str = operation(REQUIRED, "folder for checkpoints, metrics and the final model")
    overwrite_output_dir: bool = operation(
        False, "start a new run in a folder that holds an earlier run of this script"
    )
    full_determinism: bool = recipe(
        False, "use deterministic algorithms on a GPU too, so that a resumed run is bit-identical; slower"
    )
    dry_run: bool = operation(False, "try a few steps, print the plan, times and memory, and write nothing")
    json: bool = operation(False, "with dry_run: print everything as JSON instead")
    logging_steps: int = operation(50, "optimizer steps between lines of metrics.jsonl")
    with_tracking: bool = operation(True, "also log to the trackers of report_to")
    report_to: str = operation(
        "tensorboard",
        "trackers that with_tracking logs to, as Accelerate names them: tensorboard, wandb, trackio, ..., or all",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check("output_dir", self.output_dir, bool(self.output_dir), "be given")
        folder = Path(self.output_dir)
        check("output_dir", self.output_dir, folder.is_dir() or not folder.exists(), "be a folder")
        check_tracker(self.report_to, self.with_tracking)
        check("json", self.json, self.dry_run or not self.json, "come with `dry_run`")
        check_at_least(self, ("logging_steps",), 1)


@dataclass(kw_only=True)
class CheckpointSettings:
    """Checkpoints and resuming."""

    checkpointing_steps: int | None = operation(None, "optimizer steps between checkpoints")
    checkpointing_minutes: float = operation(
        10,
        "largest age of the last checkpoint, in minutes; more if saving would take over 5 % of the time; 0: off",
    )
    checkpoints_total_limit: int | None = operation(
        None,
        "keep only this many checkpoints, the newest (default: all by checkpointing_steps, the newest two by minutes)",
    )
    resume_from_checkpoint: str | None = operation(
        None, "checkpoint folder, or `latest`, which starts a new run where there is no checkpoint"
    )

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, ("checkpointing_steps", "checkpoints_total_limit"), 1)
        check_at_least(self, ("checkpointing_minutes",), 0)


@dataclass(kw_only=True)
class HubSettings:
    """Publishing on the Hub."""

    push_to_hub: bool = operation(False, "upload the final folder to the Hub in one commit")
    hub_model_id: str | None = operation(None, "repository on the Hub, e.g. me/name")
    hub_private_repo: bool = operation(False, "create the repository as a private one")
    license: str | None = operation(
        None, "licence of the trained weights (default: that of the weights the run starts from, else none is stated)"
    )
    data_note: str | None = operation(
        None, "sentence for the model card on the images: what they show, their source and licence"
    )

    def __post_init__(self) -> None:
        named = bool(self.hub_model_id) or not self.push_to_hub
        check("hub_model_id", self.hub_model_id, named, "be given with `push_to_hub`")


def check_scalable(mixed_precision: str | None) -> None:
    """Raise if fp16 is requested without an accelerator."""
    if mixed_precision == "fp16":
        import torch  # imported here: it takes seconds, and other settings do not need it

        check("mixed_precision", mixed_precision, torch.accelerator.is_available(), "be no or bf16 on a CPU")


def check_tracker(name: str, is_used: bool) -> None:
    """Raise unless Accelerate has a tracker of this name, and its package is installed if it is used."""
    check("report_to", name, name == "all" or name in TRACKERS, f"be all or one of {', '.join(TRACKERS)}")
    packages = TRACKERS.get(name, ())
    rule = f"be installed: `pip install {packages[0] if packages else name}`, or `--with_tracking false`"
    check("report_to", name, not is_used or name == "all" or any(map(find_spec, packages)), rule)
