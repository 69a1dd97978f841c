"""Batch normalisation over the images of all training processes."""

from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from training.models.collectives import SumOverProcesses

Model = TypeVar("Model", bound=nn.Module)


def synchronise_batch_norm(model: Model, accelerator: Accelerator) -> Model:
    """With several processes, let each `BatchNorm2d` use the statistics of all; returns the model, changed in place.

    On a GPU they become PyTorch's `SyncBatchNorm`, which has no CPU form.
    """
    if accelerator.num_processes == 1:
        return model
    if accelerator.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[return-value]
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d
    return model


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` with the mean and variance over the batches, of equal size, of all processes."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        shape = (1, -1, 1, 1)
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        world = dist.get_world_size()
        mean = SumOverProcesses.apply(wide.mean(dim=(0, 2, 3))) / world
        centred = wide - mean.view(shape)
        variance = SumOverProcesses.apply(centred.square().mean(dim=(0, 2, 3))) / world
        self.update_statistics(mean.detach(), variance.detach(), world * input.numel() // input.shape[1])
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def update_statistics(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics towards those of this batch, as `BatchNorm2d` does."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1), share)
