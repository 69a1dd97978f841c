"""Training a classifier, ConvNeXt V2 (paper, Tables 9 to 14) or ConvMAE, from pre-training or other weights or none.

    accelerate launch training/finetune.py --config training/recipes/finetune_small_images.yaml \\
        --model_name_or_path out/pretrain --dataset_name path/to/images --output_dir out/classifier
"""

import sys

from training.console.errors import told_in_a_line
from training.settings.command_line import parse_settings
from training.settings.scripts import FinetuneSettings

if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong setting at once
    settings = parse_settings(FinetuneSettings, sys.argv[1:], __doc__)

from typing import Any

from torch.utils.data import DataLoader

from training.data.held_out import load_train_and_eval
from training.data.labels import check_labels, class_list, label_maps, labelled_samples, resolve_labels
from training.data.samples import Collator, Samples, eval_loader, load_images
from training.data.sources import Source, find_source, num_examples
from training.data.transforms import BatchMixer, EvaluationTransform, enough_for_crops, finetuning_transform
from training.evaluation.metrics import Evaluator, in_words
from training.evaluation.per_class import Answers, save_class_figures, table_in_words
from training.models.creation import create_processor, image_size_of, load_arguments, with_background
from training.models.families import Classifier, EncoderConfig, chosen_family, family_of
from training.models.layer_decay import layer_scale
from training.models.loading import FINETUNING, load_pretrained
from training.models.optimizer import decayed_parameters
from training.run.evaluation import PeriodicEvaluation
from training.run.training_run import TrainingRun
from training.settings.augmentation import FinetuneAugmentationSettings
from training.settings.checks import check
from training.settings.data import FinetuneDataSettings
from training.settings.model import ClassifierSettings

PRETRAINED_HEAD_SCALE = 0.001  # paper, Tables 9 to 13


def main(settings: FinetuneSettings) -> None:
    """Fine-tune: classes, model, data, plan, loop with evaluations, save."""
    with TrainingRun(settings) as run:
        evaluator = Evaluator(settings.evaluation.metrics)
        with run.main_process_first():
            names = class_names_of(settings.data, settings.model.num_labels)
        model = create_model(settings.model, settings.augmentation, names)
        data = with_background(settings.data, settings.model)
        processor = create_processor(settings.model, data.background, model.config)
        with run.main_process_first():
            source, eval_source = load_sources(data, model.config)
        samples = create_samples(data, settings.augmentation, source, model, processor)
        held_out = create_eval_loader(data, eval_source, model, processor)

        run.make_plan(num_examples([source], data.train_split, data.max_train_samples))
        optimizer = settings.optimizer
        depths, rule = list(model.config.depths), family_of(model.config).layers
        scale = layer_scale(depths, optimizer.layer_decay, optimizer.layer_decay_type, rule)
        run.prepare(model, processor, decayed_parameters(model), scale)
        mixer = BatchMixer(settings.augmentation.mixup, settings.augmentation.cutmix, len(names))
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
        run.finish(final, results, lambda folder: save_class_figures(folder, evaluator.answers, names))
        run.say(f"{told(results, evaluator.answers, names)}\nClassifier in {run.folder}")


def class_names_of(data: FinetuneDataSettings, num_labels: int | None) -> list[str]:
    """The names of the classes to train. No image is read."""
    found = find_source(data, data.train_split)
    return resolve_labels(found.source, data.label_column, num_labels, found.notes)


def create_model(
    settings: ClassifierSettings, augmentation: FinetuneAugmentationSettings, names: list[str]
) -> Classifier:
    """A new classifier of the named size, or one with stored weights. Other classes than stored get a new head."""
    family, fresh = chosen_family(settings), settings.model_name_or_path is None
    head_scale = settings.head_init_scale
    if head_scale is None:
        head_scale = 1.0 if fresh else PRETRAINED_HEAD_SCALE
    arguments = {
        **load_arguments(settings),
        **label_maps(names),
        "head_init_scale": head_scale,
        "problem_type": "single_label_classification",  # else the loss infers it from mixup's labels
    }
    if settings.drop_path_rate is not None:
        arguments["drop_path_rate"] = settings.drop_path_rate
    if fresh:
        model = family.classifier(family.config.from_size(settings.model_size, **arguments))
    else:
        name = settings.model_name_or_path
        model = load_pretrained(family.classifier, name, FINETUNING, ignore_mismatched_sizes=True, **arguments)
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


def load_sources(data: FinetuneDataSettings, model_config: EncoderConfig) -> tuple[Source, Source | None]:
    """The images to train on, and those to evaluate on if there are any. Their labels are checked."""
    source, eval_source = load_train_and_eval(data, load_images, model_config.num_channels)
    for part in (source, eval_source):
        if part is not None:
            check_labels(part, data.label_column, class_list(model_config))
    return source, eval_source


def create_samples(
    data: FinetuneDataSettings,
    augmentation: FinetuneAugmentationSettings,
    source: Source,
    model: Classifier,
    processor: Any,
) -> Samples:
    """The transform from rows of the source to augmented images with a class."""
    size = image_size_of(model.config)
    transform, enough = finetuning_transform(augmentation, size, processor), enough_for_crops(augmentation, size)
    return labelled_samples(data, source, model.config, transform, enough=enough)


def create_eval_loader(
    data: FinetuneDataSettings, source: Source | None, model: Classifier, processor: Any
) -> DataLoader[Any] | None:
    """Batches of the images to evaluate on, if there are any."""
    if source is None:
        return None
    return eval_loader(source, labelled_samples(data, source, model.config, EvaluationTransform(processor)), data)


def told(results: dict[str, Any], answers: Answers | None, names: list[str]) -> str:
    """The message about the classifier that the run prints at its end."""
    if answers is None:
        return "Nothing was held out to measure the accuracy on: `--eval_split` or `--train_val_split` does so."
    return f"{table_in_words(answers, names)}\n{in_words(results)}"


if __name__ == "__main__":
    with told_in_a_line():
        main(settings)
