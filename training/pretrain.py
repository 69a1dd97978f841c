"""Masked pre-training on unlabelled images: FCMAE of ConvNeXt V2 (paper, section 3 and Table 8), or ConvMAE.

    accelerate launch training/pretrain.py --config training/recipes/pretrain_small_images.yaml \\
        --dataset_name path/to/images --output_dir out/pretrain
"""

import sys

from training.console.errors import told_in_a_line
from training.settings.command_line import parse_settings
from training.settings.scripts import PretrainSettings

if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong setting at once
    settings = parse_settings(PretrainSettings, sys.argv[1:], __doc__)

import math
from functools import partial
from typing import Any

from hf_convnextv2.masking import complementary_set_sizes, count_visible
from training.data.samples import Collator, CropsCollator, Samples, first_samples, load_mixture, make_samples
from training.data.sources import Source, num_examples
from training.data.transforms import enough_for_crops, pretraining_transform
from training.models.creation import create_processor, image_size_of, load_arguments, with_background
from training.models.families import PreTrainingModel, chosen_family
from training.models.loading import PRETRAINING, load_pretrained, model_named
from training.models.optimizer import decayed_parameters
from training.models.sigreg import PARTS, Regularizer
from training.models.teachers import FrozenTeacher, Targets, create_average_teacher
from training.run.monitor import Monitor
from training.run.training_run import TrainingRun
from training.settings.augmentation import PretrainAugmentationSettings
from training.settings.checks import check
from training.settings.data import PretrainDataSettings
from training.settings.families import check_family
from training.settings.masked_autoencoder import MaskedAutoencoderSettings, TargetSettings
from training.settings.model import TrainedModelSettings
from training.settings.regularizer import RegularizerSettings

AUTOENCODER_SETTINGS = ("mask_ratio", "norm_pix_loss", "num_visible_sets", "cell_size", "fusion_stages")
AUTOENCODER_SETTINGS += ("decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads")
TARGET_SETTINGS = ("target_type", "feature_target_on", "feature_loss", "feature_loss_weight")
LOSS_PARTS = ("pixel_loss", "feature_loss")
NUM_RECONSTRUCTIONS = 8  # images
NUM_PICTURES = 20  # pictures of reconstructions in a run, at most


def main(settings: PretrainSettings) -> None:
    """Pre-train: model, data, plan, teacher, loop, save."""
    with TrainingRun(settings) as run:
        frozen = create_frozen_teacher(settings.targets)
        model = create_model(settings.model, settings.autoencoder, settings.targets, frozen)
        data = with_background(settings.data, settings.model)
        processor = create_processor(settings.model, data.background, model.config)
        with run.main_process_first():
            sources = load_mixture(data, model.config.num_channels)
        samples = create_samples(data, settings.augmentation, sources[0], model, processor)

        known_samples = num_examples(sources, data.train_split, data.max_train_samples)
        num_crops, images = settings.augmentation.num_crops, settings.data.per_device_train_batch_size
        plan = run.make_plan(known_samples, model.config.num_visible_sets * num_crops)
        teacher = frozen or create_average_teacher(model, settings.targets, plan.max_steps, run.accelerator)
        targets = Targets(teacher, run.accelerator, model.config, settings.targets, processor)
        decayed = decayed_parameters(model, settings.optimizer.decay_grn_and_mask_token)
        run.prepare(model, processor, decayed, teacher=teacher)
        regularizer = Regularizer(settings.regularizer, run.accelerator, settings.data.seed)
        parts = loss_parts(model.config.target_type, settings.regularizer)
        collate = Collator() if num_crops == 1 else CropsCollator()
        run.begin(data, sources, samples, collate, data.mixture_weights or [1], loss_parts=parts)
        shown = partial(first_samples, sources[0], samples, data, NUM_RECONSTRUCTIONS)
        monitor = Monitor(run.accelerator, model, shown, processor)
        if not run.is_dry:
            monitor.read()

        interval = settings.autoencoder.reconstruction_steps or math.ceil(plan.max_steps / NUM_PICTURES)
        for step in run.steps():
            for batch in run.batches():
                outputs = run.model(**targets(batch), **regularizer.asked)
                run.backward(*regularizer(outputs, images, step))
            run.update()
            if run.is_due(interval):
                run.write(partial(monitor, run.folder, step))

        final = run.final_model(type(model))
        run.finish(final, {}, lambda folder: monitor.save_picture(final, folder / "reconstructions.png"))
        run.say(f"Pre-trained model in {run.folder}")


def loss_parts(target_type: str, settings: RegularizerSettings) -> list[str]:
    """The parts of the loss that are logged, if it has several."""
    of_targets = [part for part in LOSS_PARTS if part.removesuffix("_loss") in target_type.split("+")]
    found = [*of_targets, *(PARTS if settings.is_on else ())]
    return found if len(found) > 1 else []


def create_frozen_teacher(settings: TargetSettings) -> FrozenTeacher | None:
    """The frozen model whose features are predicted, if the settings name one."""
    name = settings.teacher_name_or_path
    return None if name is None else FrozenTeacher(name, settings.feature_target_layers, settings.teacher_revision)


def create_model(
    settings: TrainedModelSettings,
    autoencoder: MaskedAutoencoderSettings,
    targets: TargetSettings,
    teacher: FrozenTeacher | None = None,
) -> PreTrainingModel:
    """A new model of the named size, or one with stored weights for the encoder (and the decoder, if stored)."""
    family = chosen_family(settings)
    check_family(autoencoder, family.name)
    arguments: dict[str, Any] = {
        "feature_target_dim": teacher.num_channels(settings.image_size) if teacher is not None else None
    }
    for owner, names in ((autoencoder, AUTOENCODER_SETTINGS), (targets, TARGET_SETTINGS)):
        arguments |= {name: getattr(owner, name) for name in names if getattr(owner, name) is not None}
    if settings.model_name_or_path is None:
        config = family.pretraining_config.from_size(settings.model_size, **load_arguments(settings), **arguments)
        model = family.pretraining(config)
    else:
        name = settings.model_name_or_path
        with model_named(name):
            stored = family.pretraining_config.from_pretrained(name, revision=settings.model_revision or "main")
        check_decoder_heads(stored, autoencoder)
        arguments |= start_of_features(stored, name, targets, arguments["feature_target_dim"])
        model = load_pretrained(family.pretraining, name, PRETRAINING, **load_arguments(settings), **arguments)
    if targets.target_type is None and model.config.target_type == "pixel":
        for name in ("feature_target_on", "feature_loss", "feature_loss_weight"):
            check(name, getattr(targets, name), getattr(targets, name) is None, "come with `target_type`")
    num_cells(model)  # raise for an image size that does not fit before reading images
    if settings.activation_checkpointing:
        model.activation_checkpointing_enable()
    return model


def check_decoder_heads(stored: Any, autoencoder: MaskedAutoencoderSettings) -> None:
    """Raise if a stored decoder, whose weights fit any number of attention heads, was trained with another one."""
    name = "decoder_num_attention_heads"
    asked, trained = getattr(autoencoder, name), getattr(stored, name, None)
    has_decoder = any(architecture.endswith("ForPreTraining") for architecture in stored.architectures or [])
    check(name, asked, asked in (None, trained) or not has_decoder, f"be {trained}, as the stored decoder was trained")


def start_of_features(stored: Any, name: str, targets: TargetSettings, num_channels: int | None) -> dict[str, Any]:
    """Arguments for loading a model. If it has learned another teacher's features, its feature head starts anew.

    stored: its configuration.
    """
    said = targets.target_type is not None or stored.target_type == "pixel"
    rule = f"be given to go on from {name}, which predicts features of a teacher that is not in it"
    check("target_type", None, said, rule)
    if "pixel" in (targets.target_type, stored.target_type):
        return {}
    same = stored.feature_target_dim == (num_channels or stored.hidden_sizes[-1])
    same = same and targets.feature_target_on in (None, stored.feature_target_on)
    return {} if same else {"ignore_mismatched_sizes": True}


def num_cells(model: PreTrainingModel) -> int:
    """The number of cells of an image.

    Raises an error unless the cells fill the image exactly and the mask leaves visible and hidden cells, or, with
    several visible sets, at least one cell for each set.
    """
    size = image_size_of(model.config)
    cell: int = model.config.cell_size  # type: ignore[assignment]
    rule = f"be a multiple of {cell}, the size of a cell"
    check("image_size", size, size >= cell and size % cell == 0, rule)
    cells = (size // cell) ** 2
    assert model.config.mask_ratio is not None
    if model.config.num_visible_sets > 1:
        complementary_set_sizes(cells, model.config.num_visible_sets)
    else:
        count_visible(cells, model.config.mask_ratio)
    return cells


def create_samples(
    data: PretrainDataSettings,
    augmentation: PretrainAugmentationSettings,
    source: Source,
    model: PreTrainingModel,
    processor: Any,
) -> Samples:
    """The transform from rows of the sources to images with noise for their masks."""
    size = image_size_of(model.config)
    transform, enough = pretraining_transform(augmentation, size, processor), enough_for_crops(augmentation, size)
    fields: dict[str, Any] = {"num_cells": num_cells(model), "num_crops": augmentation.num_crops, "enough": enough}
    return make_samples(data, source, model.config.num_channels, transform, **fields)


if __name__ == "__main__":
    with told_in_a_line():
        main(settings)
