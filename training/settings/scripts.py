"""All settings of each script: one dataclass for each owner, filled from one flat set of names."""

import inspect
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, Self, get_type_hints

from training.settings.augmentation import FinetuneAugmentationSettings, PretrainAugmentationSettings
from training.settings.checks import check
from training.settings.data import (
    FinetuneDataSettings,
    PretrainDataSettings,
    TrainingDataSettings,
    ValidateDataSettings,
)
from training.settings.evaluation import EvaluationSettings, ProtocolSettings
from training.settings.fcmae import FCMAESettings, TargetSettings
from training.settings.fields import About, facts_of, in_force
from training.settings.learning import (
    FinetuneOptimizerSettings,
    OptimizerSettings,
    PretrainOptimizerSettings,
    ScheduleSettings,
)
from training.settings.model import ClassifierSettings, ModelSettings, TrainedModelSettings
from training.settings.run import CheckpointSettings, HubSettings, ProcessSettings, RunSettings


@dataclass(frozen=True)
class Record:
    """What a run writes down of its settings: nothing reads one here to decide by it.

    values: every setting by its name, as plain data. recipe: names of those that the result depends on.
    compared: those that a resumed run compares with the ones before.
    """

    task: str
    values: dict[str, Any]
    recipe: list[str]
    compared: list[str]


class Settings:
    """The settings of a script, each with its owner: `settings.data.streaming`, `settings.run.output_dir`.

    They are created by their names alone, `PretrainSettings(dataset_name=..., output_dir=...)`, since these are flags
    and keys of recipes, which know nothing of owners.
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
        """The dataclass of each part, by the name of the attribute."""
        hints = get_type_hints(cls)
        return {part: hints[part] for part in inspect.get_annotations(cls)}

    @classmethod
    def fields(cls) -> list[Field[Any]]:
        """The fields of all parts."""
        return [field for owner in cls.owners().values() for field in fields(owner)]

    @classmethod
    def facts(cls) -> dict[str, About]:
        """What every field says of its setting, by the setting's name."""
        return {name: fact for owner in cls.owners().values() for name, fact in facts_of(owner).items()}

    def check(self) -> None:
        """Raise a `ValueError` where settings of different owners do not go together."""

    def values(self) -> dict[str, Any]:
        """Every setting by its name."""
        parts = ((part, owner) for part, owner in self.owners().items())
        return {
            field.name: getattr(getattr(self, part), field.name) for part, owner in parts for field in fields(owner)
        }

    def replace(self, **changes: Any) -> Self:
        """The same settings but for these."""
        return type(self)(**{**self.values(), **changes})

    def record(self) -> Record:
        """What the run writes down of them."""
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
    """What every training run has settings for, whatever it trains."""

    data: TrainingDataSettings
    model: TrainedModelSettings
    schedule: ScheduleSettings
    optimizer: OptimizerSettings
    run: RunSettings
    checkpoints: CheckpointSettings
    hub: HubSettings


class PretrainSettings(TrainingSettings):
    """FCMAE pre-training."""

    task = "pretrain"

    data: PretrainDataSettings
    model: TrainedModelSettings
    fcmae: FCMAESettings
    targets: TargetSettings
    augmentation: PretrainAugmentationSettings
    schedule: ScheduleSettings
    optimizer: PretrainOptimizerSettings
    run: RunSettings
    checkpoints: CheckpointSettings
    hub: HubSettings


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


class ValidateSettings(Settings):
    """Evaluating a classifier, or the frozen features of any ConvNeXt V2."""

    task = "validate"

    data: ValidateDataSettings
    model: ModelSettings
    evaluation: ProtocolSettings
    processes: ProcessSettings

    def check(self) -> None:
        check("model_name_or_path", self.model.model_name_or_path, bool(self.model.model_name_or_path), "be given")
        if set(self.evaluation.protocols) != {"classifier"}:
            self.data.check_splits("eval_split", self.data.eval_split or "validation", self.data.train_split)
