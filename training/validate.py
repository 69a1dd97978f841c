"""Evaluating a ConvNeXt V2 classifier, ours or stock Transformers', or the frozen features of any ConvNeXt V2.

    accelerate launch training/validate.py --model_name_or_path out/classifier \\
        --dataset_name path/to/images
    accelerate launch training/validate.py --model_name_or_path out/pretrain --protocols knn linear_probe \\
        --dataset_name path/to/images --train_split train --eval_split test
    accelerate launch training/validate.py --model_name_or_path facebook/convnextv2-tiny-1k-224 \\
        --dataset_name ILSVRC/imagenet-1k --eval_split validation --streaming true
"""

import sys

from training.run.errors import told_in_a_line
from training.settings.command_line import parse_config
from training.settings.config import ValidateConfig, check

if __name__ == "__main__":  # before the imports below, which take seconds: a wrong setting is told at once
    parse_config(ValidateConfig, sys.argv[1:], __doc__)

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
from training.data.labels import check_labels, class_list, labelled_samples, resolve_labels
from training.data.samples import eval_loader, load_images
from training.data.splits import with_eval_split
from training.data.transforms import EvaluationTransform
from training.evaluation.features import extract_features, knn_scores, linear_probe_scores, top_accuracies
from training.evaluation.metrics import Evaluator, in_words
from training.evaluation.per_class import save_class_figures, table_in_words
from training.evaluation.published import comparison, intervals, known_checkpoint
from training.models.creation import create_processor, with_background
from training.models.loading import FEATURES, NOTHING, Expected, load_pretrained, model_named
from training.run.checkpoints import averaged_weights
from training.run.progress import keep_bars_to_terminals


def main(config: ValidateConfig) -> dict[str, Any]:
    """Evaluate by the protocols asked for; print the figures and return them."""
    keep_bars_to_terminals()
    waiting = InitProcessGroupKwargs(timeout=timedelta(seconds=config.ddp_timeout))
    accelerator = Accelerator(mixed_precision=config.mixed_precision, kwargs_handlers=[waiting])
    config = with_background(with_eval_split(config))
    results: dict[str, Any] = {}
    evaluator, names = Evaluator(config.metrics), []
    if "classifier" in config.protocols:
        results, names = classify(accelerator, config, evaluator)
    if set(config.protocols) != {"classifier"}:
        results |= evaluate_features(accelerator, config)
    if accelerator.is_main_process:
        print(json.dumps(results, indent=2))
        if evaluator.answers is not None:
            print(table_in_words(evaluator.answers, names))
            print(comparison(results, known_checkpoint(config.model_name_or_path or "")))
            print(in_words(results), flush=True)
        if config.output_dir is not None:
            Path(config.output_dir).mkdir(parents=True, exist_ok=True)
            write_json(Path(config.output_dir) / "eval_results.json", results)
            if evaluator.answers is not None:
                save_class_figures(Path(config.output_dir), evaluator.answers, names)
    accelerator.end_training()
    return results


def classify(
    accelerator: Accelerator, config: ValidateConfig, evaluator: Evaluator
) -> tuple[dict[str, Any], list[str]]:
    """Accuracies of a classifier, with their intervals, and the names of its classes."""
    model = load_classifier(config)
    assert config.eval_split is not None
    with accelerator.main_process_first():
        source = load_images(config, config.eval_split, config.max_eval_samples, model.config.num_channels)
    check_labels(source, config.label_column, class_list(model.config))
    samples = labelled_samples(config, source, model.config, EvaluationTransform(load_processor(config, model)))
    loader = eval_loader(source, samples, config)
    prepared, loader = accelerator.prepare(model, loader)
    results: dict[str, Any] = evaluator(accelerator, prepared, loader)
    return results | intervals(results), class_list(model.config)


def evaluate_features(accelerator: Accelerator, config: ValidateConfig) -> dict[str, Any]:
    """Accuracies of k nearest neighbours and of a linear probe, which know `train_split` by frozen features."""
    model = load_weights(ConvNextV2Model, config, FEATURES)
    processor = load_processor(config, model)
    assert config.eval_split is not None
    with accelerator.main_process_first():
        splits = ((config.train_split, config.max_train_samples), (config.eval_split, config.max_eval_samples))
        sources = [load_images(config, name, most, model.config.num_channels) for name, most in splits]
    names = resolve_labels(sources[0], config.label_column, None)
    model.config.id2label = dict(enumerate(names))
    prepared = accelerator.prepare(model)
    extracted = []
    for source in sources:
        check_labels(source, config.label_column, names)
        samples = labelled_samples(config, source, model.config, EvaluationTransform(processor))
        loader = accelerator.prepare(eval_loader(source, samples, config))
        extracted.append(extract_features(accelerator, prepared, loader))
    (train, train_labels), (queries, labels) = extracted
    results: dict[str, Any] = {"train_samples": len(train), "eval_samples": len(queries)}
    if "knn" in config.protocols:
        settings = config.knn_neighbors, config.knn_temperature
        scores = knn_scores(train, train_labels, queries, len(names), *settings)
        results |= {f"eval_knn_{name}": value for name, value in top_accuracies(scores, labels).items()}
    if "linear_probe" in config.protocols:
        settings = config.linear_probe_strength, config.seed
        scores = linear_probe_scores(train, train_labels, queries, len(names), *settings)
        results |= {f"eval_linear_probe_{name}": value for name, value in top_accuracies(scores, labels).items()}
    return results


def load_classifier(config: ValidateConfig) -> ConvNextV2ForImageClassification:
    """The classifier of a folder or Hub id; a model without a trained head is an error."""
    name = config.model_name_or_path or ""
    with model_named(name):
        stored = AutoConfig.from_pretrained(name, revision=config.model_revision).architectures or []
    is_classifier = any(architecture.endswith("ForImageClassification") for architecture in stored)
    check("model_name_or_path", name, is_classifier, f"hold an image classifier, not {', '.join(stored)}")
    return load_weights(ConvNextV2ForImageClassification, config, NOTHING)


def load_weights(model_class: Any, config: ValidateConfig, expected: Expected) -> Any:
    """A model of the class, with the weights of the folder or Hub id."""
    name = config.model_name_or_path or ""
    arguments: dict[str, Any] = {"dtype": torch.float32}
    if config.use_ema:
        stored = {"state_dict": averaged_weights(Path(name)), "config": AutoConfig.from_pretrained(name)}
        model = load_pretrained(model_class, None, expected, **stored, **arguments)
        if config.num_channels:  # `from_pretrained` adapts what it reads from a folder alone
            model.set_num_channels(config.num_channels)
        return model
    if config.num_channels:
        arguments["num_channels"] = config.num_channels
    return load_pretrained(model_class, name, expected, revision=config.model_revision, **arguments)


def load_processor(config: ValidateConfig, model: Any) -> Any:
    """The image processor saved with the model, or one for the settings that differ from it.

    For the official repositories: resize and crop of the table that their reference accuracies were measured with.
    """
    checkpoint = find_repository(config.model_name_or_path or "")
    if checkpoint is not None:
        model.config.image_size = config.image_size or checkpoint.image_size
        return create_processor(config, model.config)
    if (config.image_size, config.num_channels, config.image_mean, config.image_std) == (None,) * 4:
        return AutoImageProcessor.from_pretrained(config.model_name_or_path, revision=config.model_revision)
    model.config.image_size = config.image_size or model.config.image_size
    return create_processor(config, model.config)


if __name__ == "__main__":
    with told_in_a_line():
        main(parse_config(ValidateConfig, sys.argv[1:], __doc__))
