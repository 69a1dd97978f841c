"""Evaluating a ConvNeXt V2 classifier, ours or stock Transformers'.

    accelerate launch training/validate.py --model_name_or_path out/classifier \\
        --dataset_name path/to/images --eval_split validation
    accelerate launch training/validate.py --model_name_or_path facebook/convnextv2-tiny-1k-224 \\
        --dataset_name ILSVRC/imagenet-1k --eval_split validation --streaming true
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoImageProcessor

from conversion.checkpoints import find_repository
from conversion.files import write_json
from hf_convnextv2 import ConvNextV2ForImageClassification
from training.augment import EvaluationTransform
from training.command_line import parse_config
from training.config import ValidateConfig, check
from training.data import eval_loader, load_images
from training.labels import check_labels, class_list, labelled_samples
from training.metrics import Evaluator
from training.models import create_processor
from training.reference import comparison, intervals, known_checkpoint


def main(config: ValidateConfig) -> dict[str, Any]:
    """Evaluate: model and its image processor, data, one pass; print the figures and return them."""
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    evaluator = Evaluator(config.metrics)
    model = load_classifier(config)
    with accelerator.main_process_first():
        source = load_images(config, config.eval_split, config.max_eval_samples, model.config.num_channels)
    check_labels(source, config.label_column, class_list(model.config))
    samples = labelled_samples(config, source, model.config, EvaluationTransform(load_processor(config, model)))
    loader = eval_loader(source, samples, config)
    model, loader = accelerator.prepare(model, loader)
    results: dict[str, Any] = evaluator(accelerator, model, loader)
    results |= intervals(results)
    if accelerator.is_main_process:
        print(json.dumps(results, indent=2))
        print(comparison(results, known_checkpoint(config.model_name_or_path or "")))
        if config.output_dir is not None:
            Path(config.output_dir).mkdir(parents=True, exist_ok=True)
            write_json(Path(config.output_dir) / "eval_results.json", results)
    accelerator.end_training()
    return results


def load_classifier(config: ValidateConfig) -> ConvNextV2ForImageClassification:
    """The classifier of a folder or Hub id; a model without a trained head is an error."""
    name = config.model_name_or_path or ""
    stored = AutoConfig.from_pretrained(name, revision=config.model_revision).architectures or []
    is_classifier = any(architecture.endswith("ForImageClassification") for architecture in stored)
    check("model_name_or_path", name, is_classifier, f"hold an image classifier, not {', '.join(stored)}")
    channels: Any = {"num_channels": config.num_channels} if config.num_channels else {}
    return ConvNextV2ForImageClassification.from_pretrained(
        name, revision=config.model_revision, dtype=torch.float32, **channels
    )


def load_processor(config: ValidateConfig, model: ConvNextV2ForImageClassification) -> Any:
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
    main(parse_config(ValidateConfig, sys.argv[1:], __doc__))
