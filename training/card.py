"""The model card of a run: complete front matter, and only figures that the run measured."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_convnextv2 import (
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2PreTrainedModel,
)
from hf_convnextv2.configuration_convnextv2 import SIZES

TEMPLATES = Path(__file__).parent / "templates"
PICTURES = {
    "loss_curves.png": "Loss and learning rate against the step",
    "reconstructions.png": "What the encoder sees, the reconstruction, the original",
}
# Where and how often the run wrote, and how it was fed: nothing that its result depends on.
# fmt: off
NOT_RECIPE = {
    "output_dir", "overwrite_output_dir", "config", "dry_run", "logging_steps", "eval_steps",
    "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "num_workers", "with_tracking",
    "report_to", "push_to_hub", "hub_model_id", "hub_token", "token", "license", "metrics", "check_images",
    "skip_bad_images", "max_bad_images", "image_column", "label_column", "per_device_eval_batch_size",
    "activation_checkpointing",
}
# fmt: on
# A setting and the one that, when set, puts it out of force; and settings that mean something only beside another.
OVERRIDDEN_BY = {
    "model_size": "model_name_or_path",
    "patch_size": "model_name_or_path",
    "num_stages": "model_name_or_path",
    "base_learning_rate": "learning_rate",
    "num_train_epochs": "max_train_steps",
    "warmup_epochs": "warmup_steps",
}
MEANT_BESIDE = {"randaugment_magnitude": "randaugment_num_ops", "shuffle_buffer_size": "streaming"}
FIGURES = {
    "eval_accuracy": "top-1 accuracy, evaluation images",
    "eval_accuracy_top5": "top-5 accuracy, evaluation images",
    "eval_loss": "loss, evaluation images",
    "eval_samples": "evaluation images",
    "train_loss": "training loss, mean of the run",
    "train_samples": "training images",
    "train_runtime": "training time in seconds",
    "images_per_second": "images per second",
    "total_steps": "optimizer steps",
    "epoch": "epochs",
}
NO_METRIC = {"eval_loss", "eval_samples", "eval_runtime"}  # eval_* results that are no metric of a classifier
OFFICIAL_WEIGHTS = ("facebook/convnextv2", "timm/convnextv2")
OFFICIAL_LICENSE = "cc-by-nc-4.0"


def write_pretraining_card(
    output_dir: str | Path, model: ConvNextV2ForPreTraining, config: Any, results: dict[str, Any]
) -> None:
    """Write README.md of an FCMAE run; `config` is the run's settings, `results` what it measured."""
    run = _Run(Path(output_dir).resolve(), model, dataclasses.asdict(config), results)
    metrics = {"loss": results["train_loss"]} if _is_figure(results.get("train_loss")) else {}
    run.write(
        "pretraining.md",
        run.card_data("image-feature-extraction", ["masked-image-modeling", "fcmae"], metrics, "train_split"),
        mask_ratio=model.config.mask_ratio,
        cell_size=model.config.cell_size,
        encoder_parameters=model.convnextv2.num_parameters(),
    )


def write_classifier_card(
    output_dir: str | Path, model: ConvNextV2ForImageClassification, config: Any, results: dict[str, Any]
) -> None:
    """Write README.md of a fine-tuning run; `config` is the run's settings, `results` what it measured."""
    labels = list((model.config.id2label or {}).values())
    if len(labels) <= 5:
        results = {key: value for key, value in results.items() if key != "eval_accuracy_top5"}  # always 1
    run = _Run(Path(output_dir).resolve(), model, dataclasses.asdict(config), results)
    metrics = {
        key.removeprefix("eval_"): value
        for key, value in results.items()
        if key.startswith("eval_") and key not in NO_METRIC and _is_figure(value)
    }
    run.write(
        "classifier.md",
        run.card_data("image-classification", ["image-classification"], metrics, "eval_split"),
        labels=labels,
    )


@dataclasses.dataclass
class _Run:
    folder: Path
    model: ConvNextV2PreTrainedModel
    settings: dict[str, Any]
    results: dict[str, Any]

    def __post_init__(self) -> None:
        self.model_id: str = self.settings.get("hub_model_id") or self.folder.name
        self.dataset: str = str(self.settings.get("dataset_name") or "images")
        self.base: str | None = self.settings.get("model_name_or_path")
        self.license: str = self.settings.get("license") or inherited_license(self.base)

    def card_data(self, task: str, tags: list[str], metrics: dict[str, float], split: str) -> ModelCardData:
        """The front matter; `metrics` were measured on the data set's split named by the setting `split`."""
        on_hub = is_hub_id(self.dataset)
        measured = [
            EvalResult(
                task_type=task,
                dataset_type=self.dataset if on_hub else _local_kind(Path(self.dataset)),
                dataset_name=self.dataset if on_hub else Path(self.dataset).name,
                dataset_config=self.settings.get("dataset_config_name"),
                dataset_split=self.settings.get(split),
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in metrics.items()
        ]
        return ModelCardData(
            license=self.license,
            library_name="transformers",
            pipeline_tag=task,
            tags=["vision", "convnextv2", *tags],
            datasets=[self.dataset] if on_hub else None,
            base_model=self.base if is_hub_id(self.base) else None,
            metrics=list(metrics) or None,
            model_name=self.model_id.split("/")[-1],
            eval_results=measured or None,
        )

    def write(self, template: str, card_data: ModelCardData, **variables: Any) -> None:
        """Fill the template; a variable that it names and nobody gives is an error."""
        config, settings = self.model.config, self.settings
        height, width = _sides(settings.get("image_size") or config.image_size)
        options = {
            "trim_blocks": True,
            "lstrip_blocks": True,
            "keep_trailing_newline": True,
            "undefined": StrictUndefined,
        }
        text = (
            Environment(loader=FileSystemLoader(TEMPLATES), **options)
            .get_template(template)
            .render(
                front_matter=card_data.to_yaml(),
                name=card_data.model_name,
                model_id=self.model_id,
                architecture=_architecture(config),
                data=_describe(self.dataset, "the data set"),
                base=_describe(self.base, "the folder") if self.base else None,
                license=self.license,
                height=height,
                width=width,
                num_channels=config.num_channels,
                parameters=self.model.num_parameters(),
                pictures=[(file, caption) for file, caption in PICTURES.items() if (self.folder / file).exists()],
                figures=[
                    (FIGURES.get(key, key), _show(value)) for key, value in self.results.items() if _is_figure(value)
                ],
                recipe=[(key, _show(value)) for key, value in settings.items() if _in_force(key, settings)],
                **variables,
            )
        )
        ModelCard(text).save(self.folder / "README.md")


def is_hub_id(name: str | None) -> bool:
    """Whether `name` is the id of a repository rather than a file or folder of this machine."""
    if not name or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def inherited_license(base: str | None) -> str:
    """Weights keep the licence of those they start from; from random weights on it is the package's."""
    if base and (Path(base) / "README.md").exists():
        return (metadata_load(Path(base) / "README.md") or {}).get("license", "apache-2.0")
    return OFFICIAL_LICENSE if (base or "").startswith(OFFICIAL_WEIGHTS) else "apache-2.0"


def _architecture(config: ConvNextV2Config) -> str:
    depths, hidden_sizes = list(config.depths or ()), list(config.hidden_sizes or ())
    stages = len(depths)
    for size, (full_depths, full_hidden_sizes) in SIZES.items():
        if (list(full_depths[:stages]), list(full_hidden_sizes[:stages])) == (depths, hidden_sizes):
            cut = "" if stages == len(full_depths) else f", the first {stages} stages"
            return f"{size}{cut}, patch size {config.patch_size}"
    return f"depths {depths}, widths {hidden_sizes}, patch size {config.patch_size}"


def _local_kind(dataset: Path) -> str:
    """The loader of `datasets` that reads a local path, as the Hub's model index names it."""
    is_parquet = dataset.suffix == ".parquet" or any(dataset.glob("*.parquet"))
    return "parquet" if is_parquet else "imagefolder"


def _describe(source: str, kind: str) -> str:
    """A Hub id as it is; of a local path only its last part, since the rest says nothing to a reader elsewhere."""
    return f"`{source}`" if is_hub_id(source) else f"{kind} `{Path(source).name}`"


def _sides(size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _in_force(key: str, settings: dict[str, Any]) -> bool:
    """Whether the run's result depends on the setting; 0, False and nothing switch a thing off."""
    if key in NOT_RECIPE or settings.get(OVERRIDDEN_BY.get(key, "")):
        return False
    return key == "seed" or bool(settings[key] and settings[MEANT_BESIDE.get(key, key)])


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _show(value: Any) -> str:
    if value is True:
        return "yes"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_show, value))
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return Path(value).name if "/" in str(value) and not is_hub_id(str(value)) else str(value)
