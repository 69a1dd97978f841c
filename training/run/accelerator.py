"""The accelerator of a run."""

from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed
from transformers.trainer_utils import enable_full_determinism

from training.console.bars import keep_bars_to_terminals
from training.machine.threads import fit_threads
from training.run.trackers import check_trackers
from training.settings.run import ProcessSettings, RunSettings


def create_accelerator(settings: RunSettings, gradient_accumulation_steps: int, seed: int) -> Accelerator:
    """Create the accelerator of a run, with the same seed in all training processes for the same initial weights."""
    keep_bars_to_terminals()
    if settings.full_determinism:
        enable_full_determinism(seed)
    folders = ProjectConfiguration(settings.output_dir, logging_dir=str(Path(settings.output_dir) / "logs"))
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_steps=gradient_accumulation_steps,
        log_with=settings.report_to if settings.with_tracking else None,
        project_config=folders,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=settings.ddp_timeout))],
    )
    fit_threads(accelerator)
    check_trackers(accelerator, settings)
    set_seed(seed)
    return accelerator


def create_plain_accelerator(settings: ProcessSettings) -> Accelerator:
    """Create the accelerator of a script that trains nothing."""
    keep_bars_to_terminals()
    waiting = InitProcessGroupKwargs(timeout=timedelta(seconds=settings.ddp_timeout))
    accelerator = Accelerator(mixed_precision=settings.mixed_precision, kwargs_handlers=[waiting])
    fit_threads(accelerator)
    return accelerator


def tell_batch_size(accelerator: Accelerator, images_per_pass: int) -> None:
    """Tell DeepSpeed the batch size: it reads it from a loader that Accelerate prepares, and our batches have none."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config.update({"train_micro_batch_size_per_gpu": images_per_pass})
