"""The calls that are timed and profiled: ours and the peers', eager, captured, compiled and compiled as CUDA graphs.

What: "inference" and "training" of the classifier (a step without its optimizer), "step" of FCMAE, "views" (a step on
four complementary views of each image) and "encoder" of FCMAE, forward and backward.
"""

import argparse
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.bounds import Work, blocks_of_encoder, bytes_moved, operations_of
from benchmarks.gpu.captured import captured
from benchmarks.gpu.precision import autocast
from benchmarks.shared.classifiers import create_model
from benchmarks.shared.measure import Call
from hf_convnextv2 import ConvNextV2Config, ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining
from hf_convnextv2.configuration_convnextv2 import SIZES
from hf_convnextv2.masking import count_visible, visible_ids
from hf_convnextv2.packing import one_view
from tests import masked_dense

NUM_VIEWS = 4
CLASSIFIER = ("inference", "training")
OURS, GRAPHS = "ours", "ours as CUDA graphs"


class Case(NamedTuple):
    what: str
    size: str
    batch: int
    dtype: str

    @classmethod
    def parse(cls, text: str) -> "Case":
        what, size, batch, dtype = text.split(":")
        return cls(what, size, int(batch), dtype)

    @property
    def is_training(self) -> bool:
        return self.what != "inference"

    def __str__(self) -> str:
        return ":".join(map(str, self))

    @property
    def num_blocks(self) -> int:
        return sum(SIZES[self.size][0])


def contenders(case: Case, settings: argparse.Namespace, mode: str) -> dict[str, Callable[[], Call]]:
    """What makes the call of each contender, by name, ours first."""
    if case.what in CLASSIFIER:
        names = [OURS, "transformers", *(["timm"] if find_spec("timm") else [])]
        makers = {name: lambda name=name: classifier_call(name, case, settings, mode) for name in names}
    else:
        model, pixel_values, noise = create_fcmae(case, settings.image_size, settings.device)
        peers = {"views": [], "encoder": ["masked-dense", "dense"]}.get(case.what, ["masked-dense"])
        losses = {name: fcmae_loss(name, case.what, model, pixel_values, noise) for name in [OURS, *peers]}
        makers = {
            name: lambda name=name: step(compile_as(losses[name], name, mode, settings), model, case, settings)
            for name in losses
        }
    if mode == "captured":
        return captured(makers, settings.device)
    if mode == "compiled" and settings.device == "cuda":
        makers |= {GRAPHS: graphs_of(case, settings)}
    return makers


def graphs_of(case: Case, settings: argparse.Namespace) -> Callable[[], Call]:
    """Ours as CUDA graphs, on a model of its own."""

    def make() -> Call:
        if case.what in CLASSIFIER:
            return classifier_call(OURS, case, settings, "graphs")
        model, pixel_values, noise = create_fcmae(case, settings.image_size, settings.device)
        loss = fcmae_loss(OURS, case.what, model, pixel_values, noise)
        return step(compile_as(loss, OURS, "graphs", settings), model, case, settings)

    return make


def compile_as(function: Any, name: str, mode: str, settings: argparse.Namespace) -> Any:
    """Ours must be one graph; the peers may have breaks."""
    if mode in ("eager", "captured"):
        return function
    if mode == "graphs":
        compiled = torch.compile(function, fullgraph=True, mode="reduce-overhead")

        def replay(*inputs: Any) -> Any:
            torch.compiler.cudagraph_mark_step_begin()  # what the last call returned may be overwritten
            return compiled(*inputs)

        return replay
    return torch.compile(function, fullgraph=name == OURS, backend=settings.backend)


def step(loss: Callable[[], Tensor], model: Any, case: Case, settings: argparse.Namespace) -> Call:
    """Forward and backward, and the gradients are dropped."""

    def call() -> None:
        with autocast(settings.device, case.dtype):
            value = loss()
        value.backward()
        model.zero_grad()

    return call


def classifier_call(library: str, case: Case, settings: argparse.Namespace, mode: str) -> Call:
    """timm's model and images are channels-last, as it is fastest; ours arranges its maps itself."""
    with torch.device(settings.device):  # where random weights take no time
        model: Any = create_model(library, case.size)
    model.to(settings.device).train(case.what == "training")
    pixel_values = torch.randn(case.batch, 3, settings.image_size, settings.image_size, device=settings.device)
    if library == "timm":
        model = model.to(memory_format=torch.channels_last)
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(case.batch, device=settings.device)
    forward = compile_as(model, library, mode, settings)

    def logits() -> Tensor:
        output = forward(pixel_values)
        return output if isinstance(output, Tensor) else output.logits

    def inference() -> None:
        with torch.inference_mode(), autocast(settings.device, case.dtype):
            logits()

    if case.what == "inference":
        return inference
    return step(lambda: F.cross_entropy(logits().float(), labels), model, case, settings)


def create_fcmae(case: Case, image_size: int, device: str) -> tuple[Any, Tensor, Tensor]:
    """A model, images and the noise of their masks."""
    torch.manual_seed(0)
    with torch.device(device):  # where random weights take no time
        model: Any = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig.from_size(case.size, **sets_of(case.what)))
    model.to(device).train()
    pixel_values = torch.randn(case.batch, 3, image_size, image_size, device=device)
    return model, pixel_values, torch.rand(case.batch, (image_size // model.config.cell_size) ** 2, device=device)


def fcmae_loss(name: str, what: str, model: Any, pixel_values: Tensor, noise: Tensor) -> Callable[[], Tensor]:
    """The loss of a contender. Masked-dense has its mask made beforehand; only ours makes it in each call."""
    masked = model.random_masking(noise)[0][: len(noise)]
    grid = tuple(side // model.config.cell_size for side in pixel_values.shape[2:])
    visible = one_view(visible_ids(masked, int((~masked[0]).sum())))

    def masked_dense_step() -> Tensor:
        logits = masked_dense.decode(model, masked_dense.encode(model, pixel_values, masked)[-1], masked)
        return model.forward_loss(pixel_values, logits, masked)  # without a selection whose size is data

    if what == "encoder":
        return {
            OURS: lambda: model.forward_encoder(pixel_values, visible, grid).maps[-1].float().square().mean(),
            "masked-dense": lambda: masked_dense.encode(model, pixel_values, masked)[-1].float().square().mean(),
            "dense": lambda: model.convnextv2(pixel_values).last_hidden_state.float().square().mean(),
        }[name]
    return masked_dense_step if name == "masked-dense" else lambda: model(pixel_values, noise=noise).loss


def work_of(case: Case, image_size: int) -> Work:
    """What a call of ours must do."""
    if case.what in CLASSIFIER:
        config: Any = ConvNextV2Config.from_size(case.size)
        blocks = blocks_of_encoder(config, case.batch * (image_size // config.cell_size) ** 2)
    else:
        config = ConvNextV2FCMAEConfig.from_size(case.size, **sets_of(case.what))
        blocks = blocks_of_fcmae(config, case, image_size)
    operations, num_parameters = counts_of_image(case.what, case.size, image_size)
    element_size = 4 if case.dtype == "float32" else 2
    moved = bytes_moved(blocks, num_parameters, element_size, case.is_training)
    return Work(operations * case.batch, moved)


@cache
def counts_of_image(what: str, size: str, image_size: int) -> tuple[int, int]:
    """Operations of a call of ours on one image, counted on the processor, and parameters: both are soon known there.

    Only PyTorch's own operations can be counted, and on a processor there are no others.
    """
    one = Case(what, size, 1, "float32")
    settings = argparse.Namespace(device="cpu", image_size=image_size)
    if what in CLASSIFIER:
        num_parameters = sum(parameter.numel() for parameter in create_model(OURS, size).parameters())
        inference = classifier_call(OURS, one._replace(what="inference"), settings, "eager")
        return operations_of(inference, one.is_training), num_parameters
    model, pixel_values, noise = create_fcmae(one, image_size, "cpu")
    loss = fcmae_loss(OURS, what, model, pixel_values, noise)
    return operations_of(loss, one.is_training), model.num_parameters()


def sets_of(what: str) -> dict[str, Any]:
    return {"num_visible_sets": NUM_VIEWS} if what == "views" else {}


def blocks_of_fcmae(config: Any, case: Case, image_size: int) -> list[tuple[int, int]]:
    """The encoder's blocks see visible cells, those of all views together; the decoder's see all cells of each view."""
    num_cells, num_views = (image_size // config.cell_size) ** 2, config.num_visible_sets
    seen = num_cells if num_views > 1 else count_visible(num_cells, config.mask_ratio)
    blocks = blocks_of_encoder(config, case.batch * seen)
    if case.what == "encoder":
        return blocks
    decoder = (case.batch * num_views * num_cells, config.decoder_hidden_size)
    return blocks + [decoder] * config.decoder_num_hidden_layers
