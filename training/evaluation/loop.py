"""The pass over a loader that every evaluation makes."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader


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
    for batch in loader:
        measured = measure(batch)
        if isinstance(measured, list):
            add(accelerator.gather_for_metrics(measured, use_gather_object=True))
        else:
            add(*accelerator.gather_for_metrics(measured))
        if is_stopped():
            return False
    return True
