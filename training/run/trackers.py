"""Trackers of a run. A tracker that fails is reported once and removed, and the run continues."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image
from tqdm.auto import tqdm

from training.settings.checks import check
from training.settings.run import RunSettings


def check_trackers(accelerator: Accelerator, settings: RunSettings) -> None:
    """Raise if Accelerate has left out the tracker that was asked for, which it does without a message."""
    found = bool(accelerator.log_with) or not settings.with_tracking or settings.report_to == "all"
    rule = "be a tracker of Accelerate that is installed; `--with_tracking false` does without"
    check("report_to", settings.report_to, found, rule)


def start_trackers(accelerator: Accelerator, settings: RunSettings, name: str, values: dict[str, Any]) -> None:
    """Start the trackers that were asked for, and log the `values` of all settings."""
    if not settings.with_tracking:
        return
    plain = {key: value if isinstance(value, int | float) else str(value) for key, value in values.items()}
    try:
        accelerator.init_trackers(name, plain)
    except Exception as error:  # each tracker raises its own errors
        raise ValueError(
            f"`report_to` (={settings.report_to}) must be a tracker that can be started: {error!r}. "
            "`--with_tracking false` does without."
        ) from error


def track(accelerator: Accelerator, figures: dict[str, float], step: int) -> None:
    """Log figures to all trackers."""
    tell(accelerator, lambda tracker: tracker.log(figures, step=step))


def show_picture(accelerator: Accelerator, file: Path, step: int) -> None:
    """Log a picture to the trackers that accept pictures."""
    picture = np.asarray(Image.open(file).convert("RGB"))[None]

    def give(tracker: GeneralTracker) -> None:
        if hasattr(tracker, "log_images"):
            options = {"dataformats": "NHWC"} if getattr(tracker, "name", "") == "tensorboard" else {}
            tracker.log_images({"reconstructions": picture}, step=step, **options)  # pyright: ignore[reportAttributeAccessIssue]

    tell(accelerator, give)


def end_training(accelerator: Accelerator) -> None:
    """Close the trackers, then everything else that Accelerate has opened."""
    tell(accelerator, lambda tracker: tracker.finish())
    accelerator.trackers = []
    accelerator.end_training()


def tell(accelerator: Accelerator, message: Callable[[GeneralTracker], None]) -> None:
    """Call `message` with every tracker."""
    for tracker in list(accelerator.trackers):
        try:
            message(tracker)
        except Exception as error:  # any exception: a tracker may be a remote service
            accelerator.trackers.remove(tracker)
            name = getattr(tracker, "name", tracker)
            tqdm.write(f"Warning: the tracker {name} failed: {error!r}. Going on without it.")
