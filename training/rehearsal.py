"""What a dry run finds out and prints: the plan, and a few real forward and backward passes of it."""

import dataclasses
import json
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn

from training.batches import TrainBatches
from training.config import TrainingConfig
from training.plan import Plan
from training.sources import Source, features_of

WARM_UP, MEASURED = 2, 5  # forward and backward passes


def print_plan(
    accelerator: Accelerator,
    config: TrainingConfig,
    plan: Plan,
    sources: Sequence[Source],
    model: nn.Module,
    scale: Callable[[str], float],
    measured: dict[str, Any],
) -> None:
    """What a dry run shows, as JSON: settings, data, schedule, learning rates, parameters, memory and time."""
    if not accelerator.is_main_process:
        return
    resolved = {
        "settings": dataclasses.asdict(config),
        "data": [describe_source(source) for source in sources],
        "plan": dataclasses.asdict(plan),
        "processes": {"number": accelerator.num_processes, "type": str(accelerator.distributed_type.value)},
        "learning_rates": learning_rates(model, plan.learning_rate, scale),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **measured,
    }
    print(json.dumps(resolved, indent=2))


def describe_source(source: Source) -> dict[str, Any]:
    """How a source is read."""
    shape = {"examples": len(source)} if isinstance(source, Dataset) else {"shards": source.num_shards}
    return {"streamed": not isinstance(source, Dataset), **shape, "columns": list(features_of(source))}


def learning_rates(model: nn.Module, learning_rate: float, scale: Callable[[str], float]) -> dict[str, float]:
    """The highest learning rate of each layer, from the input on."""
    return {layer_of(name): learning_rate * scale(name) for name, _ in model.named_parameters()}


def layer_of(name: str) -> str:
    """A parameter's layer: stem, downsampling or block of a stage, or what is outside the encoder."""
    parts = name.split(".")
    if "layers" in parts:
        return ".".join(parts[: parts.index("layers") + 2])
    inner = next((i for i, part in enumerate(parts) if part in ("embeddings", "downsampling_layer")), None)
    return ".".join(parts[: inner + 1]) if inner is not None else parts[0] if len(parts) == 2 else ".".join(parts[:2])


def rehearse(
    accelerator: Accelerator,
    trained: nn.Module,
    optimizer: Any,
    prepared: Iterator[dict[str, Any]],
    batches: TrainBatches,
    config: TrainingConfig,
    plan: Plan,
    teacher: nn.Module | None = None,
) -> dict[str, Any]:
    """Speed and memory of some forward and backward passes on real batches; the weights are not those of a run then.

    `prepared` are the `batches` as the model takes them, on its device.
    """
    trained.train()
    seconds, waited = [], []
    for batch_number in range(WARM_UP + MEASURED):
        start, waited_before = time.perf_counter(), batches.seconds_waited
        loss = trained(**next(prepared)).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        if batch_number >= WARM_UP:
            seconds.append(time.perf_counter() - start)
            waited.append(batches.seconds_waited - waited_before)
    step = median(seconds) * config.gradient_accumulation_steps
    return {
        "memory": memory(trained, optimizer, config, teacher),
        "seconds_per_step": step,
        "images_per_second": plan.total_batch_size / step,
        "data_wait": sum(waited) / sum(seconds),
        "hours": step * plan.max_steps / 3600,
    }


def memory(
    model: nn.Module, optimizer: Any, config: TrainingConfig, teacher: nn.Module | None = None
) -> dict[str, float]:
    """MiB of one process: what weights, gradients, optimizer, average and teacher take, and the most held so far."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    moments = sum(
        value.nbytes for state in optimizer.state.values() for value in state.values() if hasattr(value, "nbytes")
    )
    held = 2 * weights + moments + weights * bool(config.ema_decay)
    held += sum(parameter.nbytes for parameter in teacher.parameters()) if teacher is not None else 0
    if torch.accelerator.is_available():
        most = torch.accelerator.max_memory_allocated()
    else:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kiB on Linux
    return {"weights_gradients_and_optimizer_MiB": held / 2**20, "peak_MiB": most / 2**20}
