"""Write the features of images to a file, for a search index or for models of your own.

    accelerate launch training/embed.py --model_name_or_path out/pretrain \\
        --dataset_name path/to/images --output_file out/features.parquet
    accelerate launch training/embed.py --model_name_or_path out/classifier --pooling mean gem --stages 3 4 \\
        --normalize true --dataset_name 'photos/**/*.jpg' --output_file out/features.npy
    accelerate launch training/embed.py --model_name_or_path out/pretrain --pooling none --dtype float16 \\
        --dataset_name path/to/images --output_file out/maps.parquet
"""

import sys

from training.console.errors import told_in_a_line
from training.settings.command_line import parse_settings
from training.settings.embedding import NPY, EmbedSettings, files_beside

if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong setting at once
    settings = parse_settings(EmbedSettings, sys.argv[1:], __doc__)

from functools import partial
from pathlib import Path
from typing import Any

from conversion.model_folder import weight_digests
from training.models.creation import with_background
from training.prediction.batches import create_reader
from training.prediction.encoders import load_encoder, values_of
from training.prediction.feature_files import FeatureTables, write_features
from training.prediction.features import FeatureAnswers
from training.prediction.images import check_same_images, find_images
from training.prediction.loop import alone, answer_images, begin, finish
from training.prediction.parts import Parts
from training.prediction.record import record_of
from training.run.accelerator import create_plain_accelerator


def main(settings: EmbedSettings) -> Path:
    """Compute the features, write the output file and return its path."""
    accelerator = create_plain_accelerator(settings.processes)
    encoder = load_encoder(settings.model, settings.data.background)
    features = FeatureAnswers(encoder, settings.features)
    data, output = with_background(settings.data, settings.model), Path(settings.output.output_file)
    with accelerator.main_process_first():
        images = find_images(data, encoder.num_channels, [output])
    check_same_images(accelerator, data, images)
    about = about_features(settings, features, data.background, encoder.num_channels)
    if accelerator.is_main_process:  # which writes them
        about["weights"] = weight_digests(Path(settings.model.model_name_or_path or ""))
        about["image_processor"] = values_of(encoder.processor)
        about["images"] = images.sample()
    tables = FeatureTables(features.shapes, settings.features.dtype, about)
    parts = Parts(output, record_of(accelerator, settings, settings.model, data, images), tables)
    with alone(accelerator, parts):
        begin(accelerator, parts, settings.output.overwrite)
        reader = create_reader(images, data, encoder.num_channels, features.transform)
        answer_images("Embedding", accelerator, encoder.model, features, reader, data, parts)
        if accelerator.is_main_process:
            errors = files_beside(output)["errors"] if output.suffix == NPY else "`error`"
            finish(parts, partial(write_features, output, parts, tables), "the features of", f"have none: see {errors}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return output


def about_features(
    settings: EmbedSettings, features: FeatureAnswers, background: str | None, num_channels: int
) -> dict[str, Any]:
    """All that is needed to compute the same features of another image."""
    return {
        "model": vars(settings.model),
        "features": {**vars(settings.features), "stages": features.stages},
        "background": background,
        "num_channels": num_channels,
    }


if __name__ == "__main__":
    with told_in_a_line():
        main(settings)
