"""Losses and gradients on the GPU against float64 on the processor, and against other code for the same loss.

What is soon compared comes first: the kernels alone, then small eager models, then compiled ones. The images are small,
for float64 is slow on a processor. An error of gradients is ||a - b|| / ||b|| over the gradients of all parameters
together.
"""

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.packed_layers import packed_convolution, packed_mlp
from benchmarks.gpu.precision import allow_tf32, autocast
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.subjects import NUM_SETS, ONE_BLOCK_A_STAGE, Loss, Subject, classifier, convmae, fcmae, model_loss
from benchmarks.shared.classifiers import V1_BLOCKS

BOUNDS = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 3e-2}
NO_FURTHER = 1.25  # times the peer's distance from float64: both are chance
LOSS_SCALE = 2.0**10  # as a gradient scaler's: most gradients are too small for float16
FIRST_GUESS = {"eager": 5.0, "compiled": 30.0}  # seconds of a comparison before there is one to learn from
CAUTION = 1.5  # times what one before took
PROCESSOR = torch.device("cpu")
MAX_THREADS = 4  # of the processor: small operations would only wait for more
CELL_SIDES = (4, 1)  # of the cells that are convolved alone
TEACHER: dict[str, Any] = {"target_type": "pixel+feature", "feature_target_dim": 24}


class Found(NamedTuple):
    """A loss, and the gradients of all parameters, one after the other, in float64 on the processor."""

    loss: float
    gradients: Tensor


def run(settings: argparse.Namespace, rows: Rows) -> None:
    allow_tf32(False, settings.device)
    torch.set_num_threads(min(MAX_THREADS, torch.get_num_threads()))
    guesses = dict(FIRST_GUESS)
    for mode, create in plan(settings):
        guesses[mode] = compare(create, settings, rows, mode, guesses[mode])


def plan(settings: argparse.Namespace) -> list[tuple[str, Callable[[], Subject]]]:
    """Modes and what is compared in them."""
    planned = [(mode, create) for mode in settings.modes for create in subjects(settings, mode)]
    if "eager" in settings.modes:
        planned = [*(("eager", create) for create in layers(settings)), *planned]
        if settings.larger_size:
            planned.append(("eager", partial(fcmae, settings, settings.larger_size)))
    return planned


def layers(settings: argparse.Namespace) -> list[Callable[[], Subject]]:
    return [*(partial(packed_convolution, settings, side) for side in CELL_SIDES), partial(packed_mlp, settings)]


def subjects(settings: argparse.Namespace, mode: str) -> list[Callable[[], Subject]]:
    """The models. Compiled ones have one block a stage: more of them would only take longer to compile."""
    size = settings.correct_size
    short: dict[str, Any] = {"depths": ONE_BLOCK_A_STAGE} if mode == "compiled" else {}
    return [
        partial(fcmae, settings, size, **short),
        partial(fcmae, settings, size, num_visible_sets=NUM_SETS, **short),
        partial(fcmae, settings, size, **TEACHER, **short),
        partial(classifier, settings, size, **short),
        partial(convmae, settings),
        partial(classifier, settings, size, **V1_BLOCKS, **short),
    ]


def compare(create: Callable[[], Subject], settings: argparse.Namespace, rows: Rows, mode: str, guess: float) -> float:
    """Add the rows of a subject, unless they would take too long, and return a guess of the next one's seconds."""
    if rows.seconds_left() < guess:
        rows.leave_out(f"a comparison of {mode} models")
        return guess
    start = time.monotonic()
    subject = create()
    exact = gradients(subject.model.double(), subject.inputs, PROCESSOR)
    subject.model.float()
    of_reference, longest = time.monotonic() - start, 0.0
    for dtype in settings.dtypes:
        if rows.seconds_left() < CAUTION * longest:
            rows.leave_out(f"{subject.name}, {mode}, {dtype}")
            continue
        start = time.monotonic()
        backend = settings.backend if mode == "compiled" else None
        ours = gradients(subject.model, subject.inputs, torch.device(settings.device), dtype, backend=backend)
        add_row(rows, subject.name, mode, dtype, "float64 on the processor", ours, exact)
        if subject.peer is not None:
            add_peer(subject, settings.device, rows, mode, dtype, ours, exact)
        longest = max(longest, time.monotonic() - start)
    torch.compiler.reset()
    # An eager one waits for new variants of kernels, which those after it have.
    return guess if mode == "eager" else CAUTION * (of_reference + longest)


def add_peer(subject: Subject, device: str, rows: Rows, mode: str, dtype: str, ours: Found, exact: Found) -> None:
    """In float32 both must agree; in half precision ours may be no further from float64 than another library is."""
    if dtype != "float32" and subject.peer is subject.model:
        return
    assert subject.peer_loss is not None
    peer = gradients(subject.peer, subject.inputs, torch.device(device), dtype, loss=subject.peer_loss)
    if dtype == "float32":
        add_row(rows, subject.name, mode, dtype, subject.peer_name, ours, peer)
        return
    bound = NO_FURTHER * relative(peer.gradients, exact.gradients)
    against = f"float64: {NO_FURTHER} x the error of {subject.peer_name}"
    add_row(rows, subject.name, mode, dtype, against, ours, exact, bound)


def add_row(
    rows: Rows, name: str, mode: str, dtype: str, against: str, ours: Found, other: Found, bound: float | None = None
) -> None:
    """The loss keeps to the bound of its dtype, the gradients to `bound` if one is given."""
    of_loss = abs(ours.loss - other.loss) / abs(other.loss)
    of_gradients = relative(ours.gradients, other.gradients)
    bound = BOUNDS[dtype] if bound is None else bound
    rows.add(
        what=name,
        mode=mode,
        dtype=dtype,
        against=against,
        **{"error of the loss": of_loss, "error of the gradients": of_gradients, "bound": bound},
        ok=of_loss <= BOUNDS[dtype] and of_gradients <= bound,
    )


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def gradients(
    model: Any,
    inputs: dict[str, Tensor],
    device: torch.device,
    dtype: str = "float32",
    loss: Loss = model_loss,
    backend: str | None = None,
) -> Found:
    """A forward and a backward pass of a copy of the model; compiled where a backend is named."""
    model = copy.deepcopy(model).to(device)
    weights = next(model.parameters())
    moved = {
        name: value.to(device, weights.dtype if value.is_floating_point() else None) for name, value in inputs.items()
    }
    forward = model if backend is None else torch.compile(model, fullgraph=True, backend=backend)
    with autocast(device.type, dtype):
        value = loss(forward, moved)
    scale = LOSS_SCALE if dtype == "float16" else 1.0
    (value * scale).backward()
    flat = [parameter.grad.double().cpu().flatten() / scale for parameter in model.parameters()]
    return Found(value.item(), torch.cat(flat))
