"""What `experiments.views` compares: groups of arms, each of them a way to pre-train, or no pre-training.

views: FCMAE on one view of each image, and with four views, fusion and a teacher.

families: FCMAE of ConvNeXt V2, ConvMAE and FastConvMAE, and the untrained model of each family. All see the same crops
of 96 pixels, 64 views in a step. ConvMAE is `tiny`, whose encoder has the number of parameters nearest to atto's: 2.9
million, atto's 3.4 million; `small` has 21 million. The stems of both have patches of 4 pixels, so that the maps of the
first three stages are 24, 12 and 6 positions wide in both. ConvNeXt V2 has a fourth of 3. What is hidden together is
each method's own: FCMAE hides cells of 32 pixels, the best in the search of its recipe, and sees 3 of 9. ConvMAE hides
tokens of 16 pixels and sees 9 of 36, and so does each view of FastConvMAE. Cells of 32 pixels would leave a ConvMAE 2
of 9, and patches of 2 pixels would give it four times the tokens. Crops, learning rate and all other settings are the
recipe's: they were searched for FCMAE, and nothing was searched for ConvMAE.
"""

from dataclasses import dataclass

BATCH_SIZE = 64  # views in a step, as in the recipe, for every arm
NUM_VIEWS = 4
ONE_VIEW, UNTRAINED = "one view", "no pre-training"
ON_VIEWS = (f"--num_visible_sets={NUM_VIEWS}", f"--per_device_train_batch_size={BATCH_SIZE // NUM_VIEWS}")
FUSION = ("--fusion_stages", "stage1", "stage2", "stage3")
TEACHER = ("--target_type=pixel+feature", "--teacher_decay", "0.99", "0.999")
CONVMAE = ("--model_type=convmae", "--model_size=tiny")


@dataclass(frozen=True)
class Arm:
    """One way to pre-train, as flags on top of the recipe's.

    model: those of a new model, in pre-training and in fine-tuning from random weights.
    pretraining: all others of pre-training; `None` is the untrained model.
    """

    model: tuple[str, ...] = ()
    pretraining: tuple[str, ...] | None = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """Those of pre-training."""
        return (*self.model, *(self.pretraining or ()))

    @property
    def images_in_step(self) -> int:
        given = [flag.split("=")[1] for flag in self.flags if flag.startswith("--per_device_train_batch_size=")]
        return int(given[-1]) if given else BATCH_SIZE


Arms = dict[str, Arm]  # by name; the first one's time is that of all

GROUPS: dict[str, Arms] = {
    "views": {
        ONE_VIEW: Arm(),
        "four views": Arm(pretraining=ON_VIEWS),
        "four views, fusion": Arm(pretraining=(*ON_VIEWS, *FUSION)),
        "four views, EMA teacher": Arm(pretraining=(*ON_VIEWS, *TEACHER)),
        UNTRAINED: Arm(pretraining=None),
    },
    "families": {
        "FCMAE": Arm(),
        "ConvMAE": Arm(CONVMAE),
        "FastConvMAE": Arm(CONVMAE, ON_VIEWS),
        f"ConvNeXt V2, {UNTRAINED}": Arm(pretraining=None),
        f"ConvMAE, {UNTRAINED}": Arm(CONVMAE, pretraining=None),
    },
}


def trained(arms: Arms) -> Arms:
    """The arms that are pre-trained."""
    return {name: arm for name, arm in arms.items() if arm.pretraining is not None}


def same_model(arms: Arms, name: str) -> str:
    """The first pre-trained arm with the model of the arm: itself, or where an untrained one gets its shape from."""
    if arms[name].pretraining is not None:
        return name
    return next(other for other, arm in trained(arms).items() if arm.model == arms[name].model)
