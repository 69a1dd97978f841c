"""Evaluates a stored segmentation model on images with masks."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from training.data.folders.masks import NAMES, names_in
from training.data.labels import class_list, unnamed_classes
from training.data.samples import eval_loader
from training.data.segmentation.masks import MaskReader, ignored_label, mask_reader
from training.data.segmentation.pairs import load_pairs, segmentation_samples
from training.data.sources import Source
from training.data.transforms import PairEvaluationTransform
from training.evaluation.loop import prepare_lists
from training.evaluation.outcome import Outcome
from training.evaluation.published import segmentation_comparison
from training.evaluation.segmentation import NO_PIXEL, SegmentationEvaluator, collate_pairs
from training.evaluation.segmentation_figures import save_figures, table_in_words
from training.settings.checks import check
from training.settings.data import MaskedDataSettings, MaskSettings
from training.settings.evaluation import SegmentPredictionSettings

# The settings of how the numbers in masks are read, and their defaults.
USUAL = {
    field.name: field.default
    for field in fields(MaskSettings)
    if field.name in ("ignore_index", "reduce_labels", "mask_values")
}


def evaluate_segmentation(
    accelerator: Accelerator,
    model: PreTrainedModel,
    processor: Any,
    data: MaskedDataSettings,
    prediction: SegmentPredictionSettings,
) -> Outcome:
    """Mean IoU and accuracies on `eval_split`, at the images' original sizes, and the figures of each class."""
    config: Any = model.config
    data = read_as_in_training(accelerator, data, config)
    names, num_channels = class_list(config), config.backbone_config.num_channels
    check_names(data, names)
    assert data.eval_split is not None
    with accelerator.main_process_first():
        source = load_pairs(data, data.eval_split, data.max_eval_samples, num_channels, names)
    check_prediction(prediction, config.backbone_config, processor)
    ignored = ignored_label(len(names))
    evaluator = SegmentationEvaluator(len(names), ignored, prediction)
    reader = mask_reader(data, len(names), ignored)
    loader: Any = segmentation_loader(accelerator, data, source, num_channels, reader, processor)
    results = evaluator(accelerator, accelerator.prepare(model), loader)
    if evaluator.confusion is None:
        return Outcome(results, NO_PIXEL, lambda folder: None)
    parts = [table_in_words(evaluator.confusion, names), segmentation_comparison(results, config, prediction)]
    report = "\n".join(filter(None, [*parts, evaluator.in_words(results)]))
    return Outcome(results, report, lambda folder: save_figures(folder, evaluator, names, processor))


def keep_mask_settings(model: PreTrainedModel, data: MaskedDataSettings) -> None:
    """Store with the model how its masks are read, if that is not the usual way."""
    said = {name: getattr(data, name) for name in USUAL}
    if said != USUAL:
        model.config.mask_settings = said


def read_as_in_training(accelerator: Accelerator, data: MaskedDataSettings, config: Any) -> MaskedDataSettings:
    """Settings that read masks as the model's training did, unless they say something about it themselves."""
    stored = getattr(config, "mask_settings", None)
    if stored is None or any(getattr(data, name) != usual for name, usual in USUAL.items()):
        return data
    unusual = ", ".join(f"`{name}` (={value})" for name, value in stored.items() if value != USUAL[name])
    accelerator.print(f"The masks are read as in the training of the model, with {unusual}.", flush=True)
    return replace(data, **stored)


def segmentation_loader(
    accelerator: Accelerator,
    data: MaskedDataSettings,
    source: Source | None,
    num_channels: int,
    reader: MaskReader,
    processor: Any,
) -> DataLoader[Any] | None:
    """Batches of the images to evaluate on, for this process, if there are any."""
    if source is None:
        return None
    samples = segmentation_samples(data, source, num_channels, reader, PairEvaluationTransform(processor))
    return prepare_lists(accelerator, eval_loader(source, samples, data, collate_pairs))


def check_prediction(prediction: SegmentPredictionSettings, encoder: Any, processor: Any) -> None:
    """Raise if windows, or the images that the processor makes at the least scale, are smaller than the stride."""
    image_size = min(side for side in dict(processor.size).values() if side)
    stride, least = max(encoder.last_strides), min(prediction.eval_scales)
    window, rule = prediction.eval_window, f"be at least {stride} pixels, the stride of the encoder"
    check("eval_window", window, window is None or window >= stride, rule)
    rule = f"leave images of {image_size} pixels at least {stride}"
    check("eval_scales", least, int(least * image_size) >= stride, rule)


def check_names(data: MaskedDataSettings, names: Sequence[str]) -> None:
    """Raise if a folder names other classes than the model, unless the model's classes have no names of their own."""
    stated = names_in(data.dataset_name)
    unnamed = unnamed_classes(len(names))
    rule = f"name the {len(names)} classes of the model, in their order: {', '.join(names[:8])}"
    fits = stated is None or stated == list(names) or (list(names) == unnamed and len(stated) == len(names))
    check(NAMES, Path(data.dataset_name) / NAMES, fits, f"{rule}{', ...' if len(names) > 8 else ''}")
