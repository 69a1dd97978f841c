"""When a layer may be computed from its parameters, on a fast path of its own, instead of by calling its module.

A fast path must give what the call would give: these functions find out whether it would.
"""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

PLAIN_PARAMETERS = (nn.Parameter, Tensor, type(None))


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` runs `kind.forward` on plain parameters and nothing else.

    False for adapters, quantised and offloaded layers, and wherever a hook of this module or of all modules would be
    called. False too in a trace, which would keep the chunks of its example, and under `torch.func`, whose transforms
    know PyTorch's own operations only.
    """
    if type(module) is not kind or "forward" in module.__dict__:
        return False
    if torch._C._get_tracing_state() is not None or is_transformed() or _has_hook(module):
        return False
    return all(type(parameter) in PLAIN_PARAMETERS for parameter in module._parameters.values())


def _has_hook(module: nn.Module) -> bool:
    """Whether a call of the module would call a hook."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    return not torch.compiler.is_compiling() and bool(_has_any_global_hook())


def is_plain_conv(conv: nn.Conv2d, stride: tuple[int, ...], padding: tuple[int, ...], groups: int) -> bool:
    """Whether `conv` is a plain convolution with these settings, undilated and padded with zeros."""
    settings = (conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return is_plain(conv, nn.Conv2d) and settings == (stride, padding, (1, 1), groups, "zeros")


def has_affine(module: nn.Module) -> bool:
    """Whether a linear layer or norm has both a weight and a bias."""
    return module.weight is not None and module.bias is not None


def is_transformed() -> bool:
    """Whether `torch.func` (`vmap`, `grad`, `jvp`, ...) or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_batch_of_gradients(grad: Tensor) -> bool:
    """Whether `grad` holds several gradients, as `is_grads_batched` and `jacobian(vectorize=True)` pass backwards."""
    if torch.compiler.is_compiling():
        return False
    return is_transformed() or torch._C._functorch.is_legacy_batchedtensor(grad)  # type: ignore[attr-defined]
