"""When a checkpoint is due, and which older checkpoints are deleted."""

from pathlib import Path
from time import monotonic

from training.settings.run import CheckpointSettings

SHARE = 20  # checkpoints by the clock take at most 1 / SHARE of a run's time
ROLLING = 2  # how many checkpoints made by the clock or by a stop are kept: the newest one may be damaged


class CheckpointSchedule:
    """A checkpoint is due at multiples of `checkpointing_steps`, and `checkpointing_minutes` after the last one.

    With `checkpoints_total_limit`, the newest ones stay. Without it, all checkpoints at multiples of
    `checkpointing_steps` stay, and the newest two of the others.
    """

    def __init__(self, settings: CheckpointSettings) -> None:
        self.steps = settings.checkpointing_steps
        self.seconds = 60 * settings.checkpointing_minutes
        self.limit = settings.checkpoints_total_limit
        self.started_at = self.saved_at = monotonic()
        self.duration = 0.0
        self.asked = False

    def is_due(self, step: int) -> bool:
        """Whether the step is one of `checkpointing_steps`."""
        return self.steps is not None and step % self.steps == 0

    def is_late(self) -> bool:
        """Whether a checkpoint is due by the clock. True only once until that checkpoint is written."""
        interval = max(self.seconds, SHARE * self.duration)
        if not self.seconds or self.asked or monotonic() - self.saved_at < interval:
            return False
        self.asked = True
        return True

    def begin(self) -> None:
        """Note that writing a checkpoint begins."""
        self.started_at = monotonic()

    def end(self) -> None:
        """Note that the checkpoint is written."""
        self.saved_at = monotonic()
        self.duration = self.saved_at - self.started_at
        self.asked = False

    def superseded(self, checkpoints: list[Path]) -> list[Path]:
        """The checkpoints to delete, from a list that starts with the oldest."""
        if self.limit is not None:
            return checkpoints[: -self.limit]
        return [path for path in checkpoints if not self.is_due(int(path.name.split("-")[1]))][:-ROLLING]
