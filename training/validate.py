"""Evaluate a classifier, a segmentation model, a detector, or the frozen features of any encoder.

    accelerate launch training/validate.py --model_name_or_path out/classifier \\
        --dataset_name path/to/images
    accelerate launch training/validate.py --model_name_or_path out/pretrain --protocols knn linear_probe \\
        --dataset_name path/to/images --train_split train --eval_split test
    accelerate launch training/validate.py --model_name_or_path out/segmenter --dataset_name path/to/masked
    accelerate launch training/validate.py --model_name_or_path out/detector --dataset_name path/to/objects
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
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import AutoConfig, AutoModelForObjectDetection

from conversion.detectors import DETECTORS
from conversion.files import write_json
from conversion.segmenters import convnextv2_supported
from training.data.labels import check_labels, class_list, resolve_labels
from training.data.problem_type import problem_type_of
from training.data.problems import Problem, check_problem, labelled_samples, problem_of
from training.data.samples import eval_loader, load_images
from training.data.splits import with_eval_split
from training.data.transforms import EvaluationTransform
from training.evaluation.detection_protocol import evaluate_detection
from training.evaluation.evaluators import create_evaluator
from training.evaluation.features import extract_features, knn_scores, linear_probe_scores, top_accuracies
from training.evaluation.outcome import Outcome
from training.evaluation.published import comparison, intervals, known_checkpoint
from training.evaluation.segmentation_protocol import evaluate_segmentation
from training.evaluation.whitening import whitened
from training.models.creation import with_background
from training.models.detection import create_detection_processor
from training.models.families import chosen_family
from training.models.loading import FEATURES, model_named
from training.models.segmentation import SEGMENTERS, create_segmentation_processor
from training.prediction.pooling import PooledMaps
from training.run.accelerator import create_plain_accelerator
from training.run.stored_models import (
    check_precision,
    load_classifier,
    load_dense_processor,
    load_processor,
    load_weights,
    load_with_backbone,
)
from training.settings.checks import check
from training.settings.data import EvaluatedDataSettings, MaskedDataSettings, ObjectsDataSettings
from training.settings.evaluation import FITTED, PROTOCOLS
from training.settings.labels import SINGLE_LABEL


def main(settings: ValidateSettings) -> dict[str, Any]:
    """Evaluate with the requested protocols, print the results and return them."""
    accelerator = create_plain_accelerator(settings.processes)
    protocols = choose_protocols(settings)
    data = with_background(with_eval_split(settings.data, protocols), settings.model)
    settings = settings.replace(protocols=protocols, eval_split=data.eval_split, background=data.background)
    evaluations = dict.fromkeys(EVALUATIONS[protocol] for protocol in PROTOCOLS if protocol in protocols)
    outcomes = [evaluate(accelerator, settings) for evaluate in evaluations]
    results = {name: value for outcome in outcomes for name, value in outcome.results.items()}
    if accelerator.is_main_process:
        print(
            "\n".join([json.dumps(results, indent=2), *(each.report for each in outcomes if each.report)]), flush=True
        )
        if settings.evaluation.output_dir is not None:
            save_results(Path(settings.evaluation.output_dir), results, outcomes)
    accelerator.end_training()
    return results


def choose_protocols(settings: ValidateSettings) -> list[str]:
    """The protocols that are asked for, else the one that fits the model; raises if they do not fit."""
    name = settings.model.model_name_or_path or ""
    with model_named(name), convnextv2_supported():
        revision = settings.model.model_revision
        kind = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False).model_type
    fitting = ["classifier", *FITTED]
    for protocol, types in (("segmentation", SEGMENTERS), ("detection", DETECTORS)):
        fitting = [protocol] if kind in types else fitting
    chosen = settings.evaluation.protocols or fitting[:1]
    check("protocols", chosen, set(chosen) <= set(fitting), f"be {' or '.join(fitting)} for {name}, a model of {kind}")
    return chosen


def save_results(folder: Path, results: dict[str, Any], outcomes: list[Outcome]) -> None:
    """Write eval_results.json and the files of each protocol."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "eval_results.json", results)
    for outcome in outcomes:
        outcome.save(folder)


def classify(accelerator: Accelerator, settings: ValidateSettings) -> Outcome:
    """The figures of a classifier, with intervals of accuracies, and those of each class or value."""
    data, metrics = settings.data, settings.evaluation.metrics
    model = load_classifier(settings.model, settings.evaluation.use_ema)
    problem = Problem(problem_of(model.config), class_list(model.config))
    is_single = problem.type == SINGLE_LABEL
    check("metrics", metrics, is_single or not metrics, f"not be given for {problem.type}, which has its own")
    check_precision(accelerator, model.config)
    evaluator = create_evaluator(problem, metrics)
    assert data.eval_split is not None
    with accelerator.main_process_first():
        source = load_images(data, data.eval_split, data.max_eval_samples, model.config.num_channels)
    check_problem(data, source, model.config, data.eval_split)
    processor = load_processor(settings.model, data.background, model)
    samples = labelled_samples(data, source, model.config, EvaluationTransform(processor))
    loader = eval_loader(source, samples, data)
    prepared, loader = accelerator.prepare(model, loader)
    results = evaluator(accelerator, prepared, loader)
    known = known_checkpoint(settings.model.model_name_or_path or "")
    published = [comparison(results, known)] if is_single else []
    report = "\n".join([evaluator.report(), *published, evaluator.in_words(results)])
    return Outcome(results | intervals(results), report, evaluator.save)


def segment(accelerator: Accelerator, settings: ValidateSettings) -> Outcome:
    """Mean IoU and accuracies of a segmentation model, and the figures of each class."""
    model = load_with_backbone(
        settings.model, settings.evaluation.use_ema, lambda config: SEGMENTERS[config.model_type]
    )
    processor = load_dense_processor(settings.model, settings.data.background, model, create_segmentation_processor)
    data = MaskedDataSettings(**shared_settings(settings), **vars(settings.masks))
    return evaluate_segmentation(accelerator, model, processor, data, settings.prediction)


def detect(accelerator: Accelerator, settings: ValidateSettings) -> Outcome:
    """COCO's average precision of a detector, and the figures of each class."""
    classes = AutoModelForObjectDetection._model_mapping
    model = load_with_backbone(settings.model, settings.evaluation.use_ema, lambda config: classes[type(config)])
    processor = load_dense_processor(settings.model, settings.data.background, model, create_detection_processor)
    data = ObjectsDataSettings(**shared_settings(settings), **vars(settings.objects))
    return evaluate_detection(accelerator, model, processor, data, settings.shown)


def shared_settings(settings: ValidateSettings) -> dict[str, Any]:
    """The settings of the images that all protocols have."""
    return {field.name: getattr(settings.data, field.name) for field in fields(EvaluatedDataSettings)}


def evaluate_features(accelerator: Accelerator, settings: ValidateSettings) -> Outcome:
    """Accuracies of k nearest neighbours and of a linear probe, fitted on the frozen features of `train_split`."""
    data, protocols = settings.data, settings.evaluation
    model = load_weights(chosen_family(settings.model).model, settings.model, protocols.use_ema, FEATURES)
    processor = load_processor(settings.model, data.background, model)
    assert data.eval_split is not None
    with accelerator.main_process_first():
        splits = ((data.train_split, data.max_train_samples), (data.eval_split, data.max_eval_samples))
        sources = [load_images(data, name, most, model.config.num_channels) for name, most in splits]
    column = data.one_label_column()
    problem_type_of(sources[0], [column], SINGLE_LABEL)
    names = resolve_labels(sources[0], column, None)
    model.config.id2label, model.config.problem_type = dict(enumerate(names)), SINGLE_LABEL
    reading, prepared = settings.reading, accelerator.prepare(model)
    read = PooledMaps(reading, len(model.encoder.stages))
    extracted = []
    for source in sources:
        check_labels(source, column, names)
        samples = labelled_samples(data, source, model.config, EvaluationTransform(processor))
        loader = accelerator.prepare(eval_loader(source, samples, data))
        extracted.append(extract_features(accelerator, prepared, loader, read))
    splits = whitened(dict(zip(("train", "test"), extracted, strict=True)), reading.whitened_components)
    (train, train_labels), (queries, labels) = splits.values()
    known = (train, train_labels, queries, len(names))
    results: dict[str, Any] = {"train_samples": len(train), "eval_samples": len(queries)}
    asked = protocols.protocols or ()
    if "knn" in asked:
        scores = knn_scores(*known, protocols.knn_neighbors, protocols.knn_temperature)
        results |= {f"eval_knn_{name}": value for name, value in top_accuracies(scores, labels).items()}
    if "linear_probe" in asked:
        scores = linear_probe_scores(*known, protocols.linear_probe_strength, data.seed)
        results |= {f"eval_linear_probe_{name}": value for name, value in top_accuracies(scores, labels).items()}
    return Outcome(results)


EVALUATIONS = {
    "classifier": classify,
    "knn": evaluate_features,
    "linear_probe": evaluate_features,
    "segmentation": segment,
    "detection": detect,
}


if __name__ == "__main__":
    with told_in_a_line():
        main(settings)
