"""Training a ConvNeXt V2 classifier, from FCMAE or other weights or from scratch (paper, Tables 9 to 14).

    accelerate launch training/finetune.py --config training/recipes/finetune_small_images.yaml \\
        --model_name_or_path out/pretrain --dataset_name path/to/images --output_dir out/classifier
"""

import sys

from training.run.errors import told_in_a_line
from training.settings.command_line import parse_config
from training.settings.config import FinetuneConfig, check

if __name__ == "__main__":  # before the imports below, which take seconds: a wrong setting is told at once
    parse_config(FinetuneConfig, sys.argv[1:], __doc__)

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device, set_seed
from datasets import Dataset

from conversion.publishing.card import write_card
from hf_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification
from training.data.batches import TrainBatches
from training.data.labels import check_labels, class_list, labelled_samples, resolve_labels
from training.data.samples import Collator, eval_loader, load_images
from training.data.sources import Source, load_source, num_examples
from training.data.splits import check_split, say_what_is_left_out
from training.data.transforms import BatchMixer, EvaluationTransform, enough_for_crops, finetuning_transform
from training.evaluation.metrics import Evaluator, in_words
from training.evaluation.per_class import Answers, save_class_figures, table_in_words
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
from training.models.loading import FINETUNING, load_pretrained
from training.models.optimizer import create_optimizer, create_schedule, decayed_parameters, keep_settings, layer_scale
from training.run.checkpoints import Checkpoints
from training.run.dry_run import json_alone, print_plan
from training.run.log import TrainingLog, create_accelerator
from training.run.output import check_hub, check_output_dir, claim_output_dir, leave_finished, push_folder, save_model
from training.run.plan import make_plan
from training.run.stopping.signals import stoppable
from training.run.stopping.stop import StopSignal, leave_run
from training.run.trackers import end_training, start_trackers
from training.run.trial import Rehearsal, rehearse

PRETRAINED_HEAD_SCALE = 0.001  # paper, Tables 9 to 13


@stoppable()
def main(config: FinetuneConfig) -> None:
    """Fine-tune: settings, model, data, optimizer, resume, loop with evaluations, save."""
    check_output_dir(config)
    check_hub(config)
    accelerator = create_accelerator(config)
    evaluator = Evaluator(config.metrics)
    with accelerator.main_process_first():
        names = class_names_of(config)
    model = create_model(config, names)
    config = with_background(config)
    processor = create_processor(config, model.config)
    with accelerator.main_process_first():
        source, eval_source = load_sources(config, model.config)
    image_size = image_size_of(model.config)
    train_transform, enough = finetuning_transform(config, image_size, processor), enough_for_crops(config, image_size)
    samples = labelled_samples(config, source, model.config, train_transform, enough=enough)
    held_out = None
    if eval_source is not None:
        eval_samples = labelled_samples(config, eval_source, model.config, EvaluationTransform(processor))
        held_out = accelerator.prepare(eval_loader(eval_source, eval_samples, config))
    known_samples = num_examples([source], config.train_split, config.max_train_samples)
    plan = make_plan(config, known_samples, accelerator.num_processes)

    scale = layer_scale(list(model.config.depths), config.layer_decay, config.layer_decay_type)
    optimizer = create_optimizer(model, config, plan.learning_rate, decayed_parameters(model), scale)
    schedule = create_schedule(
        optimizer, plan.learning_rate, config.min_learning_rate, plan.warmup_steps, plan.max_steps
    )
    ema = create_ema(model, config.ema_decay, accelerator)
    trained, optimizer = accelerator.prepare(model, optimizer)
    # The schedule is not prepared: Accelerate would step it once for each process.
    accelerator.register_for_checkpointing(*[state for state in (schedule, ema) if state is not None])
    set_seed(config.seed, device_specific=True)
    rank, world = accelerator.process_index, accelerator.num_processes
    collate = Collator(BatchMixer(config.mixup, config.cutmix, len(class_list(model.config))))
    if config.dry_run:
        batches = TrainBatches([source], samples, config, collate, rank, world)
        smoothing = {"label_smoothing": config.label_smoothing}
        prepared = ({**send_to_device(batch, accelerator.device), **smoothing} for batch in batches)
        steps = Rehearsal(
            accelerator, trained, optimizer, batches, prepared, config, lambda step: update_average(ema, model)
        )
        print_plan(accelerator, config, plan, [source], model, scale, rehearse(steps, plan), eval_source)
        return
    if leave_finished(accelerator, config, plan.max_steps):
        end_training(accelerator)
        return
    checkpoints = Checkpoints(accelerator, config, model, processor, plan)
    with keep_settings(optimizer, schedule):
        start = checkpoints.resume()
    if accelerator.is_main_process:
        claim_output_dir(config)
    start_trackers(accelerator, config, "finetune")

    batches = TrainBatches([source], samples, config, collate, rank, world, start.of("batches"))
    log = TrainingLog(accelerator, config, plan, start, batches)
    stop = StopSignal(accelerator, batches, config.ddp_timeout)
    results: dict[str, Any] = {}
    if held_out is not None and any(due["evaluation"] for due in start.of("due")):  # the stop did not wait for it
        results = evaluator(accelerator, trained if ema is None else ema.module, held_out)
        log.write_evaluation(results)
    put_off = False

    def save(step: int) -> None:
        log.check_finite(model)
        with log.paused():
            checkpoints.save(step, batches=batches.state_dict(), log=log.state_dict(), due={"evaluation": put_off})

    for step in range(start.step + 1, plan.max_steps + 1):
        model.train()
        grad_norm = None
        for batch in stop.batches(islice(batches, config.gradient_accumulation_steps)):
            with accelerator.accumulate(trained):
                batch = send_to_device(batch, accelerator.device)
                loss = trained(**batch, label_smoothing=config.label_smoothing).loss
                accelerator.backward(loss)
                log.add(loss)
                if accelerator.sync_gradients:  # without a limit this only measures the norm, for the log
                    grad_norm = accelerator.clip_grad_norm_(trained.parameters(), config.max_grad_norm or torch.inf)
                optimizer.step()
                optimizer.zero_grad()
        if stop.gave_up:
            leave_run(accelerator, checkpoints, step - 1, save)
        update_average(ema, model)
        # The last group is the head's, whose rate no layer decay reduces.
        log.end_step(schedule.get_last_lr()[-1], grad_norm)
        schedule.step()
        stopped, late = stop.after_step(checkpoints.is_late())
        due = held_out is not None and plan.is_due(step, config.eval_steps)
        put_off, interrupted = due and stopped, False  # the checkpoint goes first
        if due and not stopped:
            assert held_out is not None
            log.check_finite()
            with log.paused():
                found = evaluator(accelerator, trained if ema is None else ema.module, held_out, stop.is_asked)
            results = found or results
            if found:
                log.write_evaluation(results)
            else:
                stopped = put_off = interrupted = True
        if stopped or late or checkpoints.is_due(step):
            save(step)
        if stopped and (step < plan.max_steps or interrupted):
            leave_run(accelerator, checkpoints, step, save)
    stop.close()

    log.check_finite(model)
    final = final_model(ConvNextV2ForImageClassification, accelerator, trained, ema)
    if held_out is not None and (put_off or not results):  # stopped, or resumed, at the very end
        results = evaluator(accelerator, final, held_out)
        if put_off:
            log.write_evaluation(results)
    if accelerator.is_main_process:
        finish(config, final, processor, {**results, **log.results()}, evaluator.answers)
    accelerator.wait_for_everyone()
    end_training(accelerator)


def class_names_of(config: FinetuneConfig) -> list[str]:
    """Names of the classes to train; images are not touched."""
    return resolve_labels(load_source(config, config.train_split, None), config.label_column, config.num_labels)


def create_model(config: FinetuneConfig, names: list[str]) -> ConvNextV2ForImageClassification:
    """A new classifier of the named size, or one on stored weights; its head is new unless it has the same classes."""
    fresh = config.model_name_or_path is None
    head_scale = config.head_init_scale if config.head_init_scale is not None else (1.0 if fresh else None)
    arguments = {
        **load_arguments(config),
        "id2label": dict(enumerate(names)),
        "label2id": {name: label for label, name in enumerate(names)},
        "head_init_scale": PRETRAINED_HEAD_SCALE if head_scale is None else head_scale,
        "problem_type": "single_label_classification",  # so that the loss need not check mixup's labels
    }
    if config.drop_path_rate is not None:
        arguments["drop_path_rate"] = config.drop_path_rate
    if fresh:
        model_config = ConvNextV2Config.from_size(config.model_size, **arguments)
        model = ConvNextV2ForImageClassification(model_config)
    else:
        model_class, name = ConvNextV2ForImageClassification, config.model_name_or_path
        model = load_pretrained(model_class, name, FINETUNING, ignore_mismatched_sizes=True, **arguments)
    size, cell = image_size_of(model.config), model.config.cell_size
    assert isinstance(cell, int)
    check("image_size", size, size >= cell, f"be at least {cell}, the size of a cell")
    channels = model.config.num_channels
    augmentable = channels in (1, 3) or not config.randaugment_num_ops
    check("randaugment_num_ops", config.randaugment_num_ops, augmentable, f"be 0 for images of {channels} channels")
    if config.activation_checkpointing:
        model.activation_checkpointing_enable()
    return model


def load_sources(config: FinetuneConfig, model_config: ConvNextV2Config) -> tuple[Source, Source | None]:
    """The images to train on, and those to evaluate on if there are any, with their labels checked."""
    source = load_images(config, config.train_split, config.max_train_samples, model_config.num_channels)
    eval_source = None
    say_what_is_left_out(config, source)
    if config.eval_split is not None:
        check_split(config, "eval_split", config.eval_split)
        eval_source = load_images(config, config.eval_split, config.max_eval_samples, model_config.num_channels)
    elif config.train_val_split:
        assert isinstance(source, Dataset)
        parts = source.train_test_split(test_size=config.train_val_split, seed=config.seed)
        source, eval_source = parts["train"], parts["test"]
    for part in (source, eval_source):
        if part is not None:
            check_labels(part, config.label_column, class_list(model_config))
    return source, eval_source


def finish(
    config: FinetuneConfig, model: Any, processor: Any, results: dict[str, Any], answers: Answers | None
) -> None:
    """Write the folder that `from_pretrained` and `pipeline` load, figures and the card; upload it if asked to."""
    folder = Path(config.output_dir)
    save_model(folder, model, processor, results)
    save_loss_curves(folder / "metrics.jsonl", folder / "loss_curves.png")
    names = class_list(model.config)
    save_class_figures(folder, answers, names)
    write_card(folder)
    if config.push_to_hub:
        push_folder(config)
    if answers is not None:
        print(f"{table_in_words(answers, names)}\n{in_words(results)}")
    else:
        print("Nothing was held out to measure the accuracy on: `--eval_split` or `--train_val_split` does so.")
    print(f"Classifier in {folder}", flush=True)


if __name__ == "__main__":
    with told_in_a_line():
        settings = parse_config(FinetuneConfig, sys.argv[1:], __doc__)
        with json_alone(settings):
            main(settings)
