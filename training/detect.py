"""Training a detector: Mask R-CNN or another, on an encoder from pre-training, from other weights, or from scratch.

    accelerate launch training/detect.py --config training/recipes/detect_small_images.yaml \\
        --model_name_or_path out/pretrain --dataset_name path/to/images --output_dir out/detector
"""

import sys

from training.console.errors import told_in_a_line
from training.settings.command_line import parse_settings
from training.settings.scripts import DetectSettings

if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong setting at once
    settings = parse_settings(DetectSettings, sys.argv[1:], __doc__)

from typing import Any

from training.data.detection.batches import DetectionCollator
from training.data.detection.classes import check_held_out, class_names_of
from training.data.detection.rows import load_objects, object_reader
from training.data.detection.samples import detection_samples
from training.data.detection.transforms import DetectionTransform, longest_side_of
from training.data.held_out import load_train_and_eval
from training.data.sources import num_examples
from training.evaluation.detection import DetectionEvaluator
from training.evaluation.detection_figures import save_figures, table_in_words
from training.evaluation.detection_protocol import detection_loader
from training.models.architecture import encoder_config
from training.models.backbone import num_channels_of
from training.models.batch_norm import synchronise_batch_norm
from training.models.creation import image_size_of, with_background
from training.models.detection import (
    create_detection_processor,
    create_detector,
    detect_with,
    has_masks,
    is_rcnn,
    loss_parts,
)
from training.models.families import learning_rate_scale
from training.models.optimizer import decayed_parameters
from training.run.evaluation import PeriodicEvaluation
from training.run.sharding import refuse_sharding
from training.run.training_run import TrainingRun
from training.settings.augmentation import check_distortion


def main(settings: DetectSettings) -> None:
    """Train: classes, model, data, plan, loop with evaluations, save."""
    with TrainingRun(settings) as run:
        with_masks, rcnn, parts = has_masks(settings.model), is_rcnn(settings.model), loss_parts(settings.model)
        if rcnn:
            refuse_sharding(run.accelerator)
        with run.main_process_first():
            check_distortion(settings.augmentation.photometric_distortion, num_channels_of(settings.model))
            names = class_names_of(settings.data, settings.model.num_labels)
        model = synchronise_batch_norm(create_detector(settings.model, names), run.accelerator)
        encoder = encoder_config(model.config)
        scale = learning_rate_scale(encoder, settings.optimizer)
        data = with_background(settings.data, settings.model)
        processor = create_detection_processor(settings.model, data.background, encoder, settings.model.architecture)
        color_change = settings.augmentation.color_change
        with run.main_process_first():
            longest = longest_side_of(processor)
            described = (encoder.num_channels, names, with_masks, longest, color_change)
            source, eval_source = load_train_and_eval(data, load_objects, *described)
        check_held_out(source, eval_source, data, names)
        reader = object_reader(data, names, with_masks)
        transform = DetectionTransform(settings.augmentation, image_size_of(encoder), processor, is_square=not rcnn)
        samples = detection_samples(data, source, encoder.num_channels, reader, transform, color_change)

        run.make_plan(num_examples([source], data.train_split, data.max_train_samples))
        run.prepare(model, processor, decayed_parameters(model), scale)
        run.begin(data, [source], samples, DetectionCollator(rcnn), eval_source=eval_source, loss_parts=parts)
        held_out = detection_loader(run.accelerator, data, eval_source, encoder.num_channels, reader, processor)
        evaluator = DetectionEvaluator(names, detect_with(processor, rcnn), with_masks, settings.evaluation)
        evaluation = PeriodicEvaluation(run, evaluator, held_out, settings.evaluation.eval_steps)

        for _ in run.steps():
            for batch in run.batches():
                outputs = run.model(**batch)
                run.backward(outputs.loss, outputs.loss_dict)
            run.update()
            evaluation.after_step()

        final = run.final_model(type(model))
        results = evaluation.at_end(final)
        run.finish(final, results, lambda folder: save_figures(folder, evaluator, names, processor))
        run.say(f"{told(results, evaluator)}\nDetector in {run.folder}")


def told(results: dict[str, Any], evaluator: DetectionEvaluator) -> str:
    """The message about the detector that the run prints at its end."""
    if not results:
        return "Nothing was held out to measure the AP on: `--eval_split` or `--train_val_split` does so."
    return f"{table_in_words(evaluator.per_class)}\n{evaluator.in_words(results)}"


if __name__ == "__main__":
    with told_in_a_line():
        main(settings)
