"""The model card of a folder: complete front matter, and only figures that were measured and say by whom.

Everything comes from the files beside the card: config.json and the weights, training_config.json and all_results.json
of a training run, conversion.json of a converted checkpoint, and pictures.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from conversion.files import write_text
from conversion.publishing.facts import Facts, Publication

TEMPLATES = Path(__file__).parent / "templates"
# Cards with this line are ours to write anew, as those of Transformers' Trainer.
GENERATED = "<!-- Written from the files beside it. Complete this card, then remove this line to keep your text. -->"
TASKS = {"classifier": "image-classification"}
FEATURES = "image-feature-extraction"
IMAGENET = "ILSVRC/imagenet-1k"
RESULTS_OF_TIMM = "https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv"


def write_card(folder: str | Path, publication: Publication | None = None, config: Any = None) -> str:
    """Write README.md of a model's folder, unless it holds a card that somebody has edited; return its text.

    `config`: the model's, where the folder has none because another library is to read it.
    """
    file = Path(folder) / "README.md"
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
    facts = Facts(Path(folder).resolve(), publication or Publication(), config)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    template = environment.get_template("foreign.md" if facts.is_foreign else f"{facts.kind}.md")
    return str(ModelCard(template.render(facts=facts, front_matter=card_data(facts).to_yaml(), generated=GENERATED)))


def card_data(facts: Facts) -> ModelCardData:
    """The front matter, with no key that would be blank."""
    is_classifier = facts.kind == "classifier"
    tags = ["vision", "convnextv2", *(["image-classification"] if is_classifier else [])]
    tags += ["masked-image-modeling", "fcmae"] if facts.is_self_supervised else []
    on_hub = [name for name, is_local in facts.datasets if not is_local]
    datasets = on_hub or ([IMAGENET] if facts.checkpoint else None)
    results = [*_measured(facts), *_reported(facts)]
    return ModelCardData(
        license=facts.license,
        library_name=facts.library,
        pipeline_tag=TASKS.get(facts.kind, FEATURES),
        tags=tags,
        datasets=datasets,
        base_model=facts.base_model,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=facts.name if results else None,
        eval_results=results or None,
    )


def _measured(facts: Facts) -> list[EvalResult]:
    """The run's own results on its data set."""
    if not facts.datasets:
        return []
    dataset, is_local = facts.datasets[0]
    on_hub = not is_local
    return [
        EvalResult(
            task_type=TASKS.get(facts.kind, FEATURES),
            dataset_type=dataset if on_hub else _local_kind(Path(dataset)),
            dataset_name=dataset if on_hub else Path(dataset).name,
            dataset_config=facts.settings.get("dataset_config_name"),
            dataset_split=facts.settings.get("train_split" if facts.kind == "pretraining" else "eval_split"),
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in facts.metrics.items()
    ]


def _reported(facts: Facts) -> list[EvalResult]:
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
        for metric, value in zip(("accuracy", "accuracy_top5")[: len(facts.reference)], facts.reference, strict=True)
    ]


def _local_kind(dataset: Path) -> str:
    """The loader of `datasets` that reads a local path, as the Hub's model index names it."""
    is_parquet = dataset.suffix == ".parquet" or any(dataset.glob("*.parquet"))
    return "parquet" if is_parquet else "imagefolder"
