"""What a classifier can start from: new weights, pre-training, stored weights, and the flags that say so."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from conversion.checkpoints import find_repository
from hf_convnextv2.image_processing import imagenet_statistics
from training.comparison.launching import TRAINING
from training.models.creation import SET_BY_WEIGHTS, stored_processor
from training.models.families import chosen_family
from training.models.teachers import FrozenTeacher
from training.prediction.record import stamps_of_model
from training.settings.checks import check
from training.settings.command_line import yaml_as_flags
from training.settings.comparison import CHECKPOINT, CONTINUED, FCMAE, RANDOM, TEACHER, CompareSettings
from training.settings.families import CONVNEXTV2, FAMILIES
from training.settings.model import ModelSettings, TrainedModelSettings
from training.settings.scripts import FinetuneSettings, PretrainSettings, Settings

DEFAULT_SIZE = 224  # pixels, of a model whose size no recipe says
SHAPE = ("model_type", "model_size", *SET_BY_WEIGHTS)
IMAGES = ("image_size", "num_channels", "image_mean", "image_std")
# Settings of the scripts that would make a run another one than the report says, or publish every run.
NOT_IN_RECIPES = {
    "max_train_samples": "`label_shares` says how many labels are trained on",
    "streaming": "the drawn images are stored",
    "push_to_hub": "publish the classifier that you choose, with conversion.publish",
}
FROM_NOTHING = ("--layer_decay=1.0",)  # lower rates for lower layers preserve what random weights do not have


@dataclass(frozen=True)
class Start:
    """A start of training.

    key: its name in folders.
    title: its name in tables.
    model: of stored weights as they are, or of a new model.
    pretraining: flags of pre-training; None without it.
    finetuning: flags of fine-tuning, beside the weights that pre-training gives.
    """

    key: str
    title: str
    model: TrainedModelSettings
    finetuning: tuple[str, ...]
    pretraining: tuple[str, ...] | None = None

    @property
    def is_new(self) -> bool:
        """Whether it is random weights."""
        return self.model.model_name_or_path is None and self.pretraining is None


def recipe_of(settings: CompareSettings, task: str) -> Path:
    """The recipe of `pretrain` or `finetune`."""
    given = getattr(settings.budget, f"{task}_config")
    return Path(given) if given else TRAINING / f"recipes/{task}_small_images.yaml"


def create_starts(settings: CompareSettings) -> list[Start]:
    """The starts that the settings name, in their order, each with the images that fit it.

    Raises:
        ValueError: if stored weights or a teacher cannot be found or do not fit.
    """
    recipe, _ = (read_recipe(recipe_of(settings, kind.task), kind) for kind in (PretrainSettings, FinetuneSettings))
    new, starts = new_model(settings, recipe), []
    shape = {name: getattr(new, name) for name in SHAPE if getattr(new, name) is not None}
    flags = flags_of({**shape, **of_images(new)})
    method = "FCMAE" if new.model_type == CONVNEXTV2 else FAMILIES[str(new.model_type)].title
    of_images_alone = flags_of(of_images(new))
    for kind in settings.starts.starts or []:
        if kind == RANDOM:
            starts.append(Start(RANDOM, "random weights", new, (*flags, *FROM_NOTHING)))
        elif kind == FCMAE:
            starts.append(Start(FCMAE, method, new, of_images_alone, flags))
        elif kind == TEACHER:
            name = str(settings.starts.teacher_name_or_path)
            check_teacher(name, new)
            targets = ("--target_type=pixel+feature", f"--teacher_name_or_path={name}")
            title = f"{method} with features of {short(name)}"
            starts.append(Start(f"{TEACHER}-{slug(name)}", title, new, of_images_alone, (*flags, *targets)))
        else:
            check_recipe(kind, recipe, recipe_of(settings, "pretrain"))
            starts += [of_checkpoint(kind, name, settings) for name in settings.starts.checkpoint or []]
    return told_apart(starts)


def told_apart(starts: list[Start]) -> list[Start]:
    """The starts with the keys in those titles that several have."""
    titles = [start.title for start in starts]
    twice = {title for title in titles if titles.count(title) > 1}
    return [replace(start, title=f"{start.title} ({start.key})") if start.title in twice else start for start in starts]


def read_recipe(file: Path, kind: type[Settings]) -> dict[str, Any]:
    """The settings of a recipe; raises a `ValueError` for one that its script or a comparison does not have."""
    yaml_as_flags(file, {field.name for field in kind.fields()})
    recipe = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    for name, instead in NOT_IN_RECIPES.items():
        check(f"{kind.task}_config", file, not recipe.get(name), f"not set `{name}`: {instead}")
    return recipe


def check_recipe(kind: str, recipe: dict[str, Any], file: Path) -> None:
    """Raise if the recipe of pre-training says the shape of a model, which for stored weights follows from these."""
    given = [name for name in SET_BY_WEIGHTS if recipe.get(name) is not None]
    rule = f"not set {' and '.join(given)} with the start {kind}, whose weights have their own"
    check("pretrain_config", file, kind != CONTINUED or not given, rule)


def new_model(settings: CompareSettings, recipe: dict[str, Any]) -> TrainedModelSettings:
    """A new model: as the settings say, else the recipe of pre-training."""
    given = {name: getattr(settings.starts, name) for name in ("model_size", *IMAGES)}
    values: dict[str, Any] = {name: recipe.get(name) for name in (*SHAPE, *IMAGES)}
    values |= {name: value for name, value in given.items() if value is not None}
    values["image_size"] = values["image_size"] or DEFAULT_SIZE
    for name, value in imagenet_statistics(values["num_channels"]).items():
        values[name] = values[name] or value
    return TrainedModelSettings(**values)


def of_checkpoint(kind: str, name: str, settings: CompareSettings) -> Start:
    """Stored weights, as they are or pre-trained from there, with images as their own image processor has them."""
    channels = settings.starts.num_channels
    model = TrainedModelSettings(model_name_or_path=name)
    with named_checkpoint():
        family = chosen_family(model)
        config = family.pretraining_config.from_pretrained(name)
        stored = stored_processor(model)
    size = settings.starts.checkpoint_image_size or size_of(name, stored, config.image_size)
    check("checkpoint_image_size", None, isinstance(size, int), f"be given: {name} is for images of {size} pixels")
    values: dict[str, Any] = {"image_size": size, "num_channels": channels}
    for statistic, usual in imagenet_statistics(channels).items():
        own = stored.get(statistic, [])
        values[statistic] = own if len(own) == channels else usual
    if config.num_channels != channels:
        print(f"{name} has {config.num_channels} channels: its weights are adapted to {channels}.", flush=True)
    flags, title = flags_of(values), short(name)
    if kind == CHECKPOINT:
        is_own = config.num_channels == channels and size == size_of(name, stored, None)
        frozen = model if is_own else replace(model, **values)  # its own image processor, if that fits
        return Start(f"{CHECKPOINT}-{slug(name)}", title, frozen, (f"--model_name_or_path={name}", *flags))
    cell = config.cell_size
    fits = max(size // cell, 1) * cell
    rule = f"be a multiple of {cell}, the size of a cell of {name}: `--checkpoint_image_size {fits}`"
    check("checkpoint_image_size", size, size % cell == 0, rule)
    method = "FCMAE" if family.name == CONVNEXTV2 else FAMILIES[family.name].title
    pretraining = (f"--model_name_or_path={name}", "--target_type=pixel", *flags)
    return Start(f"{CONTINUED}-{slug(name)}", f"{title}, then {method}", model, flags, pretraining)


def size_of(name: str, processor: dict[str, Any], otherwise: Any) -> Any:
    """The size of a checkpoint's images in pixels: the published one, else its image processor's, else `otherwise`.

    One number where they are square, else height and width.
    """
    published = find_repository(name)
    if published is not None:
        return published.image_size
    size = (processor.get("crop_size") if processor.get("do_center_crop") else None) or processor.get("size")
    if isinstance(size, dict):
        size = (size["height"], size["width"]) if "height" in size else size.get("shortest_edge")
    size = size or otherwise
    is_square = isinstance(size, list | tuple) and size[0] == size[1]
    return size[0] if is_square else size


def check_teacher(name: str, model: TrainedModelSettings) -> None:
    """Raise unless a teacher can be loaded, gives features and takes images of these channels."""
    teacher = FrozenTeacher(name, num_layers=1)
    teacher.num_channels(model.image_size)
    channels, count = teacher.statistics[0].shape[1], model.num_channels
    rule = f"be 1 or {channels} with `teacher_name_or_path`, whose images have {channels}"
    check("num_channels", count, count in (1, channels), rule)


def of_images(model: ModelSettings) -> dict[str, Any]:
    """The settings of a model's images."""
    return {name: getattr(model, name) for name in IMAGES}


def flags_of(values: dict[str, Any]) -> tuple[str, ...]:
    """Settings as flags."""
    flags: list[str] = []
    for name, value in values.items():
        flags += [f"--{name}", *map(str, value)] if isinstance(value, list | tuple) else [f"--{name}={value}"]
    return tuple(flags)


def short(name: str) -> str:
    """A model's name: a Hub id, or the last folder of a path."""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else Path(name).name or name


def slug(name: str) -> str:
    """A model's name for a folder, which is another one for other weights or configurations in the same place."""
    stamps = stamps_of_model(name)
    place = str(Path(name).resolve()) if stamps else name
    digest = hashlib.sha256(json.dumps([place, stamps]).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', short(name))}-{digest}"


@contextmanager
def named_checkpoint() -> Iterator[None]:
    """Let an error about stored weights name the setting of a comparison."""
    try:
        yield
    except (OSError, ValueError) as error:
        message = " ".join(str(error).split()).replace("`model_name_or_path`", "`checkpoint`")
        raise ValueError(message) from error
