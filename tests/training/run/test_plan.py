"""How long a run is, and when something is due: counted image by image."""

import pytest

from training.run.plan import make_plan
from training.settings.scripts import PretrainSettings


def plan_of(num_samples, num_processes=1, **fields):
    defaults = {"dataset_name": "x", "output_dir": "out", "per_device_train_batch_size": 4, "num_train_epochs": 3}
    settings = PretrainSettings(**{**defaults, **fields})
    return make_plan(settings.schedule, settings.data.per_device_train_batch_size, num_samples, num_processes)


@pytest.mark.parametrize("num_samples", [8, 9, 10, 11, 12])
def test_a_run_sees_every_image_of_its_last_epoch(num_samples):
    plan = plan_of(num_samples)
    assert (plan.max_steps - 1) * 4 < 3 * num_samples <= plan.max_steps * 4


@pytest.mark.parametrize("num_samples", [8, 9, 10, 11, 12])
def test_what_is_done_once_an_epoch_is_due_after_the_step_with_its_last_image(num_samples):
    plan = plan_of(num_samples)
    # Step s takes images 4 (s - 1) to 4 s - 1 of an endless chain of epochs.
    last_images = [epoch * num_samples - 1 for epoch in (1, 2, 3)]
    expected = sorted({image // 4 + 1 for image in last_images} | {plan.max_steps})
    assert [step for step in range(1, plan.max_steps + 1) if plan.is_due(step, None)] == expected


def test_what_has_an_interval_is_due_at_its_multiples_and_at_the_end():
    plan = plan_of(10, max_train_steps=11)
    assert [step for step in range(1, 12) if plan.is_due(step, 4)] == [4, 8, 11]


def test_a_step_counts_the_images_of_all_processes_and_passes():
    plan = plan_of(
        100,
        num_processes=3,
        gradient_accumulation_steps=2,
        max_train_steps=9,
        base_learning_rate=1e-3,
        warmup_epochs=0.5,
    )
    assert plan.total_batch_size == 24 and plan.epoch(9) == pytest.approx(9 * 24 / 100)
    assert plan.warmup_steps == 2  # half an epoch is 50 images
    assert plan.learning_rate == pytest.approx(1e-3 * 24 / 256)
