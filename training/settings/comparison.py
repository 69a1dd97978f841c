"""The settings of compare.py: the images, the starts, the budget and the output."""

from dataclasses import dataclass
from pathlib import Path

from training.settings.checks import check, check_at_least, check_finite, check_positive, may_be_there
from training.settings.data import LabelledDataSettings
from training.settings.families import CONVNEXTV2, FAMILIES
from training.settings.fields import REQUIRED, operation, recipe
from training.settings.scripts import Settings

RANDOM, FCMAE, CHECKPOINT, CONTINUED, TEACHER = "random", "fcmae", "checkpoint", "continued", "teacher"
STARTS = (RANDOM, FCMAE, CHECKPOINT, CONTINUED, TEACHER)
FINE_TUNING, PROBE, NEIGHBOURS = "fine_tuning", "linear_probe", "nearest_neighbours"
METHODS = (FINE_TUNING, PROBE, NEIGHBOURS)
OF_CHECKPOINT = (CHECKPOINT, CONTINUED)


@dataclass(kw_only=True)
class CompareDataSettings(LabelledDataSettings):
    """Labelled images, and images without labels."""

    streaming: bool = operation(False, "not supported: the labels of a stream cannot be drawn")
    seed: int = recipe(0, "random seed of train_val_split")
    train_split: str = recipe("train", "split whose labels are drawn")
    eval_split: str | None = recipe(
        None, "split to compare on (default: validation, else val, dev or test; else train_val_split)"
    )
    train_val_split: float = recipe(
        0.25,
        "without a split to compare on: hold out this share of the training images of each class",
        overridden_by="eval_split",
    )
    unlabelled_dataset_name: str | None = recipe(
        None, "images to pre-train on, without the held-out ones (default: the training images without their labels)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "be false: the labels to train on are drawn from the whole data set. Download it, or take a part of it"
        check("streaming", self.streaming, not self.streaming, rule)
        self.check_splits("eval_split", self.eval_split, self.train_split)
        other = self.eval_split != self.train_split
        check("eval_split", self.eval_split, other, f"be another split than `train_split` (={self.train_split})")
        share = self.train_val_split
        check("train_val_split", share, 0 < share < 1, "be in (0, 1)")
        name = self.unlabelled_dataset_name or ""
        found = any(character in name for character in "*?[") or may_be_there(name)
        check("unlabelled_dataset_name", name, found, "be a file or folder that exists, or a Hub id")


@dataclass(kw_only=True)
class StartSettings:
    """What is compared."""

    starts: list[str] | None = recipe(
        None,
        "random: random weights; fcmae: pre-trained on your images; checkpoint: stored weights; continued: pre-trained"
        " on your images from stored weights; teacher: pre-trained on the features of a frozen model too (default:"
        " random and fcmae, with checkpoint also checkpoint and continued, with teacher_name_or_path also teacher)",
        on_resume="ignore",
    )
    checkpoint: list[str] | None = recipe(
        None,
        "encoders or classifiers to start from, ConvNeXt V2 or ConvMAE: folders or Hub ids",
        on_resume="ignore",
    )
    teacher_name_or_path: str | None = recipe(
        None, "frozen vision model whose features the start teacher predicts", on_resume="ignore"
    )
    methods: list[str] = recipe(
        list(METHODS),
        f"{', '.join(METHODS)}; the last two work on frozen features. The first one given decides",
        on_resume="ignore",
    )
    model_size: str | None = recipe(
        None,
        f"size of new models: {FAMILIES[CONVNEXTV2].in_words} (default: that of pretrain_config, else atto)",
    )
    image_size: int | None = recipe(
        None, "side in pixels of the images of new models (default: that of pretrain_config)"
    )
    checkpoint_image_size: int | None = recipe(
        None, "side in pixels of the images of stored weights (default: that of their image processor)"
    )
    num_channels: int = recipe(3, "channels of an image; weights that were stored with others are adapted")
    image_mean: list[float] | None = recipe(None, "mean of each channel, for new models (default: ImageNet's)")
    image_std: list[float] | None = recipe(
        None, "standard deviation of each channel, for new models (default: ImageNet's)"
    )

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, ("image_size", "checkpoint_image_size", "num_channels"), 1)
        sizes = (None, *(size for family in FAMILIES.values() for size in family.all_names))
        check("model_size", self.model_size, self.model_size in sizes, f"be one of {', '.join(map(str, sizes[1:]))}")
        check_some_of("methods", self.methods, METHODS)
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            fits = values is None or len(values) == self.num_channels
            check(name, values, fits, f"have one number for each of the {self.num_channels} channels")
        check("image_std", self.image_std, min(self.image_std or [1]) > 0, "be positive")
        self.checkpoint = self.checkpoint or []
        for name in self.checkpoint:
            check("checkpoint", name, may_be_there(name), "be a folder that exists, or a Hub id")
        twice = len(set(self.checkpoint)) < len(self.checkpoint)
        check("checkpoint", self.checkpoint, not twice, "name each one once")
        teacher = self.teacher_name_or_path
        check("teacher_name_or_path", teacher, may_be_there(teacher or ""), "be a folder that exists, or a Hub id")
        self.starts = self.default_starts() if self.starts is None else self.starts
        check_some_of("starts", self.starts, STARTS)
        self.check_models(set(self.starts))

    def default_starts(self) -> list[str]:
        """Those whose models are given."""
        of_teacher = [TEACHER] if self.teacher_name_or_path else []
        return [RANDOM, FCMAE, *(OF_CHECKPOINT if self.checkpoint else ()), *of_teacher]

    def check_models(self, starts: set[str]) -> None:
        """Raise if a start lacks its model, a model its start, or nothing is left to compare."""
        asked = sorted(starts & set(OF_CHECKPOINT))
        for name, value, needed_by in (
            ("checkpoint", self.checkpoint, asked),
            ("teacher_name_or_path", self.teacher_name_or_path, sorted(starts & {TEACHER})),
        ):
            rule = f"be given with `--starts {' '.join(needed_by)}`"
            check(name, value or None, bool(value) or not needed_by, rule)
            wanted = "teacher" if name == "teacher_name_or_path" else "checkpoint or continued"
            check(name, value, bool(needed_by) or not value, f"come with the start {wanted}")
        count = len(starts - set(OF_CHECKPOINT)) + len(asked) * len(self.checkpoint or [])
        check("starts", " ".join(self.starts or []), count > 1, "be two or more: one has nothing to be compared with")


@dataclass(kw_only=True)
class BudgetSettings:
    """Budget: the same for all starts."""

    label_shares: list[float] = recipe(
        [0.05, 0.25, 1.0],
        "shares of the labels to train on, each with the same share of every class",
        on_resume="ignore",
    )
    seeds: list[int] = recipe(
        [0, 1, 2], "seeds; each draws labels, weights and the order of the images anew", on_resume="ignore"
    )
    finetune_steps: int | None = recipe(
        None, "optimizer steps of each classifier (default: 60 + 10 sqrt(images), at most 492)"
    )
    pretrain_epochs: float | None = recipe(None, "epochs of each pre-training (default: those of pretrain_config)")
    finetune_config: str | None = recipe(
        None, "recipe of fine-tuning (default: training/recipes/finetune_small_images.yaml)"
    )
    pretrain_config: str | None = recipe(
        None, "recipe of pre-training (default: training/recipes/pretrain_small_images.yaml)"
    )

    def __post_init__(self) -> None:
        check_finite(self)
        shares, seeds = self.label_shares, self.seeds
        check("label_shares", shares, bool(shares) and all(0 < share <= 1 for share in shares), "be in (0, 1]")
        check("label_shares", shares, len({f"{share:g}" for share in shares}) == len(shares), "be different")
        check("seeds", seeds, bool(seeds) and all(0 <= seed < 2**32 for seed in seeds), "be 0 or more")
        check("seeds", seeds, len(set(seeds)) == len(seeds), "be different")
        self.label_shares = sorted(shares)
        check_at_least(self, ("finetune_steps",), 1)
        check_positive(self, ("pretrain_epochs",))
        for name in ("finetune_config", "pretrain_config"):
            value = getattr(self, name)
            check(name, value, value is None or Path(value).is_file(), "be a YAML file")


@dataclass(kw_only=True)
class ComparisonRunSettings:
    """Output and runs."""

    output_dir: str = operation(REQUIRED, "folder for the runs, the table, the plot and compare.json")
    jobs: int = operation(1, "runs at a time, which share the cores")
    dry_run: bool = operation(False, "print the runs, their steps and the time they take, and write nothing")

    def __post_init__(self) -> None:
        check("output_dir", self.output_dir, bool(self.output_dir), "be given")
        folder = Path(self.output_dir)
        check("output_dir", self.output_dir, folder.is_dir() or not folder.exists(), "be a folder")
        check_at_least(self, ("jobs",), 1)


class CompareSettings(Settings):
    """Comparing starts of training on the same labels."""

    task = "compare"

    data: CompareDataSettings
    starts: StartSettings
    budget: BudgetSettings
    run: ComparisonRunSettings

    def check(self) -> None:
        folder, output = Path(self.data.dataset_name).expanduser(), Path(self.run.output_dir)
        inside = folder.is_dir() and output.resolve().is_relative_to(folder.resolve())
        check("output_dir", output, not inside, f"not lie in `dataset_name` (={folder}), whose images are read")


def check_some_of(name: str, values: list[str], known: tuple[str, ...]) -> None:
    """Raise unless the values are some of the known ones, each once."""
    right = bool(values) and set(values) <= set(known) and len(set(values)) == len(values)
    check(name, " ".join(values), right, f"be some of {', '.join(known)}, each once")
