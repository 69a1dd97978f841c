"""Evaluate a ConvNeXt V2 classifier, or the frozen features of any ConvNeXt V2 model.

    accelerate launch training/validate.py --model_name_or_path out/classifier \\
        --dataset_name path/to/images
    accelerate launch training/validate.py --model_name_or_path out/pretrain --protocols knn linear_probe \\
        --dataset_name path/to/images --train_split train --eval_split test
    accelerate launch training/validate.py --model_name_or_path facebook/convnextv2-tiny-1k-224 \\
        --dataset_name ILSVRC/imagenet-1k --eval_split validation --streaming true
"""

import sys

from training.console.errors import told_in_a_line
from training.settings.command_line import parse_settings
from training.settings.scripts import ValidateSettings

if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong setting at once
    settings = parse_settings(ValidateSettings, sys.argv[1:], __doc__)

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from transformers import AutoConfig, AutoImageProcessor

from conversion.checkpoints import find_repository
from conversion.files import write_json
from hf_convnextv2 import ConvNextV2ForImageClassification, ConvNextV2Model
from training.console.bars import keep_bars_to_terminals
from training.data.labels import check_labels, class_list, labelled_samples, resolve_labels
from training.data.samples import eval_loader, load_images
from training.data.splits import with_eval_split
from training.data.transforms import EvaluationTransform
from training.evaluation.features import extract_features, knn_scores, linear_probe_scores, top_accuracies
from training.evaluation.metrics import Evaluator, in_words
from training.evaluation.per_class import Answers, save_class_figures, table_in_words
from training.evaluation.published import comparison, intervals, known_checkpoint
from training.models.creation import create_processor, with_background
from training.models.loading import FEATURES, NOTHING, Expected, load_pretrained, model_named
from training.run.checkpoints import averaged_weights
from training.settings.checks import check
from training.settings.data import ValidateDataSettings
from training.settings.evaluation import ProtocolSettings
from training.settings.model import ModelSettings


def main(settings: ValidateSettings) -> dict[str, Any]:
    """Evaluate with the requested protocols, print the results and return them."""
    keep_bars_to_terminals()
    waiting = InitProcessGroupKwargs(timeout=timedelta(seconds=settings.processes.ddp_timeout))
    accelerator = Accelerator(mixed_precision=settings.processes.mixed_precision, kwargs_handlers=[waiting])
    protocols, model = settings.evaluation, settings.model
    data = with_background(with_eval_split(settings.data, protocols.protocols), model)
    results: dict[str, Any] = {}
    evaluator, names = Evaluator(protocols.metrics), []
    if "classifier" in protocols.protocols:
        results, names = classify(accelerator, data, model, protocols.use_ema, evaluator)
    if set(protocols.protocols) != {"classifier"}:
        results |= evaluate_features(accelerator, data, model, protocols)
    if accelerator.is_main_process:
        print(json.dumps(results, indent=2))
        if evaluator.answers is not None:
            print(table_in_words(evaluator.answers, names))
            print(comparison(results, known_checkpoint(model.model_name_or_path or "")))
            print(in_words(results), flush=True)
        if protocols.output_dir is not None:
            save_results(Path(protocols.output_dir), results, evaluator.answers, names)
    accelerator.end_training()
    return results


def save_results(folder: Path, results: dict[str, Any], answers: Answers | None, names: list[str]) -> None:
    """Write eval_results.json and the results for each class."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "eval_results.json", results)
    if answers is not None:
        save_class_figures(folder, answers, names)


def classify(
    accelerator: Accelerator,
    data: ValidateDataSettings,
    settings: ModelSettings,
    use_ema: bool,
    evaluator: Evaluator,
) -> tuple[dict[str, Any], list[str]]:
    """Accuracies of a classifier, with their intervals, and the names of its classes."""
    model = load_classifier(settings, use_ema)
    assert data.eval_split is not None
    with accelerator.main_process_first():
        source = load_images(data, data.eval_split, data.max_eval_samples, model.config.num_channels)
    check_labels(source, data.label_column, class_list(model.config))
    processor = load_processor(settings, data.background, model)
    samples = labelled_samples(data, source, model.config, EvaluationTransform(processor))
    loader = eval_loader(source, samples, data)
    prepared, loader = accelerator.prepare(model, loader)
    results: dict[str, Any] = evaluator(accelerator, prepared, loader)
    return results | intervals(results), class_list(model.config)


def evaluate_features(
    accelerator: Accelerator, data: ValidateDataSettings, settings: ModelSettings, protocols: ProtocolSettings
) -> dict[str, Any]:
    """Accuracies of k nearest neighbours and of a linear probe, fitted on the frozen features of `train_split`."""
    model = load_weights(ConvNextV2Model, settings, protocols.use_ema, FEATURES)
    processor = load_processor(settings, data.background, model)
    assert data.eval_split is not None
    with accelerator.main_process_first():
        splits = ((data.train_split, data.max_train_samples), (data.eval_split, data.max_eval_samples))
        sources = [load_images(data, name, most, model.config.num_channels) for name, most in splits]
    names = resolve_labels(sources[0], data.label_column, None)
    model.config.id2label = dict(enumerate(names))
    prepared = accelerator.prepare(model)
    extracted = []
    for source in sources:
        check_labels(source, data.label_column, names)
        samples = labelled_samples(data, source, model.config, EvaluationTransform(processor))
        loader = accelerator.prepare(eval_loader(source, samples, data))
        extracted.append(extract_features(accelerator, prepared, loader))
    (train, train_labels), (queries, labels) = extracted
    known = (train, train_labels, queries, len(names))
    results: dict[str, Any] = {"train_samples": len(train), "eval_samples": len(queries)}
    if "knn" in protocols.protocols:
        scores = knn_scores(*known, protocols.knn_neighbors, protocols.knn_temperature)
        results |= {f"eval_knn_{name}": value for name, value in top_accuracies(scores, labels).items()}
    if "linear_probe" in protocols.protocols:
        scores = linear_probe_scores(*known, protocols.linear_probe_strength, data.seed)
        results |= {f"eval_linear_probe_{name}": value for name, value in top_accuracies(scores, labels).items()}
    return results


def load_classifier(settings: ModelSettings, use_ema: bool) -> ConvNextV2ForImageClassification:
    """Load the classifier of a folder or Hub id. Raises an error for a model without a trained head."""
    name = settings.model_name_or_path or ""
    with model_named(name):
        stored = AutoConfig.from_pretrained(name, revision=settings.model_revision).architectures or []
    is_classifier = any(architecture.endswith("ForImageClassification") for architecture in stored)
    check("model_name_or_path", name, is_classifier, f"hold an image classifier, not {', '.join(stored)}")
    return load_weights(ConvNextV2ForImageClassification, settings, use_ema, NOTHING)


def load_weights(model_class: Any, settings: ModelSettings, use_ema: bool, expected: Expected) -> Any:
    """Create a model of the class with the weights of the folder or Hub id."""
    name = settings.model_name_or_path or ""
    arguments: dict[str, Any] = {"dtype": torch.float32}
    if use_ema:
        stored = {"state_dict": averaged_weights(Path(name)), "config": AutoConfig.from_pretrained(name)}
        model = load_pretrained(model_class, None, expected, **stored, **arguments)
        if settings.num_channels:  # `from_pretrained` adapts only weights read from a folder
            model.set_num_channels(settings.num_channels)
        return model
    if settings.num_channels:
        arguments["num_channels"] = settings.num_channels
    return load_pretrained(model_class, name, expected, revision=settings.model_revision, **arguments)


def load_processor(settings: ModelSettings, background: str | None, model: Any) -> Any:
    """The image processor saved with the model, changed where the settings differ from it.

    For the official repositories, it uses the resize and crop with which their reference accuracies were measured.
    """
    name = settings.model_name_or_path or ""
    checkpoint = find_repository(name)
    if checkpoint is not None:
        model.config.image_size = settings.image_size or checkpoint.image_size
        return create_processor(settings, background, model.config)
    if (settings.image_size, settings.num_channels, settings.image_mean, settings.image_std) == (None,) * 4:
        return AutoImageProcessor.from_pretrained(name, revision=settings.model_revision)
    model.config.image_size = settings.image_size or model.config.image_size
    return create_processor(settings, background, model.config)


if __name__ == "__main__":
    with told_in_a_line():
        main(settings)
