"""The blocks of an encoder by their names, and what they compute.

B images, N positions of an image, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from training.evaluation.diversity import by_image
from training.models.hooks import hooked
from training.settings.analysis import ALL_BLOCKS
from training.settings.checks import check


class Block(NamedTuple):
    """A block: `stage` and `number` count from 1, the number within its stage."""

    stage: int
    number: int
    module: nn.Module

    @property
    def name(self) -> str:
        """STAGE.BLOCK, as the setting `blocks` has it."""
        return f"{self.stage}.{self.number}"


def all_blocks(encoder: Any) -> list[Block]:
    """The blocks of an encoder, in the order in which they compute."""
    stages = enumerate(encoder.encoder.stages, start=1)
    return [Block(stage, number, block) for stage, each in stages for number, block in enumerate(each.layers, start=1)]


def last_of_stages(blocks: Sequence[Block]) -> list[Block]:
    """The last block of each stage."""
    return list({block.stage: block for block in blocks}.values())


def chosen_blocks(encoder: Any, names: list[str] | None, default: list[Block]) -> list[Block]:
    """The blocks of these names, in the order of the encoder.

    Raises:
        ValueError: for a name that no block has; the message lists those that there are.
    """
    blocks = all_blocks(encoder)
    if names is None or names == ALL_BLOCKS:
        return default if names is None else blocks
    known = {block.name for block in blocks}
    stages = [f"{last.stage}.1 to {last.name}" if last.number > 1 else last.name for last in last_of_stages(blocks)]
    rule = f"be all, or some of the blocks of the model: {', '.join(stages)}"
    for name in names:
        check("blocks", name, name in known, rule)
    return [block for block in blocks if block.name in names]


@contextmanager
def outputs_seen(
    encoder: Any, blocks: Sequence[Block], pixel_values: Tensor, look: Callable[[Tensor], None]
) -> Iterator[None]:
    """Within the block, call `look` with the output `(B, N, C)` of each of the blocks, as they compute these images."""

    def see(features: Tensor) -> None:
        is_map = features.ndim == 4  # (B, C, H, W)
        look(features.flatten(2).mT if is_map else by_image(features, encoder, pixel_values))

    with hooked([block.module for block in blocks], see):
        yield
