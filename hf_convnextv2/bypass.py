"""What it takes to compute with a module's parameters past the module: nobody may be able to tell."""

import torch
from torch import Tensor, nn

PLAIN = (nn.Parameter, Tensor, type(None))


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` does nothing but `kind.forward`: no adapter, quantisation, offloading or hook."""
    if type(module) is not kind or "forward" in module.__dict__:
        return False
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    return all(type(parameter) in PLAIN for parameter in module._parameters.values())


def autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors as autocast, which does not reach autograd functions, would hand them to a layer."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [tensor.to(dtype) if tensor is not None else None for tensor in tensors]
