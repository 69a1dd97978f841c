"""Training a model for semantic segmentation, on an encoder from pre-training, from other weights, or from scratch.

    accelerate launch training/segment.py --config training/recipes/segment_small_images.yaml \\
        --model_name_or_path out/pretrain --dataset_name path/to/images --output_dir out/segmenter
"""

import sys

from training.console.errors import told_in_a_line
from training.settings.command_line import parse_settings
from training.settings.scripts import SegmentSettings

if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong setting at once
    settings = parse_settings(SegmentSettings, sys.argv[1:], __doc__)

from functools import partial
from typing import Any

from torch import Tensor

from training.data.held_out import load_train_and_eval
from training.data.samples import Collator
from training.data.segmentation.classes import class_names_of
from training.data.segmentation.masks import ignored_label, mask_reader
from training.data.segmentation.pairs import load_pairs, segmentation_samples
from training.data.sources import num_examples
from training.data.transforms import SegmentationTransform
from training.evaluation.segmentation import NO_PIXEL, SegmentationEvaluator
from training.evaluation.segmentation_figures import save_figures, table_in_words
from training.evaluation.segmentation_protocol import check_prediction, keep_mask_settings, segmentation_loader
from training.models.backbone import num_channels_of
from training.models.batch_norm import synchronise_batch_norm
from training.models.creation import image_size_of, with_background
from training.models.families import learning_rate_scale
from training.models.optimizer import decayed_parameters
from training.models.segmentation import SEGMENTERS, create_segmentation_processor, create_segmenter
from training.run.evaluation import PeriodicEvaluation
from training.run.sharding import refuse_sharding
from training.run.training_run import TrainingRun
from training.settings.augmentation import check_distortion


def main(settings: SegmentSettings) -> None:
    """Train: classes, model, data, plan, loop with evaluations, save."""
    with TrainingRun(settings) as run:
        if settings.evaluation.eval_window is not None:
            refuse_sharding(run.accelerator)
        with run.main_process_first():
            num_channels = num_channels_of(settings.model)
            check_distortion(settings.augmentation.photometric_distortion, num_channels)
            names = class_names_of(settings.data, settings.model.num_labels, num_channels)
        model = synchronise_batch_norm(create_segmenter(settings.model, names), run.accelerator)
        encoder: Any = model.config.backbone_config
        scale = learning_rate_scale(encoder, settings.optimizer)
        ignored, architecture = ignored_label(len(names)), settings.model.architecture
        data = with_background(settings.data, settings.model)
        keep_mask_settings(model, data)
        processor = create_segmentation_processor(settings.model, data.background, encoder, architecture)
        check_prediction(settings.evaluation, encoder, processor)
        color_change = settings.augmentation.color_change
        with run.main_process_first():
            source, eval_source = load_train_and_eval(data, load_pairs, encoder.num_channels, names, color_change)
        reader = mask_reader(data, len(names), ignored)
        transform = SegmentationTransform(settings.augmentation, image_size_of(encoder), processor)
        samples = segmentation_samples(data, source, encoder.num_channels, reader, transform, color_change)

        run.make_plan(num_examples([source], data.train_split, data.max_train_samples))
        run.prepare(model, processor, decayed_parameters(model), scale)
        run.begin(data, [source], samples, Collator(), eval_source=eval_source)
        held_out = segmentation_loader(run.accelerator, data, eval_source, encoder.num_channels, reader, processor)
        evaluator = SegmentationEvaluator(len(names), ignored, settings.evaluation)
        evaluation = PeriodicEvaluation(run, evaluator, held_out, settings.evaluation.eval_steps)

        # The other architectures' losses are means over masks, which Transformers counts in all processes itself.
        count = partial(num_known_pixels, ignored) if architecture == "upernet" else None
        for _ in run.steps():
            for batch in run.batches(count):
                run.backward(run.model(**batch).loss)
            run.update()
            evaluation.after_step()

        final = run.final_model(SEGMENTERS[architecture])
        results = evaluation.at_end(final)
        run.finish(final, results, lambda folder: save_figures(folder, evaluator, names, processor))
        run.say(f"{told(results, evaluator, names)}\nSegmentation model in {run.folder}")


def num_known_pixels(ignored: int, batch: dict[str, Any]) -> Tensor:
    """How many pixels of a batch have a class."""
    return (batch["labels"] != ignored).sum()


def told(results: dict[str, Any], evaluator: SegmentationEvaluator, names: list[str]) -> str:
    """The message about the model that the run prints at its end."""
    if evaluator.confusion is None:
        if "eval_samples" in results:
            return NO_PIXEL
        return "Nothing was held out to measure the mean IoU on: `--eval_split` or `--train_val_split` does so."
    return f"{table_in_words(evaluator.confusion, names)}\n{evaluator.in_words(results)}"


if __name__ == "__main__":
    with told_in_a_line():
        main(settings)
