"""The model card of a folder: complete front matter, and only figures that were measured and say by whom.

Everything comes from the files beside the card: config.json and the weights, training_config.json and all_results.json
of a training run, conversion.json of a converted checkpoint, and pictures.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from conversion.exporting.readme import pipeline_of
from conversion.exporting.readme import render as render_files
from conversion.exporting.record import Record
from conversion.families import PRETRAINING
from conversion.files import write_text
from conversion.model_folder import CARD
from conversion.publishing.contents import CardContents, read_contents
from conversion.publishing.publication import Publication
from conversion.templates import load_template

TEMPLATES = Path(__file__).parent / "templates"
# Cards with this line are ours to write anew, as those of Transformers' Trainer.
GENERATED = "<!-- Written from the files beside it. Complete this card, then remove this line to keep your text. -->"
TASKS = {"classifier": "image-classification", "segmenter": "image-segmentation", "detector": "object-detection"}
FEATURES = "image-feature-extraction"
# Of our figures: the Hub's name, the name in words, and the arguments with which `evaluate` computes the same.
HUB_METRICS: dict[str, tuple[str, str, dict[str, str] | None]] = {
    "mean_average_precision": ("mean_average_precision", "Mean average precision of the classes", None),
    "f1_micro": ("f1", "F1, micro average", {"average": "micro"}),
    "f1_macro": ("f1", "F1, macro average", {"average": "macro"}),
    "mae": ("mae", "Mean absolute error", None),
    "rmse": ("rmse", "Root mean squared error", None),
    "r2": ("r_squared", "R squared", None),
}
IMAGENET = "ILSVRC/imagenet-1k"
RESULTS_OF_TIMM = "https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv"


def write_card(folder: str | Path, publication: Publication | None = None, config: Any = None) -> str:
    """Write README.md of a model's folder, unless it holds a card that somebody has edited; return its text.

    `config`: the model's, where the folder has none because another library is to read it.
    """
    file = Path(folder) / CARD
    if file.exists() and not is_generated(file):
        return file.read_text(encoding="utf-8")
    text = render_card(folder, publication, config)
    write_text(file, text)
    return text


def is_generated(card: Path) -> bool:
    """Whether the card still has the line that marks it as written by `write_card`."""
    return GENERATED in card.read_text(encoding="utf-8")


def render_card(folder: str | Path, publication: Publication | None = None, config: Any = None) -> str:
    """The text of the card, front matter included; a blank that nothing fills is an error."""
    contents = read_contents(Path(folder).resolve(), publication or Publication(), config)
    onnx = contents.publication.onnx and Record.read(contents.publication.onnx)
    is_foreign = contents.model.foreign_layout is not None
    template = load_template(TEMPLATES / ("foreign.md" if is_foreign else f"{contents.model.kind}.md"))
    text = template.render(
        front_matter=front_matter(contents).to_yaml(),
        generated=GENERATED,
        card=contents,
        publication=contents.publication,
        model=contents.model,
        config=contents.model.config,
        data=contents.data,
        origin=contents.origin,
        results=contents.results,
        onnx=None if onnx is None else render_files("onnx.md", onnx, contents.repo_id),
        num_images_of_onnx=0 if onnx is None else onnx.num_measured_images,
    )
    return str(ModelCard(text))


def front_matter(contents: CardContents) -> ModelCardData:
    """What the Hub reads at the head of the card, with no key that would be blank."""
    kind = contents.model.kind
    family = contents.model.family
    tags = ["vision", family.tag]
    if kind in TASKS:
        tags.append(TASKS[kind])
    if contents.model.is_multi_label:
        tags.append("multi-label-image-classification")
    if contents.model.is_regression:
        tags.append("image-regression")
    if contents.model.has_masks:
        tags.append("instance-segmentation")
    if contents.publication.onnx is not None:
        tags += ["onnx", *(["transformers.js"] if pipeline_of(Record.read(contents.publication.onnx)) else [])]
    if contents.is_self_supervised:
        tags += ["masked-image-modeling", family.pretraining]
    datasets = [data_set.name for data_set in contents.data.data_sets if not data_set.is_local]
    if not datasets and contents.origin.official:
        datasets = [IMAGENET]
    results = [*_measured(contents), *_reported(contents)]
    return ModelCardData(
        license=contents.license,
        library_name=contents.model.library,
        pipeline_tag=TASKS.get(kind, FEATURES),
        tags=list(dict.fromkeys(tags)),
        datasets=datasets or None,
        base_model=contents.base_model,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=contents.name if results else None,
        eval_results=results or None,
    )


def _measured(contents: CardContents) -> list[EvalResult]:
    """The run's own results on its data set."""
    if not contents.data.data_sets:
        return []
    name, is_local = contents.data.data_sets[0]
    kind, settings = contents.model.kind, contents.settings
    return [
        EvalResult(
            task_type=TASKS.get(kind, FEATURES),
            dataset_type=_local_kind(Path(name)) if is_local else name,
            dataset_name=Path(name).name if is_local else name,
            dataset_config=settings.get("dataset_config_name"),
            dataset_split=settings.get("train_split" if kind in PRETRAINING else "eval_split"),
            task_name=contents.model.task_name,
            metric_type=metric,
            metric_name=metric_name and contents.results.in_words(figure, metric_name),
            metric_args=arguments,
            metric_value=value,
        )
        for figure, value in contents.results.metrics.items()
        for metric, metric_name, arguments in [HUB_METRICS.get(figure, (figure, None, None))]
    ]


def _reported(contents: CardContents) -> list[EvalResult]:
    """What timm measured with the official checkpoint, with its source."""
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=IMAGENET,
            dataset_name="ImageNet-1k",
            dataset_split="validation",
            metric_type=metric,
            metric_value=round(value / 100, 5),
            source_name="timm results-imagenet.csv",
            source_url=RESULTS_OF_TIMM,
        )
        for metric, value in zip(("accuracy", "accuracy_top5"), contents.results.reported, strict=False)
    ]


def _local_kind(dataset: Path) -> str:
    """The loader of `datasets` that reads a local path, as the Hub's model index names it."""
    is_parquet = dataset.suffix == ".parquet" or any(dataset.glob("*.parquet"))
    return "parquet" if is_parquet else "imagefolder"
