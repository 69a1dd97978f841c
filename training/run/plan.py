"""The number of steps and the learning rate of a run, computed from its settings and the size of its data."""

from dataclasses import dataclass, field
from math import ceil

from training.settings.checks import check
from training.settings.learning import ScheduleSettings


@dataclass
class Plan:
    """The resolved schedule of a run; a step is an optimizer step."""

    num_samples: int | None
    total_batch_size: int
    steps_per_epoch: float | None  # None: a stream of unknown length
    max_steps: int
    warmup_steps: int
    learning_rate: float
    lr_steps: list[int] = field(default_factory=list)  # after which the learning rate is divided by 10

    def epoch(self, step: int) -> float | None:
        """Epochs done after `step` steps."""
        return None if self.steps_per_epoch is None else step / self.steps_per_epoch

    def is_due(self, step: int, interval: int | None) -> bool:
        """Whether something done every `interval` steps (None: at the end of an epoch) is due after `step` steps."""
        if step == self.max_steps:
            return True
        if interval is not None:
            return step % interval == 0
        return self.num_samples is not None and self._epochs_ended(step) > self._epochs_ended(step - 1)

    def _epochs_ended(self, step: int) -> int:
        """The number of complete epochs, in integers: as floats, 11 steps at 1.1 steps per epoch give 9, not 10."""
        assert self.num_samples is not None
        return step * self.total_batch_size // self.num_samples


def make_plan(
    schedule: ScheduleSettings, images_per_pass: int, num_samples: int | None, num_processes: int, num_views: int = 1
) -> Plan:
    """Compute the steps from the epochs, and the learning rate from its base: lr = base * total batch / 256.

    For the learning rate, the total batch counts each of an image's `num_views`. For the length of an epoch, an image
    counts once (as FastConvMAE's figures imply).
    """
    total = images_per_pass * schedule.gradient_accumulation_steps * num_processes
    steps_per_epoch = None if num_samples is None else num_samples / total
    max_steps, warmup_steps = schedule.max_train_steps, schedule.warmup_steps
    if steps_per_epoch is None:
        rule = "be given: this stream does not say how many examples it has"
        check("max_train_steps", max_steps, max_steps is not None, rule)
        known = warmup_steps is not None or not schedule.warmup_epochs
        check("warmup_steps", warmup_steps, known, "be given instead of `warmup_epochs`: the epoch's length is unknown")
    # Multiply before dividing, so that whole epochs of whole batches give whole numbers.
    max_steps = max_steps or ceil(schedule.num_train_epochs * (num_samples or 0) / total)
    if warmup_steps is None:
        warmup_steps = round(schedule.warmup_epochs * (num_samples or 0) / total)
    check("warmup_steps", warmup_steps, warmup_steps < max_steps, f"be less than the {max_steps} steps of the run")
    learning_rate = schedule.learning_rate or schedule.base_learning_rate * total * num_views / 256
    minimum = schedule.min_learning_rate
    check("min_learning_rate", minimum, minimum <= learning_rate, f"be at most the learning rate, {learning_rate}")
    rule = "be empty: the stream does not say how many examples it has, so the epoch's length is unknown"
    check("lr_step_epochs", schedule.lr_step_epochs, not schedule.lr_step_epochs or num_samples is not None, rule)
    lr_steps = [round(epoch * (num_samples or 0) / total) for epoch in schedule.lr_step_epochs]
    return Plan(num_samples, total, steps_per_epoch, max_steps, warmup_steps, learning_rate, lr_steps)
