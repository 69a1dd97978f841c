"""What each kind of model says of an image, and how it becomes rows of a table."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from conversion.files import atomic_path
from training.data.detection.transforms import DetectionEvaluationTransform
from training.data.labels import class_list
from training.data.problems import problem_of
from training.data.segmentation.masks import ignored_label
from training.data.transforms import EvaluationTransform
from training.evaluation.average_precision import Detections, encode_masks, to_xywh
from training.evaluation.loop import logits_of
from training.evaluation.segmentation import SegmentationEvaluator
from training.evaluation.segmentation_protocol import check_prediction
from training.models.detection import detect_with
from training.models.families import EncoderConfig
from training.prediction.batches import Batch, Sample
from training.prediction.finite import NanWatch, bad_answer, finite_answer
from training.prediction.images import Images
from training.prediction.label_answers import MultiLabelAnswers, ValueAnswers, check_separable
from training.prediction.loop import Answering
from training.prediction.masks import MaskFolder, MaskNames
from training.prediction.models import StoredModel
from training.prediction.parts import Answer
from training.settings.checks import check
from training.settings.evaluation import SegmentPredictionSettings
from training.settings.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from training.settings.prediction import COCO, TABLES, PredictSettings

TEXT, NUMBER = pa.string(), pa.float64()
CORNERS = ("left", "top", "right", "bottom")


class Answers(Answering, Protocol):
    """How a kind of model answers, and what a table says of it.

    columns: of the table, without `image` and `error`.
    """

    columns: dict[str, pa.DataType]

    def rows(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """The rows of the table on an image that could be read."""
        ...


def check_fits(stored: StoredModel, settings: PredictSettings) -> None:
    """Raise if a setting is not one for this kind of model."""
    kind, top_k, output = stored.kind, settings.answers.top_k, settings.output
    problem = problem_of(stored.model.config)
    ranks = kind == "classifier" and problem == SINGLE_LABEL
    rule = f"be 1 for a {kind}" if kind != "classifier" else f"be 1 for {problem}, of which all answers are written"
    check("top_k", top_k, ranks or top_k == 1, rule)
    count = len(class_list(stored.model.config))
    check("top_k", top_k, kind != "classifier" or top_k <= count, f"be at most {count}, the classes of the model")
    is_coco = Path(output.output_file).suffix == COCO
    rule = f"end in {', '.join(TABLES)} for a {kind}: {COCO} holds objects in COCO's format"
    check("output_file", output.output_file, kind == "detector" or not is_coco, rule)
    if kind == "classifier" and problem == MULTI_LABEL:
        check_separable(class_list(stored.model.config), output.output_file)
    fits = kind == "segmentation model" or output.masks_dir is None
    check("masks_dir", output.masks_dir, fits, f"not be given for a {kind}")
    for name, usual in vars(SegmentPredictionSettings()).items():
        value = getattr(settings.prediction, name)
        check(name, value, kind == "segmentation model" or value == usual, f"not be given for a {kind}")
    least = getattr(stored.model.config, "box_score_threshold", 0)
    rule = f"be at least {least}, below which this detector drops objects (`box_score_threshold` in its config.json)"
    check("threshold", settings.answers.threshold, settings.answers.threshold >= least, rule)
    encoder = getattr(stored.model.config, "backbone_config", None)
    if kind == "segmentation model" and isinstance(encoder, EncoderConfig):
        check_prediction(settings.prediction, encoder, stored.processor)


class ClassAnswers:
    """The most probable classes of an image. The scores are those of Transformers' pipeline."""

    stacks = True

    def __init__(self, stored: StoredModel, settings: PredictSettings) -> None:
        self.names, self.top_k = class_list(stored.model.config), settings.answers.top_k
        self.scores_of = torch.sigmoid if len(self.names) == 1 else partial(torch.softmax, dim=-1)
        self.transform = EvaluationTransform(stored.processor)
        self.columns = {}
        for suffix in ("", *(f"_{rank}" for rank in range(2, self.top_k + 1))):
            self.columns |= {f"label{suffix}": TEXT, f"score{suffix}": NUMBER}

    def __call__(self, accelerator: Accelerator, model: nn.Module, batch: Batch) -> list[Answer]:
        scores, labels = self.scores_of(logits_of(accelerator, model, batch)).topk(self.top_k)
        answers = []
        for pair in zip(scores.tolist(), labels.tolist(), strict=True):
            values = [value for score, label in zip(*pair, strict=True) for value in (self.names[label], score)]
            answer = dict(zip(self.columns, values, strict=True))
            answers.append(finite_answer(answer, pair[0], "scores"))
        return answers

    def rows(self, answer: Answer) -> Iterator[dict[str, Any]]:
        yield answer


class ObjectAnswers:
    """The objects in an image whose score is above the threshold, the highest first."""

    stacks = False

    def __init__(self, stored: StoredModel, settings: PredictSettings) -> None:
        config: Any = stored.model.config
        self.names = class_list(config)
        has_rcnn_outputs = hasattr(config, "use_masks")
        self.detect = detect_with(stored.processor, has_rcnn_outputs, settings.answers.threshold)
        self.transform = DetectionEvaluationTransform(stored.processor).pixel_values
        self.columns = {"label": TEXT, **dict.fromkeys(("score", *CORNERS), NUMBER)}
        self.is_coco = Path(settings.output.output_file).suffix == COCO
        self.watch = NanWatch(stored.model, has_rcnn_outputs)

    def __call__(self, accelerator: Accelerator, model: nn.Module, batch: Batch) -> list[Answer]:
        answers = []
        for pixel_values, sample in zip(batch["pixel_values"], readable(batch), strict=True):
            size, self.watch.saw_nan = sample["size"], False
            with accelerator.autocast():
                found = self.detect(model, pixel_values.to(accelerator.device), size)
            answer = {"height": size[0], "width": size[1], "objects": self.objects(found)}
            is_bad = self.watch.saw_nan or not found.boxes.isfinite().all()
            answers.append(bad_answer("scores or boxes") if is_bad else answer)
        return answers

    def objects(self, found: Detections) -> list[dict[str, Any]]:
        """The objects of an image, with the class number, box and mask in COCO's format if they are asked for."""
        order = found.scores.argsort(descending=True, stable=True)
        boxes, labels = found.boxes[order], found.labels[order].tolist()
        corners = [dict(zip(CORNERS, box, strict=True)) for box in boxes.tolist()]
        scores = found.scores[order].tolist()
        objects: list[dict[str, Any]] = [
            {"label": self.names[label], "score": score, **box}
            for label, score, box in zip(labels, scores, corners, strict=True)
        ]
        if not self.is_coco:
            return objects
        for each, label, box in zip(objects, labels, to_xywh(boxes), strict=True):
            each |= {"category_id": label, "bbox": box}
        if found.masks is not None:
            for each, mask in zip(objects, encode_masks(found.masks[order]), strict=True):
                each["segmentation"] = {**mask, "counts": mask["counts"].decode()}
        return objects

    def rows(self, answer: Answer) -> Iterator[dict[str, Any]]:
        for each in answer["objects"]:
            yield {"image": answer["image"], **each}


class MaskAnswers:
    """The class of each pixel as a file, and the share of each class in the pixels."""

    stacks = False

    def __init__(self, stored: StoredModel, settings: PredictSettings, mask_names: MaskNames) -> None:
        names = class_list(stored.model.config)
        self.num_labels, self.mask_names = len(names), mask_names
        self.masks = MaskFolder(settings.output.masks, Path(settings.output.output_file))
        ignored = ignored_label(self.num_labels)
        self.log_probabilities = SegmentationEvaluator(self.num_labels, ignored, settings.prediction).predict
        self.transform = EvaluationTransform(stored.processor)
        twice = len(set(names)) < len(names)
        self.shares = [f"share_{i}_{name}" if twice else f"share_{name}" for i, name in enumerate(names)]
        self.columns = {"mask": TEXT, **dict.fromkeys(self.shares, NUMBER)}

    def __call__(self, accelerator: Accelerator, model: nn.Module, batch: Batch) -> list[Answer]:
        answers = []
        for pixel_values, sample in zip(batch["pixel_values"], readable(batch), strict=True):
            with accelerator.autocast():
                scores = self.log_probabilities(model, pixel_values.to(accelerator.device), sample["size"])
            if scores.sum().isnan():
                answers.append(bad_answer("scores"))
                continue
            classes = scores.argmax(0)
            counts = classes.flatten().bincount(minlength=self.num_labels).tolist()
            name = self.mask_names(sample["image"], sample["index"])
            self.save(classes, self.masks.folder / name)
            shares = [count / classes.numel() for count in counts]
            answers.append({"mask": name, **dict(zip(self.shares, shares, strict=True))})
        return answers

    def save(self, classes: Tensor, file: Path) -> None:
        """Write class numbers `(H, W)` as a PNG file of 8 bits, or 16 bits for more than 256 classes."""
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = classes.cpu().numpy().astype(np.uint8 if self.num_labels <= 256 else np.uint16)
        with atomic_path(file, sync=False) as new:
            Image.fromarray(pixels).save(new, "PNG", pnginfo=self.masks.signature())

    def rows(self, answer: Answer) -> Iterator[dict[str, Any]]:
        yield answer


def readable(batch: Batch) -> list[Sample]:
    """The samples of a batch whose images can be read."""
    return [sample for sample in batch["samples"] if "error" not in sample]


def create_answers(stored: StoredModel, settings: PredictSettings, images: Images) -> Answers:
    """How this model answers."""
    problem = problem_of(stored.model.config)
    if stored.kind == "classifier" and problem == MULTI_LABEL:
        return MultiLabelAnswers(stored, settings)
    if stored.kind == "classifier" and problem == REGRESSION:
        return ValueAnswers(stored)
    if stored.kind == "classifier":
        return ClassAnswers(stored, settings)
    if stored.kind == "detector":
        return ObjectAnswers(stored, settings)
    return MaskAnswers(stored, settings, MaskNames(images, settings.data.image_column))
