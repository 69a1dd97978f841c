"""Models whose weights FSDP2 shards over processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator, DistributedType
from accelerate.utils import get_mixed_precision_context_manager
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from training.settings.checks import check


def adapt_to_sharding(accelerator: Accelerator, model: Any) -> None:
    """Let a model that FSDP2 will shard compute under autocast, as any other does. Call it before `prepare`.

    Accelerate would have FSDP2 round all weights, and all that goes into the model and comes out of it, to the half
    precision of the run: the noise of the masks, of which much would then be equal, the pixels to be predicted, the
    statistics of batch normalisation, and the losses.
    """
    if not accelerator.is_fsdp2:
        return
    plugin: Any = accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    if accelerator.native_amp:
        autocast: Any = get_mixed_precision_context_manager(True, accelerator.autocast_handler)  # type: ignore[arg-type]
        model.forward = autocast(model.forward)
    try:
        model.get_input_embeddings()
    except NotImplementedError:  # in Transformers' models for masks; Accelerate asks, and takes None for an answer
        model.get_input_embeddings = lambda: None


def refuse_sharding(accelerator: Accelerator) -> None:
    """Refuse FSDP where images of several sizes take several numbers of passes: each gathers weights from all."""
    kind = accelerator.distributed_type
    rule = "be another than FSDP: with images of several sizes, processes would wait for each other's weights"
    check("distributed_type", kind.value, kind != DistributedType.FSDP, rule)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather the weights that FSDP2 shards with the model itself, so that a part of it can be called alone."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()
