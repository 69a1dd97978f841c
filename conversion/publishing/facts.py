"""What a model's folder says of itself: the figures, settings and names that its card is made of."""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open

from conversion.checkpoints import Checkpoint, checkpoint_table
from conversion.files import read_csv, read_json, sha256
from conversion.publishing.licenses import UNKNOWN, inherited_license, read_license, settle_license, was_never_stated
from conversion.publishing.wording import (
    data_sets,
    describe_data,
    describe_source,
    is_figure,
    is_local_setting,
    recipe_names,
    show,
    show_cell,
    sides,
)
from hf_convnextv2 import ConvNextV2Config, ConvNextV2FCMAEConfig
from hf_convnextv2.configuration_convnextv2 import FCMAE_MODEL_TYPE, SIZES
from hf_convnextv2.images import MODES, background_color

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
SETTINGS, RESULTS, PROVENANCE = "training_config.json", "all_results.json", "conversion.json"
PER_CLASS, CONFUSIONS = "eval_per_class.csv", "eval_confusions.csv"
CONFUSION_MATRIX, MOST_CONFUSED = "confusion_matrix.png", "most_confused.png"
PICTURES = {
    "loss_curves.png": "Loss and learning rate against the step",
    "reconstructions.png": "What the encoder sees, the reconstruction, the original",
    CONFUSION_MATRIX: "True class against predicted class, evaluation images",
    MOST_CONFUSED: "Classes that were taken for another most often, evaluation images",
}
FIGURES = {
    "eval_accuracy": "top-1 accuracy, evaluation images",
    "eval_accuracy_top5": "top-5 accuracy, evaluation images",
    "eval_majority_accuracy": "accuracy of always giving the largest class, evaluation images",
    "eval_loss": "loss, evaluation images",
    "eval_samples": "evaluation images",
    "train_loss": "training loss, mean of the run",
    "train_samples": "training images",
    "train_runtime": "training time in seconds",
    "images_per_second": "images per second",
    "total_steps": "optimizer steps",
    "epoch": "epochs",
}
NO_METRIC = {
    "eval_loss",
    "eval_samples",
    "eval_runtime",
    "eval_majority_accuracy",
}  # eval_* results that are no metric of a classifier
MOST_CLASSES = 10  # in the table of a card
HEADS = ("classifier.", "head.fc.", "head.weight", "head.bias")  # in every layout
DECODERS = ("decoder.", "mask_token")
MADE_BY_CONVERSION = {"source", "layout", "sha256", "dtype", "is_cast", "notes", "stored_as", "made_sha256"}
TRAINING = {
    "fcmae": "pre-trained by FCMAE on ImageNet-1k without labels",
    "fcmae-ft-in1k": "pre-trained by FCMAE and fine-tuned on ImageNet-1k",
    "fcmae-ft-in22k-in1k": "pre-trained by FCMAE, then fine-tuned on ImageNet-22k and on ImageNet-1k",
}


@dataclass
class Publication:
    """What a card says of the repository that it is for."""

    repo_id: str | None = None  # default: as the run's settings say, else the folder's name
    companion: str | None = None  # the repository of the encoder alone, or of the pre-training model that it is from
    license: str | None = None  # default: as the run's settings say, else inherited
    with_code: bool = False  # the repository also holds the model's code


class Facts:
    """What the files of a folder say."""

    def __init__(self, folder: Path, publication: Publication, config: ConvNextV2Config | None = None):
        self.folder, self.publication = folder, publication
        self.settings, self.provenance = read_json(folder / SETTINGS), read_provenance(folder)
        self.is_foreign = config is not None
        self.config: Any = config if config is not None else _read_config(folder)
        self.parameters = parameter_sizes(folder)
        self.kind = "classifier" if self.count_parameters(HEADS) else "encoder"
        self.kind = "pretraining" if self.count_parameters(DECODERS) else self.kind
        self.labels = list((self.config.id2label or {}).values())
        self.model_id: str = publication.repo_id or self.settings.get("hub_model_id") or folder.name
        self.name = self.model_id.split("/")[-1]
        self.companion, self.with_code = publication.companion, publication.with_code
        self.data_note: str | None = self.settings.get("data_note") or self.provenance.get("data_note")
        self.height, self.width = sides(self.settings.get("image_size") or self.config.image_size or 224)
        self.base: str | None = self.settings.get("model_name_or_path")
        self.datasets = data_sets(self.settings)
        self.base_is_local = is_local_setting("model_name_or_path", self.settings)
        self.checkpoint: Checkpoint | None = checkpoint_table().get(str(self.provenance.get("checkpoint")))
        if self.checkpoint and self.checkpoint.training == "fcmae" and self.kind == "classifier":
            self.checkpoint = None  # a head beside the official encoder is not theirs

    @cached_property
    def background(self) -> str | None:
        """What transparent pixels of the training images lay on, for pictures of 1, 3 or 4 channels."""
        stored = read_json(self.folder / "preprocessor_config.json").get("background")
        return stored if self.config.num_channels in MODES else None

    @property
    def background_color(self) -> tuple[int, int, int] | None:
        """The same in red, green and blue."""
        return background_color(self.background) if self.background else None

    @property
    def library(self) -> str:
        """The library that loads the folder."""
        if not self.is_foreign:
            return "transformers"
        return "timm" if self.provenance["stored_as"] == "timm" else "pytorch"

    @property
    def is_self_supervised(self) -> bool:
        """Whether the weights are those of FCMAE pre-training, or their encoder."""
        of_fcmae = self.checkpoint is not None and self.checkpoint.training == "fcmae"
        return self.kind == "pretraining" or of_fcmae or bool(self.companion)

    @property
    def base_model(self) -> str | None:
        """The repository on the Hub that the weights come from."""
        if self.kind == "encoder" and self.companion:
            return self.companion
        return self.base if self.base and not self.base_is_local else self.provenance.get("hub_id")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the last map."""
        (cell_height, cell_width) = sides(self.config.cell_size)
        return self.height // cell_height, self.width // cell_width

    @cached_property
    def license(self) -> str:
        """As asked for, as the run or the source says, or as the weights that it started from."""
        said = self.settings.get("license") or self.provenance.get("license")
        said = UNKNOWN if was_never_stated(self.settings) else said
        if said is None:  # a folder that says nothing but in its card, if that
            said = inherited_license(self.base) if self.settings else read_license(self.folder / "README.md")
        return settle_license(self.publication.license, said)

    @cached_property
    def results(self) -> dict[str, float]:
        """What the run measured."""
        results = {key: value for key, value in read_json(self.folder / RESULTS).items() if is_figure(value)}
        if len(self.labels) <= 5:
            results.pop("eval_accuracy_top5", None)  # always 1
        return results

    @property
    def metrics(self) -> dict[str, float]:
        """The results that the front matter holds."""
        if self.kind == "pretraining":
            return {"loss": self.results["train_loss"]} if "train_loss" in self.results else {}
        found = {key: value for key, value in self.results.items() if key.startswith("eval_") and key not in NO_METRIC}
        return {key.removeprefix("eval_"): value for key, value in found.items()}

    @property
    def reference(self) -> list[float]:
        """Top-1 and top-5 accuracy of the official checkpoint, in %, as timm measured them."""
        is_same = self.kind == "classifier" and len(self.labels) == 1000
        is_same = is_same and self.checkpoint is not None and self.config.image_size == self.checkpoint.image_size
        return self.checkpoint.accuracy.get("timm", []) if self.checkpoint and is_same else []

    @property
    def figures(self) -> list[tuple[str, str]]:
        """Measured figures with their names."""
        return [(FIGURES.get(key, key), show(value)) for key, value in self.results.items()]

    @cached_property
    def per_class(self) -> list[dict[str, str]]:
        """Figures of each class as text; of many classes, those with the lowest F1."""
        rows = read_csv(self.folder / PER_CLASS)
        if len(rows) > MOST_CLASSES:
            rows = sorted((row for row in rows if row["images"] != "0"), key=lambda row: float(row["f1"] or 0))
        return [{key: show_cell(key, value) for key, value in row.items()} for row in rows[:MOST_CLASSES]]

    @property
    def recipe(self) -> list[tuple[str, str]]:
        """The settings that the result depends on."""
        in_force = {name: self.settings[name] for name in recipe_names(self.settings)}
        if mixed := self.datasets[1:]:
            in_force["mixed_dataset_names"] = [show(name, is_local) for name, is_local in mixed]
        return [(key, show(value, is_local_setting(key, self.settings))) for key, value in in_force.items()]

    @property
    def pictures(self) -> list[tuple[str, str]]:
        """The pictures that are there, and what they show."""
        return [(file, caption) for file, caption in PICTURES.items() if (self.folder / file).exists()]

    @property
    def trained(self) -> str:
        """On what, as far as the files say."""
        if self.checkpoint:
            return TRAINING[self.checkpoint.training]
        return f"trained on {self.data}" if self.data else "trained on data that its source does not name"

    @property
    def data(self) -> str | None:
        """The data set in words, if it is known."""
        if self.datasets:
            return describe_data(self.settings)
        return "ImageNet-1k" if self.checkpoint else self.provenance.get("data")

    @property
    def start(self) -> str | None:
        """The weights that training started from, in words."""
        pretrained = "the FCMAE pre-training" if self.settings.get("start") == FCMAE_MODEL_TYPE else "the weights"
        return (
            describe_source(self.base, f"{pretrained} in the trainer's folder", self.base_is_local)
            if self.base
            else None
        )

    @property
    def has_new_norm(self) -> bool:
        """Whether the conversion has added the norm behind `pooler_output`."""
        return any(note.startswith("added: `layernorm`") for note in self.provenance.get("notes", []))

    @property
    def teacher(self) -> str:
        """The model whose features are predicted, in words."""
        name = self.settings.get("teacher_name_or_path")
        local = is_local_setting("teacher_name_or_path", self.settings)
        return describe_source(name, "the folder", local) if name else "the average of its own weights"

    @property
    def architecture(self) -> str:
        """The size in words."""
        depths, widths = list(self.config.depths), list(self.config.hidden_sizes)
        patch = f"patch size {self.config.patch_size}"
        for size, (all_depths, all_widths) in SIZES.items():
            if (list(all_depths[: len(depths)]), list(all_widths[: len(depths)])) == (depths, widths):
                cut = "" if len(depths) == len(all_depths) else f", the first {len(depths)} stages"
                return f"{size}{cut}, {patch}"
        return f"depths {depths}, widths {widths}, {patch}"

    def count_parameters(self, prefix: str | tuple[str, ...] = "") -> int:
        """Parameters whose names start so."""
        return sum(size for name, size in self.parameters.items() if name.startswith(prefix))


def read_provenance(folder: Path) -> dict[str, Any]:
    """What `conversion.convert` noted of the weights in a folder; nothing if they are others by now."""
    noted = read_json(folder / PROVENANCE)
    if noted and not set(noted) >= MADE_BY_CONVERSION:
        raise ValueError(f"{folder / PROVENANCE} must be as `conversion.convert` writes it. Delete it.")
    weights = folder / "model.safetensors"
    return noted if weights.is_file() and noted.get("made_sha256") == sha256(weights) else {}


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights."""
    return [file for pattern in WEIGHTS for file in folder.glob(pattern)]


def parameter_sizes(folder: Path) -> dict[str, int]:
    """Numbers in each stored parameter, from the headers of the files."""
    sizes = {}
    for file in weight_files(folder):
        with safe_open(file, "pt") as weights:
            sizes |= {name: prod(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    return sizes


def _read_config(folder: Path) -> ConvNextV2Config:
    config = read_json(folder / "config.json")
    config_class = ConvNextV2FCMAEConfig if config.get("model_type") == FCMAE_MODEL_TYPE else ConvNextV2Config
    try:
        return config_class.from_dict(config)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'} is not valid: {' '.join(str(error).split())}") from error
