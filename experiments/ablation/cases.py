"""What is run of the arms: cases, which are an arm with a seed, their pre-trainings, and the flags of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from experiments.ablation.arms import (
    ARMS,
    BLOCKS,
    FINETUNING_STEPS,
    GATE,
    PRETRAINING_STEPS,
    PRETRAININGS,
    Arm,
)
from experiments.solar_cells import scratch_flags

PRETRAINING, FINETUNING = "pretrain_demo", "finetune_demo"  # recipes
QUARTERS = 4  # of a pre-training, at which collapse is looked for
COMMON = ("--with_tracking=false", "--check_images=false")


@dataclass(frozen=True)
class Length:
    """Optimizer steps of an ordinary pre-training and of fine-tuning."""

    pretraining: int = PRETRAINING_STEPS
    finetuning: int = FINETUNING_STEPS

    def of_pretraining(self, name: str) -> int:
        """The steps of one of `PRETRAININGS`."""
        return self.pretraining * PRETRAININGS[name].length

    def quarter(self, name: str) -> int:
        return max(1, self.of_pretraining(name) // QUARTERS)


class Case(NamedTuple):
    """An arm, or a start at a learning rate of block G, and a seed."""

    key: str
    seed: int

    def __str__(self) -> str:
        return f"{self.key}-{self.seed}"

    @property
    def arm(self) -> Arm:
        return GATE[self.key].arm if self.is_gate else ARMS[self.key]

    @property
    def is_gate(self) -> bool:
        return self.key in GATE


def cases_of(blocks: Sequence[str], seeds: Sequence[int] | None = None) -> list[Case]:
    """The cases of blocks, each once; of those seeds alone, if they are given. Block G has seeds of its own."""
    found = [Case(key, seed) for name in blocks for key in BLOCKS[name].arms for seed in BLOCKS[name].seeds]
    wanted = [case for case in found if seeds is None or case.is_gate or case.seed in seeds]
    return list(dict.fromkeys(wanted))


def pretrainings_of(cases: Sequence[Case]) -> list[tuple[str, int]]:
    """The pre-trainings that cases begin with, each once."""
    found = [(case.arm.pretraining, case.seed) for case in cases]
    return list(dict.fromkeys((name, seed) for name, seed in found if name is not None))


def encoder_of(case: Case) -> str | None:
    """What is replaced in the encoder that a case fine-tunes."""
    return None if case.arm.pretraining is None else PRETRAININGS[case.arm.pretraining].encoder


def pretraining_flags(name: str, seed: int, length: Length) -> list[str]:
    """The flags of a pre-training, without its images and its folder."""
    steps = length.of_pretraining(name)
    counts = {"max_train_steps": steps, "warmup_steps": steps // 9, "seed": seed, "logging_steps": logging_steps(steps)}
    counts |= {"checkpointing_steps": length.quarter(name)}
    return [*PRETRAININGS[name].flags, *(f"--{key}={value}" for key, value in counts.items()), *COMMON]


def finetuning_flags(arm: Arm, seed: int, rate: float, steps: int) -> list[str]:
    """The flags of fine-tuning, without its images, its folder and its start."""
    fresh = [] if arm.pretraining is not None else [*scratch_flags(PRETRAINING), *arm.model]
    counts = {"max_train_steps": steps, "warmup_steps": steps // 8, "eval_steps": steps, "seed": seed}
    counts |= {"logging_steps": logging_steps(steps)}
    flags = (f"--{key}={value}" for key, value in counts.items())
    return [*fresh, f"--learning_rate={rate:g}", *flags, *COMMON]


def logging_steps(steps: int) -> int:
    """The recipes' 10, or less in a short run: its speed is read from the log."""
    return max(1, min(10, steps // 4))
