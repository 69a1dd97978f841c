"""The loop of predict.py and embed.py over all images: it goes on from parts, names bad images, and ends in a file."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from training.console.bars import Phase
from training.data.transforms import Transform
from training.prediction.batches import Batch, ImageReader, batches, rounds
from training.prediction.parts import Answer, Parts
from training.settings.checks import check
from training.settings.prediction import PredictDataSettings

MAX_NAMED = 20  # bad images that are named in warnings


class Answering(Protocol):
    """How a model answers.

    transform: makes the model's input of an image `(C, H, W)`.
    stacks: whether the inputs have one size, so that a batch of them is one tensor.
    """

    transform: Transform
    stacks: bool

    def __call__(self, accelerator: Accelerator, model: nn.Module, batch: Batch) -> list[Answer]:
        """The answers to the images of a batch that can be read, in order."""
        ...


def alone(accelerator: Accelerator, parts: Parts) -> AbstractContextManager[None]:
    """Keep a second command from the output while a block runs: the first process, which writes it, holds the lock."""
    return parts.alone() if accelerator.is_main_process else nullcontext()


def begin(accelerator: Accelerator, parts: Parts, overwrite: bool) -> None:
    """Begin, or go on after the images that an earlier run has done; `parts.num_done` counts them in all processes."""
    if accelerator.is_main_process and parts.begin(overwrite):
        print(f"Going on after {parts.num_done:,} images, whose answers are in {parts.folder}.", flush=True)
    parts.num_done = broadcast_object_list([parts.num_done])[0]


def answer_images(
    title: str,
    accelerator: Accelerator,
    model: nn.Module,
    answers: Answering,
    reader: ImageReader,
    data: PredictDataSettings,
    parts: Parts,
) -> None:
    """Add the answers to all images that are not done to the parts, with a progress bar."""
    images, start = reader.images, parts.num_done
    loader = batches(accelerator, images, reader, data, start, answers.stacks)
    answered = answers_of_all(accelerator, model.to(accelerator.device).eval(), answers, loader)
    total = None if images.total is None else images.total - start
    with Phase(title, total, " images") as phase:
        keep(accelerator, answered, parts, phase, data.max_bad_images)


@torch.no_grad()
def answers_of_all(
    accelerator: Accelerator, model: nn.Module, answers: Answering, loader: Iterator[Batch]
) -> Iterator[list[Answer]]:
    """The answers to the next images, in order, in each process those of all."""
    for batch in rounds(loader):
        found = iter(answers(accelerator, model, batch) if len(batch["pixel_values"]) else [])
        own = [
            {"image": sample["image"], **({"error": sample["error"]} if "error" in sample else next(found))}
            for sample in batch["samples"]
        ]
        gathered: list[Answer] = gather_object(own)
        if not gathered:
            return
        yield gathered


def keep(
    accelerator: Accelerator, answered: Iterator[list[Answer]], parts: Parts, phase: Phase, most_bad: int | None
) -> None:
    """Keep the answers in parts, and name bad images; the first process does, the others go along."""
    for gathered in answered:
        phase.update(len(gathered))
        if accelerator.is_main_process:
            name_bad_images(gathered, parts.num_bad, most_bad)
            parts.add(gathered)
    if accelerator.is_main_process:
        parts.write()


def name_bad_images(answers: list[Answer], num_before: int, most: int | None) -> None:
    """Print the first bad images, and raise if there are too many; `num_before` came earlier."""
    bad = (answer for answer in answers if "error" in answer)
    for number, answer in enumerate(bad, start=num_before + 1):
        rule = f"be at least the number of bad images. {answer['image']}: {answer['error']}"
        check("max_bad_images", most, most is None or number <= most, rule)
        if number <= MAX_NAMED:
            print(f"Warning: {answer['image']}: {answer['error']}", flush=True)


def finish(parts: Parts, write: Callable[[], None], what: str, failure: str) -> None:
    """Let `write` make the output file of all parts, remove these, and say what is in the file."""
    rule = "hold images, but there is none"
    check("dataset_name", parts.record["dataset_name"], parts.num_done > 0, rule)
    write()
    parts.remove()
    bad = f"{parts.num_bad:,} of {parts.num_done:,} images {failure}." if parts.num_bad else ""
    print(f"Wrote {what} {parts.num_done:,} images to {parts.output}. {bad}".rstrip(), flush=True)
