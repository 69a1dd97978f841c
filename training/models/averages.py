"""The moving average of the weights, and the final model that a run saves."""

from typing import Any, TypeVar

from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel

from training.settings.checks import check

Model = TypeVar("Model", bound=PreTrainedModel)
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def create_ema(model: nn.Module, decay: float, accelerator: Accelerator) -> AveragedModel | None:
    """Create the exponential moving average of the weights, or None without one. Call it before `prepare`."""
    if not decay:
        return None
    kind = accelerator.distributed_type
    check(
        "ema_decay", decay, kind not in SHARDED, f"be 0 with {kind.value}, which leaves a process parts of the weights"
    )
    return AveragedModel(model.to(accelerator.device), multi_avg_fn=get_ema_multi_avg_fn(decay))


def update_average(ema: AveragedModel | None, model: nn.Module) -> None:
    """Update the moving average with the model's weights, if there is one."""
    if ema is not None:
        ema.update_parameters(model)


def final_model(
    model_class: type[Model], accelerator: Accelerator, trained: nn.Module, ema: AveragedModel | None
) -> Model:
    """The model that a run saves and evaluates: the averaged weights, or the trained ones, gathered if need be.

    Call it in every process.
    """
    if ema is not None:
        return ema.module  # type: ignore[return-value]
    unwrapped: Any = accelerator.unwrap_model(trained, keep_fp32_wrapper=False)
    if accelerator.distributed_type not in SHARDED:
        return unwrapped
    weights = accelerator.get_state_dict(trained)
    whole = model_class(unwrapped.config)
    if accelerator.is_main_process:  # which alone gets them
        whole.load_state_dict(weights)
    whole.to(accelerator.device)  # type: ignore[arg-type]
    broadcast(list(whole.state_dict().values()))
    return whole
