"""Seconds that checkpoints take: of each size, and of the small files of hundreds of training processes."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.at_scale.shards import sizes
from benchmarks.shared.measure import Row
from hf_convnextv2 import ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining, create_image_processor
from training.models.averages import create_ema
from training.run.checkpoints import Checkpoints, find_damage, progress_file
from training.run.plan import make_plan
from training.settings.scripts import PretrainSettings

SMALL: dict[str, Any] = {"hidden_sizes": [8, 8], "depths": [1, 1], "decoder_hidden_size": 8, "image_size": 32}
READERS = 16  # of a process


def measure_size(size: str, folder: str) -> Row:
    """Save weights, AdamW's state and an average as a run does, and read them from the disk as a resume does."""
    accelerator, checkpoints = prepare(ConvNextV2FCMAEConfig.from_size(size), folder, averaged=True)
    seconds: dict[str, float] = {}
    with timed(seconds, "save, s"):
        checkpoints.save(1, batches={}, log={})
    path = Path(folder, "checkpoint-1")
    num_bytes = sum(sizes(path))
    forget_cached(path)
    with timed(seconds, "check, s"):
        damage = find_damage(path)
    assert not damage, damage
    forget_cached(path)
    with timed(seconds, "load, s"):
        accelerator.load_state(str(path))
    shutil.rmtree(path)
    return {"size": size, "GB": num_bytes / 1e9, **seconds, "GB/s of a save": num_bytes / 1e9 / seconds["save, s"]}


def measure_files(num_processes: int, folder: str) -> Row:
    """Complete a checkpoint of a small model with the files of so many processes, check it, and read their progress."""
    accelerator, checkpoints = prepare(ConvNextV2FCMAEConfig(**SMALL), folder, averaged=False)
    partial, final = Path(folder, ".checkpoint-1.partial"), Path(folder, "checkpoint-1")
    accelerator.save_state(str(partial))
    readers = [[rank, [[3, 1, 120, 500]], 0, []] for rank in range(READERS)]
    progress = {"batches": {"samples_seen": 10**6, "readers": readers, "problems": []}, "log": {"window": [0.1] * 3}}
    for rank in range(num_processes):
        if rank:
            shutil.copy(partial / "random_states_0.pkl", partial / f"random_states_{rank}.pkl")
        progress_file(partial, rank).write_text(json.dumps(progress))
    seconds: dict[str, float] = {}
    with timed(seconds, "complete, s"):
        checkpoints.complete(partial, final, {"step": 1, "num_processes": num_processes})
    with timed(seconds, "check, s"):
        find_damage(final)
    with timed(seconds, "read progress, s"):
        checkpoints.read_progress(final, num_processes)
    row: Row = {"processes": num_processes, "files": len(list(sizes(final))), "MB": sum(sizes(final)) / 1e6, **seconds}
    shutil.rmtree(final)
    return row


def prepare(config: ConvNextV2FCMAEConfig, folder: str, averaged: bool) -> tuple[Accelerator, Checkpoints]:
    """An accelerator with a model, its optimizer's state and perhaps an average, and what saves them."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=True)
    settings = PretrainSettings(dataset_name="images", output_dir=folder, ema_decay=0.9999 if averaged else 0.0)
    model = ConvNextV2ForPreTraining(config)
    ema = create_ema(model, settings.optimizer.ema_decay, accelerator)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        moments = {name: torch.rand_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}
    processor = create_image_processor(model.config)
    plan = make_plan(settings.schedule, settings.data.per_device_train_batch_size, 10**6, 1)
    accelerator.prepare(model, optimizer)
    if ema is not None:
        accelerator.register_for_checkpointing(ema)
    own = (settings.checkpoints, settings.record(), model, processor, plan)
    return accelerator, Checkpoints(accelerator, Path(folder), *own)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Record the seconds of the block."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def forget_cached(folder: Path) -> None:
    """Let the system drop the content of these files from memory, so that they are read from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
