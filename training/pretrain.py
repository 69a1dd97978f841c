"""FCMAE pre-training of ConvNeXt V2 on unlabelled images (paper, section 3 and Table 8).

    accelerate launch training/pretrain.py --config training/recipes/pretrain_small_images.yaml \\
        --dataset_name path/to/images --output_dir out/pretrain
"""

import sys

from training.run.errors import told_in_a_line
from training.settings.command_line import parse_config
from training.settings.config import PretrainConfig, check

if __name__ == "__main__":  # before the imports below, which take seconds: a wrong setting is told at once
    parse_config(PretrainConfig, sys.argv[1:], __doc__)

from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch.optim.swa_utils import AveragedModel

from conversion.publishing.card import write_card
from hf_convnextv2 import ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining
from hf_convnextv2.masking import complementary_set_sizes, count_visible
from training.data.batches import TrainBatches
from training.data.samples import Collator, first_samples, load_mixture, make_samples
from training.data.sources import num_examples
from training.data.transforms import enough_for_crops, pretraining_transform
from training.evaluation.pictures import save_loss_curves
from training.models.creation import (
    create_ema,
    create_processor,
    final_model,
    image_size_of,
    load_arguments,
    update_average,
    with_background,
)
from training.models.loading import PRETRAINING, load_pretrained, model_named
from training.models.optimizer import create_optimizer, create_schedule, decayed_parameters, keep_settings
from training.models.teachers import AverageTeacher, FrozenTeacher, Targets, create_average_teacher
from training.run.checkpoints import Checkpoints
from training.run.dry_run import json_alone, print_plan
from training.run.log import TrainingLog, create_accelerator
from training.run.monitor import Watcher
from training.run.output import check_hub, check_output_dir, claim_output_dir, leave_finished, push_folder, save_model
from training.run.plan import make_plan
from training.run.stopping.signals import stoppable
from training.run.stopping.stop import StopSignal, leave_run
from training.run.trackers import end_training, start_trackers
from training.run.trial import Rehearsal, rehearse

MODEL_SETTINGS = (
    *("num_visible_sets", "decoder_hidden_size", "decoder_num_hidden_layers", "fusion_stages"),
    *("target_type", "feature_target_on", "feature_loss", "feature_loss_weight"),
)
LOSS_PARTS = ("pixel_loss", "feature_loss")
NUM_RECONSTRUCTIONS = 8  # images
NUM_PICTURES = 20  # of them in a run


@stoppable()
def main(config: PretrainConfig) -> None:
    """Pre-train: settings, model, data, optimizer, resume, loop, save."""
    check_output_dir(config)
    check_hub(config)
    accelerator = create_accelerator(config)
    name, layers, revision = config.teacher_name_or_path, config.feature_target_layers, config.teacher_revision
    frozen = FrozenTeacher(name, layers, revision) if name is not None else None
    model = create_model(config, frozen)
    config = with_background(config)
    processor = create_processor(config, model.config)
    with accelerator.main_process_first():
        sources = load_mixture(config, model.config.num_channels)
    image_size = image_size_of(model.config)
    transform, enough = pretraining_transform(config, image_size, processor), enough_for_crops(config, image_size)
    fields = {"num_cells": num_cells(model), "enough": enough}
    samples = make_samples(config, sources[0], model.config.num_channels, transform, **fields)
    known_samples = num_examples(sources, config.train_split, config.max_train_samples)
    plan = make_plan(config, known_samples, accelerator.num_processes, model.config.num_visible_sets)

    decayed = decayed_parameters(model, config.decay_grn_and_mask_token)
    optimizer = create_optimizer(model, config, plan.learning_rate, decayed, every_layer)
    schedule = create_schedule(
        optimizer, plan.learning_rate, config.min_learning_rate, plan.warmup_steps, plan.max_steps
    )
    ema = create_ema(model, config.ema_decay, accelerator)
    average = create_average_teacher(model, config, plan, accelerator) if frozen is None else None
    taught = Targets(frozen or average, accelerator, model.config, config, processor)
    trained, optimizer = accelerator.prepare(model, optimizer)
    # The schedule is not prepared: Accelerate would step it once for each process.
    accelerator.register_for_checkpointing(*[state for state in (schedule, ema, average) if state is not None])
    set_seed(config.seed, device_specific=True)
    rank, world, weights = accelerator.process_index, accelerator.num_processes, config.mixture_weights or [1]
    if config.dry_run:
        batches = TrainBatches(sources, samples, config, Collator(), rank, world, (), weights)
        update = partial(update_averages, model, ema, average)
        steps = Rehearsal(accelerator, trained, optimizer, batches, map(taught, batches), config, update)
        measured = rehearse(steps, plan, taught.teacher)
        print_plan(accelerator, config, plan, sources, model, every_layer, measured)
        return
    if leave_finished(accelerator, config, plan.max_steps):
        end_training(accelerator)
        return
    checkpoints = Checkpoints(accelerator, config, model, processor, plan)
    with keep_settings(optimizer, schedule):
        start = checkpoints.resume()
    if accelerator.is_main_process:
        claim_output_dir(config)
    start_trackers(accelerator, config, "pretrain")

    batches = TrainBatches(sources, samples, config, Collator(), rank, world, start.of("batches"), weights)
    watcher = Watcher(accelerator, model, first_samples(sources[0], samples, config, NUM_RECONSTRUCTIONS), processor)
    parts = LOSS_PARTS if model.config.target_type == "pixel+feature" else ()
    log = TrainingLog(accelerator, config, plan, start, batches, parts)
    stop = StopSignal(accelerator, batches, config.ddp_timeout)

    def save(step: int) -> None:
        log.check_finite(model)
        with log.paused():
            checkpoints.save(step, batches=batches.state_dict(), log=log.state_dict())

    model.train()
    for step in range(start.step + 1, plan.max_steps + 1):
        grad_norm = None
        for batch in stop.batches(islice(batches, config.gradient_accumulation_steps)):
            with accelerator.accumulate(trained):
                outputs = trained(**taught(batch))
                accelerator.backward(outputs.loss)
                log.add(outputs.loss, outputs)
                if accelerator.sync_gradients:  # without a limit this only measures the norm, for the log
                    grad_norm = accelerator.clip_grad_norm_(trained.parameters(), config.max_grad_norm or torch.inf)
                optimizer.step()
                optimizer.zero_grad()
        if stop.gave_up:
            leave_run(accelerator, checkpoints, step - 1, save)
        update_averages(model, ema, average, step)
        log.end_step(schedule.get_last_lr()[-1], grad_norm)
        schedule.step()
        stopped, late = stop.after_step(checkpoints.is_late())
        if plan.is_due(step, config.reconstruction_steps or max(1, plan.max_steps // NUM_PICTURES)):
            with log.paused():
                log.write(watcher(Path(config.output_dir), step))
        if stopped or late or checkpoints.is_due(step):
            save(step)
        if stopped and step < plan.max_steps:
            leave_run(accelerator, checkpoints, step, save)
    stop.close()

    log.check_finite(model)
    final = final_model(ConvNextV2ForPreTraining, accelerator, trained, ema)
    if accelerator.is_main_process:
        finish(config, final, processor, watcher, log.results())
    accelerator.wait_for_everyone()
    end_training(accelerator)


def update_averages(
    model: ConvNextV2ForPreTraining, ema: AveragedModel | None, teacher: AverageTeacher | None, step: int
) -> None:
    """Take the weights after `step` steps into the average that is saved and into the one that teaches."""
    update_average(ema, model)
    if teacher is not None:
        teacher.update(model, step)


def create_model(config: PretrainConfig, teacher: FrozenTeacher | None = None) -> ConvNextV2ForPreTraining:
    """A new model of the named size, or one whose encoder (and decoder, if it has one) is loaded."""
    pretraining = {"mask_ratio": config.mask_ratio, "norm_pix_loss": config.norm_pix_loss}
    pretraining["feature_target_dim"] = teacher.num_channels(config.image_size) if teacher is not None else None
    for name in MODEL_SETTINGS:
        if getattr(config, name) is not None:
            pretraining[name] = getattr(config, name)
    if config.model_name_or_path is None:
        model_config = ConvNextV2FCMAEConfig.from_size(config.model_size, **load_arguments(config), **pretraining)
        model = ConvNextV2ForPreTraining(model_config)
    else:
        arguments = {**load_arguments(config), **pretraining}
        arguments |= start_of_features(config, config.model_name_or_path, pretraining["feature_target_dim"])
        model = load_pretrained(ConvNextV2ForPreTraining, config.model_name_or_path, PRETRAINING, **arguments)
    if config.target_type is None and model.config.target_type == "pixel":
        for name in ("feature_target_on", "feature_loss", "feature_loss_weight"):
            check(name, getattr(config, name), getattr(config, name) is None, "come with `target_type`")
    num_cells(model)  # refuse a size that does not fit before any image is read
    if config.activation_checkpointing:
        model.activation_checkpointing_enable()
    return model


def start_of_features(config: PretrainConfig, name: str, num_channels: int | None) -> dict[str, Any]:
    """How to load a model that may have learned another teacher's features: that head starts anew then."""
    with model_named(name):
        stored = ConvNextV2FCMAEConfig.from_pretrained(name, revision=config.model_revision or "main")
    said = config.target_type is not None or stored.target_type == "pixel"
    rule = f"be given to go on from {name}, which predicts features of a teacher that is not in it"
    check("target_type", None, said, rule)
    if "pixel" in (config.target_type, stored.target_type):
        return {}
    same = stored.feature_target_dim == (num_channels or stored.hidden_sizes[-1])
    same = same and config.feature_target_on in (None, stored.feature_target_on)
    return {} if same else {"ignore_mismatched_sizes": True}


def num_cells(model: ConvNextV2ForPreTraining) -> int:
    """Cells of an image; raises unless they fill it and leave some visible and some hidden, or each set one."""
    size, cell = image_size_of(model.config), model.config.cell_size
    rule = f"be a multiple of {cell}, the size of a cell (`patch_size` * 2 ** (`num_stages` - 1))"
    check("image_size", size, size >= cell and size % cell == 0, rule)
    cells = (size // cell) ** 2
    assert model.config.mask_ratio is not None
    if model.config.num_visible_sets > 1:
        complementary_set_sizes(cells, model.config.num_visible_sets)
    else:
        count_visible(cells, model.config.mask_ratio)
    return cells


def every_layer(name: str) -> float:
    """A parameter's share of the learning rate."""
    return 1.0


def finish(config: PretrainConfig, model: Any, processor: Any, watcher: Watcher, results: dict[str, Any]) -> None:
    """Write the folder that `from_pretrained` loads, the pictures and the card; upload it if asked to."""
    folder = Path(config.output_dir)
    save_model(folder, model, processor, results)
    save_loss_curves(folder / "metrics.jsonl", folder / "loss_curves.png")
    watcher.save_picture(model, folder / "reconstructions.png")
    write_card(folder)
    if config.push_to_hub:
        push_folder(config)
    print(f"Pre-trained model in {folder}", flush=True)


if __name__ == "__main__":
    with told_in_a_line():
        settings = parse_config(PretrainConfig, sys.argv[1:], __doc__)
        with json_alone(settings):
            main(settings)
