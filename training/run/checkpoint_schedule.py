"""When a checkpoint is due, and which older ones go."""

from pathlib import Path
from time import monotonic

from training.settings.run import CheckpointSettings

SHARE = 20  # saving takes at most one part in so many of a run's time
ROLLING = 2  # checkpoints of the clock and of stops: the newest one may be damaged


class CheckpointSchedule:
    """Checkpoints at multiples of `checkpointing_steps`, and when `checkpointing_minutes` have gone by since the last.

    Without a limit, the former stay, and of all others the newest two.
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
        """Whether a checkpoint is due by the clock; true once until it is written."""
        interval = max(self.seconds, SHARE * self.duration)
        if not self.seconds or self.asked or monotonic() - self.saved_at < interval:
            return False
        self.asked = True
        return True

    def begin(self) -> None:
        """A checkpoint is being written."""
        self.started_at = monotonic()

    def end(self) -> None:
        """It is written."""
        self.saved_at = monotonic()
        self.duration = self.saved_at - self.started_at
        self.asked = False

    def superseded(self, checkpoints: list[Path]) -> list[Path]:
        """Of the checkpoints, the oldest first, those to delete."""
        if self.limit is not None:
            return checkpoints[: -self.limit]
        return [path for path in checkpoints if not self.is_due(int(path.name.split("-")[1]))][:-ROLLING]
