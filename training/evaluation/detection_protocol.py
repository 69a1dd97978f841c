"""Evaluates a stored detector on images with objects."""

from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from training.data.detection.classes import check_classes
from training.data.detection.reader import ObjectReader
from training.data.detection.rows import load_objects, object_reader
from training.data.detection.samples import detection_samples
from training.data.detection.transforms import DetectionEvaluationTransform, longest_side_of
from training.data.labels import class_list
from training.data.samples import eval_loader
from training.data.sources import Source
from training.evaluation.detection import DetectionEvaluator, collate_objects
from training.evaluation.detection_figures import save_figures, table_in_words
from training.evaluation.loop import prepare_lists
from training.evaluation.outcome import Outcome
from training.evaluation.published import detection_comparison
from training.models.detection import detect_with
from training.settings.data import ObjectsDataSettings
from training.settings.evaluation import ShownSettings


def evaluate_detection(
    accelerator: Accelerator, model: PreTrainedModel, processor: Any, data: ObjectsDataSettings, shown: ShownSettings
) -> Outcome:
    """COCO's average precision on `eval_split`, and the figures of each class."""
    config: Any = model.config
    names, with_masks = class_list(config), getattr(config, "use_masks", False)
    num_channels = config.backbone_config.num_channels
    with accelerator.main_process_first():
        part, longest = (data.eval_split or "", data.max_eval_samples), longest_side_of(processor)
        source = load_objects(data, *part, num_channels, names, with_masks, longest)
    check_classes(source, data, names)
    evaluator = DetectionEvaluator(names, detect_with(processor, hasattr(config, "use_masks")), with_masks, shown)
    reader = object_reader(data, names, with_masks)
    loader: Any = detection_loader(accelerator, data, source, num_channels, reader, processor)
    results = evaluator(accelerator, accelerator.prepare(model), loader)
    parts = [table_in_words(evaluator.per_class), detection_comparison(results, config), evaluator.in_words(results)]
    save = lambda folder: save_figures(folder, evaluator, names, processor)  # noqa: E731
    return Outcome(results, "\n".join(filter(None, parts)), save)


def detection_loader(
    accelerator: Accelerator,
    data: ObjectsDataSettings,
    source: Source | None,
    num_channels: int,
    reader: ObjectReader,
    processor: Any,
) -> DataLoader[Any] | None:
    """Batches of the images to evaluate on, for this process, if there are any."""
    if source is None:
        return None
    samples = detection_samples(data, source, num_channels, reader, DetectionEvaluationTransform(processor))
    return prepare_lists(accelerator, eval_loader(source, samples, data, collate_objects))
