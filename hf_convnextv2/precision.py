"""The dtypes that statistics and the arguments of autograd functions are in."""

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics: a sum of squares over a map leaves float16's range and bfloat16's precision."""
    return torch.promote_types(dtype, torch.float32)


def cast_for_autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors as autocast would hand them to a layer; it does not reach the arguments of autograd functions."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    # Up to torch 2.12, `is_autocast_available` breaks the graph of torch.compile.
    if not torch.compiler.is_compiling() and not torch.amp.is_autocast_available(device):
        return list(tensors)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [_cast(tensor, dtype) for tensor in tensors]


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Autocast leaves float64 alone."""
    if tensor is None or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(dtype)
