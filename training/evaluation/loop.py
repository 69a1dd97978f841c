"""The pass over a loader that every evaluation makes, batches of images of different sizes, and logits of a batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, get_worker_info

Key = tuple[int, ...]  # identifies an image of a loader


def collate_lists(samples: list[dict[str, Any]], columns: Sequence[str]) -> dict[str, Any]:
    """A batch of images of different sizes as lists, with `keys` `(B, 2)` that identify the images."""
    worker = get_worker_info()
    number = 0 if worker is None else worker.id
    keys = torch.tensor([(number, sample["seed"]) for sample in samples])
    return {"keys": keys, **{name: [sample[name] for sample in samples] for name in columns}}


def prepare_lists(accelerator: Accelerator, loader: DataLoader[Any]) -> Any:
    """Prepare a loader whose batches `collate_lists` makes.

    By default, one process reads a stream, and Accelerate divides its batches by the first axis of their tensors, which
    is no axis of images here. Therefore every process reads the stream and keeps its share. To fill the last batches,
    images are repeated; `pass_over` leaves the repetitions out.
    """
    config = accelerator.dataloader_config
    usual, config.dispatch_batches = config.dispatch_batches, False
    prepared = accelerator.prepare(loader)
    config.dispatch_batches = usual
    return prepared


# Accelerate draws a seed for the loader of a stream. The fork keeps the random state of training unchanged.
@torch.random.fork_rng(devices=[])
@torch.no_grad()
def pass_over(
    accelerator: Accelerator,
    model: nn.Module,
    loader: DataLoader[Any],
    measure: Callable[[Any], tuple[Tensor, ...] | list[Any]],
    add: Callable[..., None],
    is_stopped: Callable[[], bool],
) -> bool:
    """Call `add` with what all processes measured on each batch; every image counts once.

    `measure(batch)` gives tensors with a row for each image, or a list with an object for each image. The result is
    false if `is_stopped` became true after a batch, in all processes.
    """
    model.eval()
    seen: set[Key] = set()
    for batch in loader:
        measured = measure(batch)
        is_list = isinstance(measured, list)
        gathered: Any = accelerator.gather_for_metrics(measured, use_gather_object=is_list)
        parts = [gathered] if is_list else list(gathered)
        if "keys" in batch:
            keys: Any = accelerator.gather_for_metrics(batch["keys"].to(accelerator.device))
            parts = without_repetitions(parts, keys, seen)
        add(*parts)
        if is_stopped():
            return False
    return True


def logits_of(accelerator: Accelerator, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The logits of a classifier `(B, num_labels)`, float32, of the images of a batch."""
    with accelerator.autocast():
        return model(pixel_values=batch["pixel_values"].to(accelerator.device)).logits.float()


def without_repetitions(parts: list[Any], keys: Tensor, seen: set[Key]) -> list[Any]:
    """The rows of tensors and lists whose keys are not in `seen`, which gets them."""
    new = []
    for row, key in enumerate(map(tuple, keys.tolist())):
        if key not in seen:
            new.append(row)
            seen.add(key)
    return [part[new] if isinstance(part, Tensor) else [part[row] for row in new] for part in parts]
