"""Training a classifier, ConvNeXt V2 (paper, Tables 9 to 14) or ConvMAE, from pre-training or other weights or none.

The labels say whether an image has one class, several, or values that are to be predicted.

    accelerate launch training/finetune.py --config training/recipes/finetune_small_images.yaml \\
        --model_name_or_path out/pretrain --dataset_name path/to/images --output_dir out/classifier
"""

import sys

from training.console.errors import is_first_process, told_in_a_line
from training.settings.command_line import parse_settings
from training.settings.scripts import FinetuneSettings

if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong setting at once
    settings = parse_settings(FinetuneSettings, sys.argv[1:], __doc__)

from typing import Any

from torch.utils.data import DataLoader

from training.data.held_out import load_train_and_eval
from training.data.labels import label_maps
from training.data.problems import Problem, check_problem, columns_for, find_problem, labelled_samples
from training.data.regression import scale_of
from training.data.samples import Collator, Samples, eval_loader, load_images
from training.data.sources import Source, num_examples
from training.data.transforms import BatchMixer, EvaluationTransform, enough_for_crops, finetuning_transform
from training.evaluation.evaluators import LabelEvaluator, create_evaluator
from training.models.creation import create_processor, image_size_of, load_arguments, with_background
from training.models.families import Classifier, EncoderConfig, chosen_family, learning_rate_scale
from training.models.loading import FINETUNING, load_pretrained, stored_config
from training.models.optimizer import decayed_parameters
from training.models.value_head import answer_in_units, set_scale, settle_head
from training.run.evaluation import PeriodicEvaluation
from training.run.training_run import TrainingRun
from training.settings.augmentation import FinetuneAugmentationSettings
from training.settings.checks import check
from training.settings.data import FinetuneDataSettings
from training.settings.labels import REGRESSION, SINGLE_LABEL
from training.settings.model import ClassifierSettings

PRETRAINED_HEAD_SCALE = 0.001  # paper, Tables 9 to 13


def main(settings: FinetuneSettings) -> None:
    """Fine-tune: labels, model, data, plan, loop with evaluations, save."""
    with TrainingRun(settings) as run:
        with run.main_process_first():
            problem = find_problem(settings.data, settings.model.num_labels)
        run.settings = settings = settings_for(settings, problem)
        evaluator = create_evaluator(problem, settings.evaluation.metrics)
        model = create_model(settings.model, settings.augmentation, problem)
        scale = learning_rate_scale(model.config, settings.optimizer)
        data = with_background(settings.data, settings.model)
        processor = create_processor(settings.model, data.background, model.config)
        with run.main_process_first():
            source, eval_source = load_sources(data, settings.augmentation, model.config)
            if problem.type == REGRESSION:
                set_scale(model, scale_of(source, columns_for(data, source, model.config)))
        samples = create_samples(data, settings.augmentation, source, model, processor)
        held_out = create_eval_loader(data, eval_source, model, processor)

        run.make_plan(num_examples([source], data.train_split, data.max_train_samples))
        run.prepare(model, processor, decayed_parameters(model), scale)
        mixer = BatchMixer(settings.augmentation.mixup, settings.augmentation.cutmix, len(problem.names))
        run.begin(data, [source], samples, Collator(mixer), eval_source=eval_source)
        evaluation = PeriodicEvaluation(run, evaluator, held_out, settings.evaluation.eval_steps)

        for _ in run.steps():
            for batch in run.batches():
                loss = run.model(**batch, label_smoothing=settings.augmentation.label_smoothing).loss
                run.backward(loss)
            run.update()
            evaluation.after_step()

        final = run.final_model(type(model))
        results = evaluation.at_end(final)
        answer_in_units(final)
        run.finish(final, results, evaluator.save)
        run.say(f"{told(results, evaluator)}\nClassifier in {run.folder}")


def settings_for(settings: FinetuneSettings, problem: Problem) -> FinetuneSettings:
    """The settings with the problem that was found; raises if one of them has no meaning for it."""
    if problem.type == SINGLE_LABEL:
        return settings
    augmentation, metrics = settings.augmentation, settings.evaluation.metrics
    check("metrics", metrics, not metrics, f"not be given for {problem.type}, which has figures of its own")
    changes: dict[str, Any] = {"problem_type": problem.type}
    if problem.type == REGRESSION:
        rule = "be 0 for regression: a part of another image does not change a value by its share of the area"
        check("cutmix", augmentation.cutmix, not augmentation.cutmix, rule)
        if augmentation.label_smoothing and is_first_process():
            print(f"`label_smoothing` is 0, not {augmentation.label_smoothing}: values have none.", flush=True)
        changes["label_smoothing"] = 0.0
    return settings.replace(**changes)


def create_model(
    settings: ClassifierSettings, augmentation: FinetuneAugmentationSettings, problem: Problem
) -> Classifier:
    """A new classifier of the named size, or one with stored weights.

    Another number of classes than stored, and other values, get a new head; as many classes keep it.
    """
    family, fresh = chosen_family(settings), settings.model_name_or_path is None
    head_scale = settings.head_init_scale
    if head_scale is None:
        head_scale = 1.0 if fresh else PRETRAINED_HEAD_SCALE
    arguments = {
        **load_arguments(settings),
        **label_maps(problem.names),
        "head_init_scale": head_scale,
        "problem_type": problem.type,  # else the loss infers it from mixup's labels
    }
    if settings.drop_path_rate is not None:
        arguments["drop_path_rate"] = settings.drop_path_rate
    if fresh:
        model = family.classifier(family.config.from_size(settings.model_size, **arguments))
    else:
        name = settings.model_name_or_path
        model = load_pretrained(family.classifier, name, FINETUNING, ignore_mismatched_sizes=True, **arguments)
        settle_head(model, stored_config(name, settings.model_revision))
    size, stride = image_size_of(model.config), model.config.strides[-1]
    check("image_size", size, size >= stride, f"be at least {stride}, the stride of the encoder")
    channels = model.config.num_channels
    augmentable = channels in (1, 3) or not augmentation.randaugment_num_ops
    check(
        "randaugment_num_ops", augmentation.randaugment_num_ops, augmentable, f"be 0 for images of {channels} channels"
    )
    if settings.activation_checkpointing:
        model.activation_checkpointing_enable()
    return model


def load_sources(
    data: FinetuneDataSettings, augmentation: FinetuneAugmentationSettings, model_config: EncoderConfig
) -> tuple[Source, Source | None]:
    """The images to train on, and those to evaluate on if there are any. Their labels are checked."""
    described = (model_config.num_channels, augmentation.color_change)
    source, eval_source = load_train_and_eval(data, load_images, *described)
    held_out = data.eval_split or f"{data.train_split}, held out"
    for part, split in ((source, data.train_split), (eval_source, held_out)):
        if part is not None:
            check_problem(data, part, model_config, split)
    return source, eval_source


def create_samples(
    data: FinetuneDataSettings,
    augmentation: FinetuneAugmentationSettings,
    source: Source,
    model: Classifier,
    processor: Any,
) -> Samples:
    """The transform from rows of the source to augmented images with labels."""
    size = image_size_of(model.config)
    transform = finetuning_transform(augmentation, size, processor)
    fields: dict[str, Any] = {
        "enough": enough_for_crops(augmentation, size),
        "color_change": augmentation.color_change,
    }
    return labelled_samples(data, source, model.config, transform, **fields)


def create_eval_loader(
    data: FinetuneDataSettings, source: Source | None, model: Classifier, processor: Any
) -> DataLoader[Any] | None:
    """Batches of the images to evaluate on, if there are any."""
    if source is None:
        return None
    return eval_loader(source, labelled_samples(data, source, model.config, EvaluationTransform(processor)), data)


def told(results: dict[str, Any], evaluator: LabelEvaluator) -> str:
    """The message about the classifier that the run prints at its end."""
    if not results:
        return "Nothing was held out to evaluate on: `--eval_split` or `--train_val_split` does so."
    return f"{evaluator.report()}\n{evaluator.in_words(results)}"


if __name__ == "__main__":
    with told_in_a_line():
        main(settings)
