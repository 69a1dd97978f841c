"""The arms of the ablations, in blocks that can be run alone; docs/ablations.md is the plan that they follow.

A pre-training and an arm are flags on top of `pretrain_demo.yaml` and `finetune_demo.yaml`. Arms share pre-trainings,
and blocks share arms: whatever is done once is used wherever it is named.
"""

from dataclasses import dataclass

NUM_CELLS = 9  # of an image of 96 pixels
PRETRAINING_STEPS = 600  # of 64 images
FINETUNING_STEPS = 308  # of 32 images: 30 epochs of 328
SHARE = 0.25  # of the 1,312 labels: 328 images
RATES = (1e-3, 5e-4)  # of fine-tuning, that block G chooses from; the recipe's first, which a tie leaves
FINETUNING_SECONDS = 0.45  # of a step on one core, with our modules
DENSE = "dense"  # a replacement of pre-training alone
SEEDS, EXPLORED = tuple(range(8)), tuple(range(3))
GATE_SEEDS = (8, 9, 10)  # none of those whose results count
WITHOUT_GRN = ("--use_grn=false",)  # and with LayerScale: ConvNeXt V1


@dataclass(frozen=True)
class Pretraining:
    """A pre-training.

    replacement: what stands in place of our modules, by its name in `replacements`.
    length: times `PRETRAINING_STEPS`. seconds, finetuning_seconds: of a step on one core, measured for the estimate.
    """

    flags: tuple[str, ...] = ()
    replacement: str | None = None
    length: int = 1
    seconds: float = 0.58
    finetuning_seconds: float = FINETUNING_SECONDS

    @property
    def encoder(self) -> str | None:
        """The replacement in what is left after pre-training."""
        return None if self.replacement == DENSE else self.replacement


@dataclass(frozen=True)
class Arm:
    """A start of fine-tuning.

    start: one of `STARTS`, whose learning rate it has. pretraining: `None` for random weights.
    model: flags of a new model. change: "drop" or "add" GRN between pre-training and fine-tuning.
    same_time: fine-tune also for the steps that the pre-training of the first arm would take.
    """

    title: str
    start: str
    pretraining: str | None = None
    model: tuple[str, ...] = ()
    change: str | None = None
    same_time: bool = False


@dataclass(frozen=True)
class GateArm:
    """A start at one of the learning rates, measured on training images whose labels it does not get."""

    arm: Arm
    rate: float

    @property
    def key(self) -> str:
        return f"{self.arm.start}-{self.rate:g}"


@dataclass(frozen=True)
class Block:
    """Arms and seeds that are run together."""

    title: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...] = EXPLORED


def hidden(number: int) -> str:
    """The mask ratio that hides this number of the cells: a little less than the share, which would round to more."""
    return f"--mask_ratio={number / NUM_CELLS - 0.005:.3f}"


HIDDEN = {3: 1.0, 5: 0.75, 7: 0.57, 8: 0.51}  # with the seconds of a step; 6 are the recipe's
PRETRAININGS: dict[str, Pretraining] = {
    "v2_fcmae": Pretraining(),
    "v1_fcmae": Pretraining(WITHOUT_GRN),
    "dense": Pretraining(replacement=DENSE, seconds=0.97),
    "lrn": Pretraining(replacement="lrn", seconds=0.9, finetuning_seconds=0.81),
    "batch_norm": Pretraining(replacement="batch_norm", seconds=0.6),
    "layer_norm": Pretraining(replacement="layer_norm", seconds=0.65),
    **{f"hidden_{number}": Pretraining((hidden(number),), seconds=seconds) for number, seconds in HIDDEN.items()},
    "decoder_depth_2": Pretraining(("--decoder_num_hidden_layers=2",), seconds=0.84),
    "decoder_depth_4": Pretraining(("--decoder_num_hidden_layers=4",), seconds=1.07),
    "decoder_width_128": Pretraining(("--decoder_hidden_size=128",), seconds=0.44),
    "decoder_width_256": Pretraining(("--decoder_hidden_size=256",), seconds=0.47),
    "plain_pixels": Pretraining(("--norm_pix_loss=false",)),
    "v2_fcmae_long": Pretraining(length=10),
    "v1_fcmae_long": Pretraining(WITHOUT_GRN, length=10),
}

V2, V1, V2_RANDOM, V1_RANDOM = "v2_fcmae", "v1_fcmae", "v2_random", "v1_random"
STARTS: dict[str, Arm] = {
    V2: Arm("V2, FCMAE", V2, V2),
    V1: Arm("V1, FCMAE", V1, V1),
    V2_RANDOM: Arm("V2, random weights", V2_RANDOM),
    V1_RANDOM: Arm("V1, random weights", V1_RANDOM, model=WITHOUT_GRN),
}
TITLES = {
    "dense": "every cell computed",
    "lrn": "LRN in GRN's place",
    "batch_norm": "BatchNorm in GRN's place",
    "layer_norm": "LayerNorm in GRN's place",
    **{f"hidden_{number}": f"{number} of {NUM_CELLS} cells hidden" for number in HIDDEN},
    "decoder_depth_2": "decoder of 2 blocks",
    "decoder_depth_4": "decoder of 4 blocks",
    "decoder_width_128": "decoder of 128 channels",
    "decoder_width_256": "decoder of 256 channels",
    "plain_pixels": "pixels not normalised",
    "v2_fcmae_long": "V2, FCMAE of ten times the length",
}
ARMS: dict[str, Arm] = {
    **STARTS,
    "v2_random_same_time": Arm("V2, random weights, the time of V2, FCMAE", V2_RANDOM, same_time=True),
    "grn_dropped": Arm("GRN dropped after FCMAE", V2, V2, change="drop"),
    "grn_added": Arm("GRN added after FCMAE", V1, V1, change="add"),
    **{name: Arm(title, V2, name) for name, title in TITLES.items()},
    "v1_fcmae_long": Arm("V1, FCMAE of ten times the length", V1, "v1_fcmae_long"),
}
GATE = {gate.key: gate for gate in (GateArm(arm, rate) for arm in STARTS.values() for rate in RATES)}

BLOCKS: dict[str, Block] = {
    "G": Block("learning rates, on a validation part", tuple(GATE), GATE_SEEDS),
    "E1": Block(
        "pre-training and GRN (Table 3, Table 2f)",
        (V2, V1, V2_RANDOM, V1_RANDOM, "v2_random_same_time", "grn_dropped", "grn_added"),
        SEEDS,
    ),
    "E2": Block("visible cells alone, or every cell (section 3.1)", (V2, "dense"), SEEDS),
    "E3": Block("in GRN's place (Table 2d)", (V2, V1, "lrn", "batch_norm", "layer_norm")),
    "E4": Block("mask ratio (Figure 8)", (V2, *(f"hidden_{number}" for number in HIDDEN))),
    "E5": Block(
        "decoder and target (Table 1)",
        (V2, "decoder_depth_2", "decoder_depth_4", "decoder_width_128", "decoder_width_256", "plain_pixels"),
    ),
    "L": Block("ten times the length", ("v2_fcmae_long", "v1_fcmae_long"), (0,)),
}


@dataclass(frozen=True)
class Contrast:
    """A primary contrast: the first arm minus the other, expected above 0 by the paper.

    published: points of top-1 accuracy in the paper.
    """

    title: str
    first: str
    other: str
    published: float


PRIMARY = (
    Contrast("FCMAE against random weights", V2, V2_RANDOM, 0.3),
    Contrast("V2 against V1, both from FCMAE", V2, V1, 0.9),
    Contrast("visible cells alone against every cell", V2, "dense", 4.4),
    Contrast("GRN in both against dropped after FCMAE", V2, "grn_dropped", 5.8),
    Contrast("GRN in both against added after FCMAE", V2, "grn_added", 4.0),
)
