"""What it takes to compute with a module's parameters past the module: nobody may be able to tell."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

PLAIN = (nn.Parameter, Tensor, type(None))


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` does nothing but `kind.forward`, with nobody to see it.

    No adapter, quantisation, offloading or hook, be it of the module or of all; no trace, which would keep the sizes of
    the example; and no transform of PyTorch, which knows its own operations only.
    """
    if type(module) is not kind or "forward" in module.__dict__ or torch._C._get_tracing_state() is not None:
        return False
    if is_transformed():
        return False
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    if not torch.compiler.is_compiling() and _has_any_global_hook():
        return False
    return all(type(parameter) in PLAIN for parameter in module._parameters.values())


def is_transformed() -> bool:
    """Whether `torch.func` (`vmap`, `grad`, `jvp`, ...) or forward-mode differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_batch_of_gradients(grad: Tensor) -> bool:
    """Whether `grad` is several at a time, as `is_grads_batched` and `jacobian(vectorize=True)` pass them backwards."""
    if torch.compiler.is_compiling():
        return False
    return is_transformed() or torch._C._functorch.is_legacy_batchedtensor(grad)  # type: ignore[attr-defined]


def has_affine(module: nn.Module) -> bool:
    """Whether a linear layer or norm has both a weight and a bias."""
    return module.weight is not None and module.bias is not None


def is_plain_conv(conv: nn.Conv2d, stride: tuple[int, ...], padding: tuple[int, ...], groups: int) -> bool:
    """Whether `conv` is a plain convolution with these settings: nobody has dilated it, or changed its stride."""
    settings = (conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return is_plain(conv, nn.Conv2d) and settings == (stride, padding, (1, 1), groups, "zeros")


def autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors as autocast, which does not reach autograd functions, would hand them to a layer."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t.to(dtype) if t is not None and t.dtype != torch.float64 else t for t in tensors]
