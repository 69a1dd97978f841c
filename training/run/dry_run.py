"""The output of a dry run: the plan of a run and the measurements of a few steps, as text or as JSON."""

import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, TextIO

from accelerate import Accelerator
from datasets import Dataset
from torch import nn

from training.data.labels import class_list
from training.data.sources import Source, features_of
from training.models.architecture import encoder_config
from training.run.plan import Plan
from training.settings.families import FAMILIES
from training.settings.labels import REGRESSION
from training.settings.run import RunSettings
from training.settings.scripts import Record

MOST_NAMES = 10  # classes
SLOW_DATA = 0.1  # share of the time spent waiting for data from which on the dry run gives advice
PREFIXES = re.compile(r"^(?:(?:convnextv2|convmae)\.)?(?:backbone\.)?(?:encoder\.)?")  # of the names of layers
UNITS = (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))
STDOUT: list[TextIO] = []  # the original stdout, for the JSON alone, while everything else is printed to stderr


@contextmanager
def json_alone(settings: RunSettings) -> Iterator[None]:
    """If JSON is asked for, send all other output to stderr, so that stdout holds nothing but the JSON."""
    if not settings.json:
        yield
        return
    STDOUT.append(sys.stdout)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = STDOUT.pop()


def print_plan(
    accelerator: Accelerator,
    record: Record,
    plan: Plan,
    sources: Sequence[Source],
    model: Any,
    rates: dict[str, float],
    measured: dict[str, Any],
    eval_source: Source | None = None,
    labels: str | None = None,
) -> None:
    """Print the plan of a run, and what was measured over a few of its steps.

    `labels` are those of an image as text.
    """
    if not accelerator.is_main_process:
        return
    encoder = encoder_config(model.config)
    resolved = {
        "settings": record.values,
        "data": [reading_of(source) for source in sources],
        "evaluation_data": None if eval_source is None else reading_of(eval_source),
        "classes": class_list(model.config) if record.task != "pretrain" else None,
        "problem_type": record.values.get("problem_type"),
        "labels": labels,
        "image": {"size": encoder.image_size, "num_channels": encoder.num_channels},
        "plan": dataclasses.asdict(plan),
        "processes": {"number": accelerator.num_processes, "type": str(accelerator.distributed_type.value)},
        "device": {"type": accelerator.device.type, "mixed_precision": str(accelerator.mixed_precision)},
        "learning_rates": rates,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **measured,
    }
    text = json.dumps(resolved, indent=2) if record.values["json"] else page(resolved)
    print(text, file=STDOUT[-1] if STDOUT else None, flush=True)


def reading_of(source: Source) -> dict[str, Any]:
    """How a source is read."""
    shape = {"examples": len(source)} if isinstance(source, Dataset) else {"shards": source.num_shards}
    return {"streamed": not isinstance(source, Dataset), **shape, "columns": list(features_of(source))}


def learning_rates(model: nn.Module, optimizer: Any) -> dict[str, float]:
    """The highest learning rate of each layer, from the input on."""
    rates = {id(weight): group["initial_lr"] for group in optimizer.param_groups for weight in group["params"]}
    named = ((layer_of(name), weight) for name, weight in model.named_parameters())
    return {layer: rates[id(weight)] for layer, weight in named if id(weight) in rates}


def layer_of(name: str) -> str:
    """The name of a parameter's layer: stem, downsampling or block of a stage, or a module outside the encoder."""
    parts = name.split(".")
    if "layers" in parts:
        return ".".join(parts[: parts.index("layers") + 2])
    if "stages" in parts:
        return ".".join(parts[: parts.index("stages") + 3])
    inner = next((i for i, part in enumerate(parts) if part in ("embeddings", "downsampling_layer")), None)
    return ".".join(parts[: inner + 1]) if inner is not None else parts[0] if len(parts) == 2 else ".".join(parts[:2])


def page(found: dict[str, Any]) -> str:
    """The plan and the measurements as text, with one line for each subject."""
    lines = [
        ("Data", data_line(found)),
        ("Values" if found.get("problem_type") == REGRESSION else "Classes", classes_line(found["classes"])),
        ("Labels", found.get("labels")),
        ("Model", model_line(found)),
        ("Machine", machine_line(found)),
        ("Steps", steps_line(found)),
        ("Learning rate", rate_line(found)),
        *(("", line) for line in layer_lines(found["learning_rates"])),
        ("Memory", memory_line(found)),
        ("Time", time_line(found)),
        ("Waiting", waiting_line(found)),
        ("Output", f"{found['settings']['output_dir']}, which a dry run leaves as it is"),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(["Dry run", *(f"  {name:{width}}  {line}" for name, line in lines if line)])


def data_line(found: dict[str, Any]) -> str:
    """The number of images to train and to evaluate on."""
    settings = found["settings"]
    names = [settings["dataset_name"], *(settings.get("mixed_dataset_names") or [])]
    sources = [f"{amount(source)} of `{settings['train_split']}`" for source in found["data"]]
    text = f"{', '.join(names)}: {', '.join(sources)} to train on"
    if found["evaluation_data"] is not None:
        return f"{text}, {amount(found['evaluation_data'])} to evaluate on"
    return text if found["classes"] is None else f"{text}, none to evaluate on"


def amount(source: dict[str, Any]) -> str:
    """The number of images of a source, or of shards of a stream."""
    return f"a stream of {source['shards']:,} shards" if source["streamed"] else f"{source['examples']:,} images"


def classes_line(classes: list[str] | None) -> str:
    """The number of classes, and the names of the first ones."""
    if classes is None:
        return ""
    more = ", ..." if len(classes) > MOST_NAMES else ""
    return f"{len(classes):,}: {', '.join(' '.join(name.split()) for name in classes[:MOST_NAMES])}{more}"


def model_line(found: dict[str, Any]) -> str:
    """The model, the weights it starts from, and the image size."""
    settings, size = found["settings"], found["image"]["size"]
    height, width = (size, size) if isinstance(size, int) else size
    start = settings["model_name_or_path"]
    title = "" if start else FAMILIES[settings["model_type"]].title
    origin = f"the weights of {start}" if start else f"{title} {settings['model_size']} from random weights"
    image = f"images of {height} x {width} pixels, {found['image']['num_channels']} channels"
    return f"{origin}, {found['parameters']:,} parameters, {image}"


def machine_line(found: dict[str, Any]) -> str:
    """The number of training processes, their device and precision."""
    number, device = found["processes"]["number"], found["device"]
    processes = "1 training process" if number == 1 else f"{number} training processes ({found['processes']['type']})"
    workers = f"`--num_workers {found['settings']['num_workers']}`"
    return f"{processes} on {device['type']}, mixed precision {device['mixed_precision']}, {workers}"


def steps_line(found: dict[str, Any]) -> str:
    """How long the run is."""
    plan, settings = found["plan"], found["settings"]
    factors = [f"{settings['per_device_train_batch_size']} in a pass"]
    factors += [f"{settings['gradient_accumulation_steps']} passes"] * (settings["gradient_accumulation_steps"] > 1)
    factors += [f"{found['processes']['number']} processes"] * (found["processes"]["number"] > 1)
    text = f"{plan['max_steps']:,} of {plan['total_batch_size']:,} images ({' x '.join(factors)})"
    if plan["steps_per_epoch"]:
        epochs = plan["max_steps"] / plan["steps_per_epoch"]
        text += f", {plan['steps_per_epoch']:,.1f} to an epoch, {epochs:,.1f} epochs"
    return text


def rate_line(found: dict[str, Any]) -> str:
    """The schedule of the learning rate."""
    plan = found["plan"]
    warm_up = f"{plan['warmup_steps']:,} steps of warm-up to " if plan["warmup_steps"] else ""
    if plan["lr_steps"]:
        return f"{warm_up}{plan['learning_rate']:.3g}, a tenth of it after each of the steps {plan['lr_steps']}"
    kind = "a cosine" if found["settings"]["lr_scheduler_type"] == "cosine" else "a straight line"
    return f"{warm_up}{plan['learning_rate']:.3g}, then {kind} to {found['settings']['min_learning_rate']:.3g}"


def layer_lines(rates: dict[str, float]) -> Iterator[str]:
    """The highest learning rates, one for each group of neighbouring layers. Nothing if all layers share one rate."""
    if len(set(rates.values())) == 1:
        return
    for rate, layers in groupby(rates, key=lambda layer: rates[layer]):
        names = [PREFIXES.sub("", layer) for layer in layers]
        yield f"{rate:.3g} in {names[0]}" + (f" to {names[-1]}" if len(names) > 1 else "")


def memory_line(found: dict[str, Any]) -> str:
    """The memory that a training process uses."""
    held, most = (found["memory"][name] for name in ("weights_gradients_and_optimizer_MiB", "peak_MiB"))
    where = "of the whole process" if found["device"]["type"] == "cpu" else "of the device"
    return f"{most:,.0f} MiB {where} at most, {held:,.1f} MiB of it weights, gradients, optimizer and averages"


def time_line(found: dict[str, Any]) -> str:
    """How long a step and the run take."""
    step = f"{found['seconds_per_step']:.3g} s a step, {found['images_per_second']:,.1f} images/s"
    return f"{step}: {duration(3600 * found['hours'])} for the run, without evaluations and checkpoints"


def waiting_line(found: dict[str, Any]) -> str:
    """The share of the time spent waiting for data, with advice where it is large."""
    share, workers = found["data_wait"], found["settings"]["num_workers"]
    advice = f": try more `--num_workers` than {workers}, or smaller files" if share > SLOW_DATA else ""
    return f"{100 * share:.0f} % of the time for images{advice}"


def duration(seconds: float) -> str:
    """Seconds as text, in the two largest units that apply."""
    parts, left = [], round(seconds)
    for unit, size in UNITS:
        count, left = divmod(left, size)
        parts += [f"{count} {unit}"] if count or parts else []
    return " ".join(parts[:2]) or "0 s"
