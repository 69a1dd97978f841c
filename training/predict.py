"""Write what a classifier, a segmentation model or a detector says of images to a table.

    accelerate launch training/predict.py --model_name_or_path out/classifier \\
        --dataset_name path/to/images --output_file out/answers.csv
    accelerate launch training/predict.py --model_name_or_path out/segmenter \\
        --dataset_name 'photos/**/*.jpg' --output_file out/answers.parquet --masks_dir out/masks
    accelerate launch training/predict.py --model_name_or_path out/detector \\
        --dataset_name path/to/images --output_file out/objects.json --threshold 0.3
    accelerate launch training/predict.py --model_name_or_path facebook/convnextv2-tiny-1k-224 --top_k 5 \\
        --dataset_name ILSVRC/imagenet-1k --split test --streaming true --output_file out/answers.jsonl
"""

import sys

from training.console.errors import told_in_a_line
from training.settings.command_line import parse_settings
from training.settings.prediction import PredictSettings

if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong setting at once
    settings = parse_settings(PredictSettings, sys.argv[1:], __doc__)

from contextlib import nullcontext
from functools import partial
from pathlib import Path

from training.data.labels import class_list
from training.models.creation import with_background
from training.prediction.answers import check_fits, create_answers
from training.prediction.batches import create_reader
from training.prediction.files import write_answers
from training.prediction.images import check_same_images, find_images
from training.prediction.loop import alone, answer_images, begin, finish
from training.prediction.masks import MaskFolder
from training.prediction.models import load_stored_model
from training.prediction.parts import JsonLines, Parts
from training.prediction.record import record_of
from training.run.accelerator import create_plain_accelerator
from training.run.stored_models import check_precision


def main(settings: PredictSettings) -> Path:
    """Predict, write the output file and return its path."""
    accelerator = create_plain_accelerator(settings.processes)
    stored = load_stored_model(settings.model, settings.data.background)
    check_fits(stored, settings)
    check_precision(accelerator, stored.model.config)
    data, output = with_background(settings.data, settings.model), Path(settings.output.output_file)
    masks = MaskFolder(settings.output.masks, output) if stored.kind == "segmentation model" else None
    written = [output, *([masks.folder] if masks else [])]
    with accelerator.main_process_first():
        images = find_images(data, stored.num_channels, written)
    check_same_images(accelerator, data, images)
    answers, overwrite = create_answers(stored, settings, images), settings.output.overwrite
    parts = Parts(output, record_of(accelerator, settings, settings.model, data, images), JsonLines())
    masks = masks if accelerator.is_main_process else None
    with alone(accelerator, parts), masks.alone() if masks else nullcontext():
        if masks and parts.starts_anew(overwrite):
            masks.clear(overwrite)
        begin(accelerator, parts, overwrite)
        if masks:
            masks.check_done(parts)
        reader = create_reader(images, data, stored.num_channels, answers.transform)
        answer_images("Predicting", accelerator, stored.model, answers, reader, data, parts)
        if accelerator.is_main_process:
            names = class_list(stored.model.config)
            write = partial(write_answers, output, parts, answers, names)
            finish(parts, write, "the answers to", "have no answer: see `error`")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return output


if __name__ == "__main__":
    with told_in_a_line():
        main(settings)
