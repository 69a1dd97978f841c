"""The settings of each script, grouped into one dataclass for each owner, and created from one flat set of names."""

import inspect
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, Self, get_type_hints

from training.settings.augmentation import (
    DetectAugmentationSettings,
    FinetuneAugmentationSettings,
    PretrainAugmentationSettings,
    SegmentAugmentationSettings,
)
from training.settings.checks import check
from training.settings.data import (
    DetectDataSettings,
    FinetuneDataSettings,
    MaskSettings,
    ObjectSettings,
    PretrainDataSettings,
    SegmentDataSettings,
    TrainingDataSettings,
    ValidateDataSettings,
)
from training.settings.evaluation import (
    FITTED,
    DetectEvaluationSettings,
    EvaluationSettings,
    ProtocolSettings,
    SegmentEvaluationSettings,
    SegmentPredictionSettings,
    ShownSettings,
)
from training.settings.families import CONVMAE, check_family
from training.settings.fields import About, facts_of, in_force
from training.settings.learning import (
    DenseScheduleSettings,
    FinetuneOptimizerSettings,
    OptimizerSettings,
    PretrainOptimizerSettings,
    ScheduleSettings,
    SegmentOptimizerSettings,
)
from training.settings.masked_autoencoder import MaskedAutoencoderSettings, TargetSettings
from training.settings.model import (
    ClassifierSettings,
    DetectorSettings,
    ModelSettings,
    SegmenterSettings,
    TrainedModelSettings,
)
from training.settings.pooling import ReadingSettings
from training.settings.regularizer import RegularizerSettings
from training.settings.run import CheckpointSettings, HubSettings, ProcessSettings, RunSettings

DEFAULT_PATCH_SIZE, DEFAULT_NUM_STAGES = 4, 4  # of a new model
CONVMAE_PATCHES = 4  # of the stem, a side of a token


@dataclass(frozen=True)
class Record:
    """The settings that a run stores.

    values: every setting by its name, as plain data.
    recipe: the names of the settings that the result depends on.
    compared: the names of the settings whose changes a resumed run reports.
    """

    task: str
    values: dict[str, Any]
    recipe: list[str]
    compared: list[str]


class Settings:
    """The settings of a script, grouped by owner: `settings.data.streaming`, `settings.run.output_dir`.

    The constructor takes the settings without their owners, `PretrainSettings(dataset_name=..., output_dir=...)`: flags
    and keys of recipes have no owner either.
    """

    task: ClassVar[str]

    def __init__(self, **values: Any) -> None:
        for part, owner in self.owners().items():
            names = [field.name for field in fields(owner)]
            setattr(self, part, owner(**{name: values.pop(name) for name in names if name in values}))
        if values:
            raise TypeError(f"{type(self).__name__} has no setting `{next(iter(values))}`.")
        self.check()

    @classmethod
    def owners(cls) -> dict[str, type]:
        """The dataclass of each group of settings, by the name of its attribute."""
        hints = get_type_hints(cls)
        return {part: hints[part] for part in inspect.get_annotations(cls)}

    @classmethod
    def fields(cls) -> list[Field[Any]]:
        """The fields of all owners."""
        return [field for owner in cls.owners().values() for field in fields(owner)]

    @classmethod
    def facts(cls) -> dict[str, About]:
        """The metadata of every setting, by the setting's name."""
        return {name: fact for owner in cls.owners().values() for name, fact in facts_of(owner).items()}

    def check(self) -> None:
        """Raise a `ValueError` if settings of different owners contradict each other."""

    def values(self) -> dict[str, Any]:
        """The value of every setting, by its name."""
        parts = ((part, owner) for part, owner in self.owners().items())
        return {
            field.name: getattr(getattr(self, part), field.name) for part, owner in parts for field in fields(owner)
        }

    def replace(self, **changes: Any) -> Self:
        """A copy of the settings with these changes."""
        return type(self)(**{**self.values(), **changes})

    def record(self) -> Record:
        """The record of the settings that the run stores."""
        values, facts = self.values(), self.facts()
        compared = [name for name, fact in facts.items() if fact.affects_result and fact.on_resume != "ignore"]
        return Record(self.task, values, in_force(values, facts), compared)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.values() == self.values()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        given = {field.name: field.default for field in self.fields() if field.default is not MISSING}
        changed = {name: value for name, value in self.values().items() if given.get(name, MISSING) != value}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"


class TrainingSettings(Settings):
    """The owners that every training run has.

    This class only serves type checking: each script lists its own owners, in the order of `--help`.
    """

    data: TrainingDataSettings
    model: TrainedModelSettings
    schedule: ScheduleSettings
    optimizer: OptimizerSettings
    run: RunSettings
    checkpoints: CheckpointSettings
    hub: HubSettings


class PretrainSettings(TrainingSettings):
    """Pre-training by FCMAE or ConvMAE."""

    task = "pretrain"

    data: PretrainDataSettings
    model: TrainedModelSettings
    autoencoder: MaskedAutoencoderSettings
    targets: TargetSettings
    regularizer: RegularizerSettings
    augmentation: PretrainAugmentationSettings
    schedule: ScheduleSettings
    optimizer: PretrainOptimizerSettings
    run: RunSettings
    checkpoints: CheckpointSettings
    hub: HubSettings

    def check(self) -> None:
        self.check_views()
        model, size = self.model, self.model.image_size
        if model.model_type is None:  # as the weights say
            return
        check_family(self.autoencoder, model.model_type)
        patch = model.patch_size or DEFAULT_PATCH_SIZE
        if model.model_type == CONVMAE:
            token = CONVMAE_PATCHES * patch
            cell, of_what = self.autoencoder.cell_size or token, "`cell_size`"
            check("cell_size", cell, cell % token == 0, f"be a multiple of {token}, the size of a token")
        else:
            num_stages = model.num_stages or DEFAULT_NUM_STAGES
            cell, of_what = patch * 2 ** (num_stages - 1), "`patch_size` * 2 ** (`num_stages` - 1)"
        rule = f"be a multiple of {cell}, the size of a cell ({of_what})"
        check("image_size", size, size is None or (size >= cell and size % cell == 0), rule)

    def check_views(self) -> None:
        """Raise if the views of an image are to agree, but an image has only one."""
        views, settings = self.augmentation.num_crops, self.regularizer
        views *= (self.autoencoder.num_visible_sets or 1) if settings.sigreg_cells == "visible" else 1
        fits = views > 1 or not settings.is_on or settings.invariance_weight == 0
        rule = "be 2 or more with `sigreg_weight`, whose images need several views; or give `--invariance_weight 0`"
        check("num_crops", self.augmentation.num_crops, fits, rule)


class FinetuneSettings(TrainingSettings):
    """Training a classifier, from pre-trained weights or from scratch (paper, Tables 9 to 14)."""

    task = "finetune"

    data: FinetuneDataSettings
    model: ClassifierSettings
    augmentation: FinetuneAugmentationSettings
    schedule: ScheduleSettings
    optimizer: FinetuneOptimizerSettings
    evaluation: EvaluationSettings
    run: RunSettings
    checkpoints: CheckpointSettings
    hub: HubSettings

    def check(self) -> None:
        augmentable = not self.augmentation.randaugment_num_ops or self.model.num_channels in (None, 1, 3)
        rule = "be 0 unless images have 1 or 3 channels"
        check("randaugment_num_ops", self.augmentation.randaugment_num_ops, augmentable, rule)


class SegmentSettings(TrainingSettings):
    """Training a semantic segmentation model, from pre-trained weights or from scratch."""

    task = "segment"

    data: SegmentDataSettings
    model: SegmenterSettings
    augmentation: SegmentAugmentationSettings
    schedule: DenseScheduleSettings
    optimizer: SegmentOptimizerSettings
    evaluation: SegmentEvaluationSettings
    run: RunSettings
    checkpoints: CheckpointSettings
    hub: HubSettings

    def check(self) -> None:
        batch, is_upernet = self.data.per_device_train_batch_size, self.model.architecture == "upernet"
        rule = "be at least 2, as UPerNet's batch normalisation needs it"
        check("per_device_train_batch_size", batch, batch > 1 or not is_upernet, rule)


class DetectSettings(TrainingSettings):
    """Training a detector, from pre-trained weights or from scratch."""

    task = "detect"

    data: DetectDataSettings
    model: DetectorSettings
    augmentation: DetectAugmentationSettings
    schedule: DenseScheduleSettings
    optimizer: FinetuneOptimizerSettings
    evaluation: DetectEvaluationSettings
    run: RunSettings
    checkpoints: CheckpointSettings
    hub: HubSettings


class ValidateSettings(Settings):
    """Evaluating a classifier, a segmentation model, a detector, or the frozen features of any encoder."""

    task = "validate"

    data: ValidateDataSettings
    masks: MaskSettings
    objects: ObjectSettings
    model: ModelSettings
    evaluation: ProtocolSettings
    reading: ReadingSettings
    prediction: SegmentPredictionSettings
    shown: ShownSettings
    processes: ProcessSettings

    def check(self) -> None:
        self.model.check_given()
        if set(self.evaluation.protocols or ()) & set(FITTED):
            self.data.check_splits("eval_split", self.data.eval_split or "validation", self.data.train_split)
