"""The settings of the training scripts, one dataclass each; every value is checked here, before anything is loaded."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.settings.fields import REQUIRED, operation, recipe

MODEL_SIZES = ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "huge")
WITHOUT_FEATURES = (None, "pixel")  # values of `target_type`
FILE_BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}  # of `datasets`, by ending


def check(name: str, value: Any, holds: bool, rule: str) -> None:
    """Raise a ValueError that names the setting, its value and the rule, unless the rule holds."""
    if not holds:
        raise ValueError(f"`{name}` (={value}) must {rule}.")


@dataclass(kw_only=True)
class DataConfig:
    """Which images, and how they are read."""

    dataset_name: str = recipe(
        REQUIRED, "Hub id, folder of images (or .npy arrays), or parquet or webdataset files (a path or glob)"
    )
    dataset_config_name: str | None = recipe(None, "configuration of a Hub data set (default: its own)")
    dataset_revision: str | None = recipe(None, "revision of a Hub data set (default: main)")
    streaming: bool = recipe(False, "read the data set as a stream instead of preparing it on disk first")
    image_column: str = recipe("image", "column that holds the images")
    image_size: int | None = recipe(None, "side of the square the model sees, in pixels (default: the model's)")
    num_channels: int | None = recipe(
        None, "channels of an image (default: the model's); 4: with opacity; others: arrays"
    )
    image_mean: list[float] | None = recipe(None, "mean of each channel (default: ImageNet's)")
    image_std: list[float] | None = recipe(None, "standard deviation of each channel (default: ImageNet's)")
    background: str | None = recipe(
        None,
        "what transparent pixels lie on: a colour, as white, #ff8000 or 255,128,0; none: leave their transparency"
        " out, which shows colours hidden there (default: the model's, else white)",
    )
    check_images: bool = operation(True, "decode every image once before the start, unless streaming")
    skip_bad_images: bool = operation(False, "leave out files that are no readable image instead of stopping")
    max_bad_images: int = operation(
        100, "with skip_bad_images: stop when more than this many are found; of a stream, by one data loader worker"
    )
    model_name_or_path: str | None = recipe(None, "weights to start from: a folder or a Hub id")
    model_revision: str | None = recipe(None, "revision of the model on the Hub (default: main)")
    num_workers: int = operation(2, "data loader workers of each training process")
    mixed_precision: str | None = recipe(None, "no, fp16 or bf16 (default: as `accelerate config` says)")
    ddp_timeout: int = operation(
        7200, "seconds that processes wait for each other: the first one checks all images alone"
    )
    seed: int = recipe(0, "seed of everything random")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            numbers = value if isinstance(value, list) else [value]
            finite = all(math.isfinite(number) for number in numbers if isinstance(number, float))
            check(name, value, finite, "be finite")
        check("dataset_name", self.dataset_name, bool(self.dataset_name), "be given")
        for name in ("image_size", "num_channels"):
            check_at_least(self, name, 1)
        for name in ("num_workers", "max_bad_images", "seed"):
            check_at_least(self, name, 0)
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            fits = None in (values, self.num_channels) or len(values) == self.num_channels
            check(name, values, fits, f"have one number for each of the {self.num_channels} channels")
        check_background(self.background)
        check("image_std", self.image_std, min(self.image_std or [1]) > 0, "be positive")
        precisions = (None, "no", "fp16", "bf16")
        check("mixed_precision", self.mixed_precision, self.mixed_precision in precisions, "be no, fp16 or bf16")
        check_scalable(self.mixed_precision)
        name = self.model_name_or_path or ""
        check("model_name_or_path", name, may_be_there(name), "be a folder that exists, or a Hub id")
        is_pattern = any(character in self.dataset_name for character in "*?[")
        found = is_pattern or may_be_there(self.dataset_name)
        check("dataset_name", self.dataset_name, found, "be a file or folder that exists, or a Hub id")
        checked = self.check_images or self.streaming or not self.skip_bad_images
        check("check_images", self.check_images, checked, "be true with `skip_bad_images`, unless streaming")

    def check_splits(self, name: str, split: str | None, other: str) -> None:
        """Raise if a second split is wanted of files, which are one: it would be the same images again."""
        two = split not in (None, other) and Path(self.dataset_name).suffix in FILE_BUILDERS
        rule = f"not be given beside split `{other}` where `dataset_name` (={self.dataset_name}) names files"
        check(name, split, not two, f"{rule}: name the folder that has those of both")


@dataclass(kw_only=True)
class TrainingConfig(DataConfig):
    """What pre-training and fine-tuning have in common."""

    output_dir: str = operation(REQUIRED, "folder for checkpoints, metrics and the final model")
    overwrite_output_dir: bool = operation(False, "start afresh in a folder that holds an earlier run of this script")
    full_determinism: bool = recipe(False, "deterministic algorithms on a GPU too, for a resume to the bit; slower")
    dry_run: bool = operation(False, "try a few steps, print plan, time and memory as a page, and write nothing")
    json: bool = operation(False, "with dry_run: print all of it as JSON instead")
    train_split: str = recipe("train", "split to train on")
    max_train_samples: int | None = recipe(None, "train on so many examples only (default: all)")
    shuffle_buffer_size: int = recipe(
        1000, "streaming: examples among which the next one is drawn", beside=("streaming", (False,))
    )
    crop_scale: list[float] = recipe([0.08, 1.0], "least and largest share of an image that a crop covers")
    reduced_decoding: bool = recipe(
        True, "decode JPEG images at 1/2, 1/4 or 1/8 of their size where every crop keeps the pixels it needs"
    )
    horizontal_flip: float = recipe(0.5, "probability of mirroring an image")
    model_size: str = recipe(
        "atto",
        f"without model_name_or_path: {', '.join(MODEL_SIZES)}",
        unless="model_name_or_path",
    )
    patch_size: int | None = recipe(
        None, "without model_name_or_path: side of the stem's patches (default: 4)", unless="model_name_or_path"
    )
    num_stages: int | None = recipe(
        None, "without model_name_or_path: keep the first stages only (default: all)", unless="model_name_or_path"
    )
    activation_checkpointing: bool = operation(False, "recompute activations in the backward pass to save memory")
    per_device_train_batch_size: int = recipe(64, "images in a forward pass of one process", is_planned=True)
    gradient_accumulation_steps: int = recipe(1, "forward passes for an optimizer step", is_planned=True)
    num_train_epochs: float = recipe(100, "passes over the data", unless="max_train_steps", is_planned=True)
    max_train_steps: int | None = recipe(None, "optimizer steps (default: as num_train_epochs says)", is_planned=True)
    base_learning_rate: float = recipe(
        1.5e-4, "learning rate for a total batch of 256; scaled linearly", unless="learning_rate", is_planned=True
    )
    learning_rate: float | None = recipe(
        None, "absolute learning rate (default: as base_learning_rate says)", is_planned=True
    )
    min_learning_rate: float = recipe(0.0, "learning rate at the end of the cosine")
    warmup_epochs: float = recipe(0.0, "epochs of linear warm-up", unless="warmup_steps")
    warmup_steps: int | None = recipe(None, "optimizer steps of linear warm-up (default: as warmup_epochs says)")
    weight_decay: float = recipe(0.05, "decay of the weights of linear and convolution layers")
    adam_beta1: float = recipe(0.9, "AdamW's first beta")
    adam_beta2: float = recipe(0.999, "AdamW's second beta")
    max_grad_norm: float | None = recipe(None, "clip the gradient's norm to this (default: no clipping)")
    ema_decay: float = recipe(0.0, "average the weights with this decay and save the average; 0: off")
    logging_steps: int = operation(50, "optimizer steps between lines of metrics.jsonl")
    checkpointing_steps: int | None = operation(None, "optimizer steps between checkpoints")
    checkpointing_minutes: float = operation(
        10,
        "save a checkpoint when the last one is so old, or later where saving would take over 5 % of the time; 0: off",
    )
    checkpoints_total_limit: int | None = operation(
        None, "keep only so many, the newest (default: all of checkpointing_steps, and of the others the newest two)"
    )
    resume_from_checkpoint: str | None = operation(None, "a checkpoint folder, or `latest` (none there: start afresh)")
    with_tracking: bool = operation(True, "also log to Accelerate's trackers")
    report_to: str = operation("tensorboard", "tracker of with_tracking: tensorboard, wandb, trackio, ..., or all")
    push_to_hub: bool = operation(False, "upload the final folder in one commit")
    hub_model_id: str | None = operation(None, "repository on the Hub, e.g. me/name")
    hub_private_repo: bool = operation(False, "make that repository a private one")
    license: str | None = operation(
        None, "licence of the trained weights (default: that of the weights it starts from; else none is stated)"
    )
    data_note: str | None = operation(None, "for the model card: what the images are, whose, and under which licence")

    def __post_init__(self) -> None:
        super().__post_init__()
        check("output_dir", self.output_dir, bool(self.output_dir), "be given")
        check("json", self.json, self.dry_run or not self.json, "come with `dry_run`")
        check("model_size", self.model_size, self.model_size in MODEL_SIZES, f"be one of {', '.join(MODEL_SIZES)}")
        positive = "max_train_samples shuffle_buffer_size patch_size num_stages per_device_train_batch_size "
        positive += "gradient_accumulation_steps max_train_steps logging_steps checkpointing_steps"
        for name in [*positive.split(), "checkpoints_total_limit"]:
            check_at_least(self, name, 1)
        for name in ("min_learning_rate", "warmup_epochs", "warmup_steps", "weight_decay", "checkpointing_minutes"):
            check_at_least(self, name, 0)
        for name in ("num_train_epochs", "base_learning_rate", "learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            check(name, value, value is None or value > 0, "be positive")
        check_share(self, "horizontal_flip")
        for name in ("adam_beta1", "adam_beta2", "ema_decay"):
            check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "be in [0, 1)")
        ordered = len(self.crop_scale) == 2 and 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1
        check("crop_scale", self.crop_scale, ordered, "be two numbers, 0 < least <= largest <= 1")
        check(
            "hub_model_id",
            self.hub_model_id,
            bool(self.hub_model_id) or not self.push_to_hub,
            "be given with `push_to_hub`",
        )


@dataclass(kw_only=True)
class PretrainConfig(TrainingConfig):
    """FCMAE pre-training (paper, section 3 and Table 8)."""

    crop_scale: list[float] = recipe([0.2, 1.0], "least and largest share of an image that a crop covers")
    mixed_dataset_names: list[str] | None = recipe(
        None, "more data sets to mix with dataset_name, of the same columns and splits"
    )
    mixture_weights: list[float] | None = recipe(
        None, "share of dataset_name and of each of these (default: each image once an epoch)"
    )
    adam_beta2: float = recipe(0.95, "AdamW's second beta")
    mask_ratio: float | None = recipe(None, "share of the cells hidden from the encoder (default: 0.6, or 1 - 1/K)")
    num_visible_sets: int | None = recipe(
        None, "K > 1: share the cells out to K views of an image, trained on in one pass (default: the model's, 1)"
    )
    norm_pix_loss: bool = recipe(True, "regress pixels normalised in each cell")
    decoder_hidden_size: int | None = recipe(None, "width of the decoder (default: the model's, 512)")
    decoder_num_hidden_layers: int | None = recipe(None, "blocks of the decoder (default: the model's, 1)")
    fusion_stages: list[str] | None = recipe(
        None, "earlier stages that the decoder sees too, e.g. stage1 stage2 (default: none)"
    )
    target_type: str | None = recipe(None, "pixel, feature or pixel+feature: what is predicted (default: pixel)")
    feature_target_on: str | None = recipe(None, "predict the features of visible or masked cells (default: visible)")
    feature_loss: str | None = recipe(None, "smooth_l1, mse or cosine (default: smooth_l1)")
    feature_loss_weight: float | None = recipe(None, "weight of the features' loss (default: 1)")
    feature_target_layers: int = recipe(
        1, "average the teacher's last so many layers", beside=("target_type", WITHOUT_FEATURES)
    )
    feature_target_norm: Literal["layer_norm", "none"] = recipe(
        "layer_norm", "how the features are normalised", beside=("target_type", WITHOUT_FEATURES)
    )
    teacher_name_or_path: str | None = recipe(
        None, "frozen vision model whose features are predicted (default: the average of the model's own weights)"
    )
    teacher_revision: str | None = recipe(None, "revision of the teacher on the Hub (default: main)")
    teacher_decay: list[float] = recipe(
        [0.999, 0.9999],
        "decay of that average, at first and at last",
        unless="teacher_name_or_path",
        beside=("target_type", WITHOUT_FEATURES),
    )
    reconstruction_steps: int | None = operation(
        None, "optimizer steps between pictures of the same images' reconstruction (default: 20 of them in a run)"
    )
    decay_grn_and_mask_token: bool = recipe(False, "decay GRN and the mask token too, as the official pre-training")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_mixture()
        check("mask_ratio", self.mask_ratio, self.mask_ratio is None or 0 < self.mask_ratio < 1, "be in (0, 1)")
        for name in ("num_visible_sets", "decoder_hidden_size", "decoder_num_hidden_layers", "reconstruction_steps"):
            check_at_least(self, name, 1)
        check_at_least(self, "feature_target_layers", 1)
        decays = self.teacher_decay
        ordered = len(decays) == 2 and 0 <= decays[0] <= decays[1] < 1
        check("teacher_decay", decays, ordered, "be two numbers, 0 <= first <= last < 1")
        taught = self.teacher_name_or_path is None or self.target_type in ("feature", "pixel+feature")
        check("target_type", self.target_type, taught, "be feature or pixel+feature with `teacher_name_or_path`")
        revised = self.teacher_revision is None or self.teacher_name_or_path is not None
        check("teacher_revision", self.teacher_revision, revised, "come with `teacher_name_or_path`")

    def check_mixture(self) -> None:
        """Raise unless there is a weight for each data set, if there are to be any."""
        weights, count = self.mixture_weights, 1 + len(self.mixed_dataset_names or [])
        if weights is None:
            rule = "be given to mix streams: how long they are is not known"
            check("mixture_weights", weights, count == 1 or not self.streaming, rule)
            return
        rule = f"be {count} positive numbers, for `dataset_name` and each of `mixed_dataset_names`"
        check("mixture_weights", weights, len(weights) == count and min(weights) > 0, rule)
        rule = "have no weight below a thousandth of their sum"
        check("mixture_weights", weights, min(weights) >= sum(weights) / 1000, rule)


@dataclass(kw_only=True)
class EvaluationConfig(DataConfig):
    """What fine-tuning and validation have in common."""

    label_column: str = recipe("label", "column that holds the classes")
    eval_split: str | None = recipe(None, "split to evaluate on")
    max_eval_samples: int | None = recipe(None, "evaluate on so many examples only (default: all)")
    per_device_eval_batch_size: int = operation(64, "images in a forward pass of an evaluation")
    metrics: list[str] | None = operation(None, "more metrics by their name for `evaluate.load`, e.g. f1")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, "max_eval_samples", 1)
        check_at_least(self, "per_device_eval_batch_size", 1)


@dataclass(kw_only=True)
class FinetuneConfig(EvaluationConfig, TrainingConfig):
    """Training a classifier, from pre-trained weights or from scratch (paper, Tables 9 to 14)."""

    num_labels: int | None = recipe(None, "number of classes (default: as the label column says)")
    train_val_split: float = recipe(
        0.0, "without eval_split: evaluate on this share of the training split", unless="eval_split"
    )
    eval_steps: int | None = operation(None, "optimizer steps between evaluations (default: an epoch)")
    layer_decay: float = recipe(1.0, "factor of the learning rate from one layer to the one below")
    layer_decay_type: Literal["single", "group"] = recipe(
        "single", "a layer is a block (single) or three (group)", beside=("layer_decay", (1.0,))
    )
    drop_path_rate: float | None = recipe(None, "stochastic depth of the last block (default: the model's)")
    head_init_scale: float | None = recipe(
        None, "factor on the head's initial weights (default: 0.001 with model_name_or_path, else 1)"
    )
    label_smoothing: float = recipe(0.0, "share of a label spread over all classes")
    mixup: float = recipe(0.0, "alpha of mixup; 0: off")
    cutmix: float = recipe(0.0, "alpha of cutmix; 0: off; with mixup: one of them for each batch")
    randaugment_num_ops: int = recipe(0, "RandAugment's operations for each image; 0: off; 1 or 3 channels")
    randaugment_magnitude: int = recipe(
        9, "RandAugment's strength on torchvision's scale, 0 to 30", beside=("randaugment_num_ops", (0,))
    )
    random_erasing: float = recipe(0.0, "probability of erasing a rectangle")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_splits("eval_split", self.eval_split, self.train_split)
        check_at_least(self, "num_labels", 1)
        check_at_least(self, "eval_steps", 1)
        check("train_val_split", self.train_val_split, 0 <= self.train_val_split < 1, "be in [0, 1)")
        both = bool(self.train_val_split) and (self.streaming or self.eval_split is not None)
        check("train_val_split", self.train_val_split, not both, "not be given while streaming or with `eval_split`")
        check("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "be in (0, 1]")
        rate = self.drop_path_rate
        check("drop_path_rate", rate, rate is None or 0 <= rate < 1, "be in [0, 1)")
        check("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "be in [0, 1)")
        check_share(self, "random_erasing")
        for name in ("mixup", "cutmix", "head_init_scale", "randaugment_num_ops"):
            check_at_least(self, name, 0)
        magnitude = self.randaugment_magnitude
        check("randaugment_magnitude", magnitude, 0 <= magnitude <= 30, "be between 0 and 30")
        augmentable = not self.randaugment_num_ops or self.num_channels in (None, 1, 3)
        check("randaugment_num_ops", self.randaugment_num_ops, augmentable, "be 0 unless images have 1 or 3 channels")


PROTOCOLS = ("classifier", "knn", "linear_probe")


@dataclass(kw_only=True)
class ValidateConfig(EvaluationConfig):
    """Evaluating a classifier, or the frozen features of any ConvNeXt V2."""

    protocols: list[str] = recipe(
        ["classifier"], "classifier; knn or linear_probe, on the frozen features of images in train_split"
    )
    use_ema: bool = recipe(False, "of a training checkpoint: the averaged weights instead of the raw ones")
    eval_split: str | None = recipe(None, "split to evaluate on (default: validation, else val, dev or test)")
    train_split: str = recipe("train", "split of the images that knn and linear_probe know")
    max_train_samples: int | None = recipe(None, "so many of them only (default: all)")
    knn_neighbors: int = recipe(20, "neighbours that vote")
    knn_temperature: float = recipe(0.07, "temperature of their weights")
    linear_probe_strength: float = recipe(1.0, "inverse of the probe's L2 penalty, `C` of scikit-learn")
    output_dir: str | None = operation(None, "folder for eval_results.json and the figures of each class")

    def __post_init__(self) -> None:
        super().__post_init__()
        check("model_name_or_path", self.model_name_or_path, bool(self.model_name_or_path), "be given")
        if set(self.protocols) != {"classifier"}:
            self.check_splits("eval_split", self.eval_split or "validation", self.train_split)
        known = bool(self.protocols) and set(self.protocols) <= set(PROTOCOLS)
        check("protocols", self.protocols, known, f"be some of {', '.join(PROTOCOLS)}")
        for name in ("max_train_samples", "knn_neighbors"):
            check_at_least(self, name, 1)
        for name in ("knn_temperature", "linear_probe_strength"):
            check(name, getattr(self, name), getattr(self, name) > 0, "be positive")


def may_be_there(name: str) -> bool:
    """Whether a name is a path that exists, or may be a Hub id or an address."""
    is_path = name.startswith(("/", ".", "~")) or name.count("/") > 1
    try:
        return not is_path or "://" in name or Path(name).expanduser().exists()
    except PermissionError:  # it is there, and what may not be read is named when it is read
        return True


def check_background(background: str | None) -> None:
    """Raise unless a background that is given is a colour, or none."""
    if background is not None:
        from hf_convnextv2.images import background_color  # its package imports PyTorch

        background_color(background)


def check_scalable(mixed_precision: str | None) -> None:
    """Raise if fp16 is asked for without a device that computes with it."""
    if mixed_precision == "fp16":
        import torch  # here, since it takes seconds: other settings are checked without it

        check("mixed_precision", mixed_precision, torch.accelerator.is_available(), "be no or bf16 on a CPU")


def check_at_least(config: Any, name: str, least: float) -> None:
    """Raise unless the setting is None or at least `least`."""
    value = getattr(config, name)
    check(name, value, value is None or value >= least, f"be at least {least}")


def check_share(config: Any, name: str) -> None:
    """Raise unless the setting is in [0, 1]."""
    check(name, getattr(config, name), 0 <= getattr(config, name) <= 1, "be in [0, 1]")
