"""Teachers: models whose features of whole images the student learns to predict.

The teacher is the moving average of the student itself, or another frozen model.
Shapes: B images, F channels of the features, h w the grid of what the student predicts: cells, or tokens of ConvMAE.
"""

from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import AutoImageProcessor, AutoModel

from hf_convnextv2.shared_config import PreTrainingConfig
from training.models.averages import SHARDED
from training.models.families import PreTrainingModel
from training.models.hooks import hooked
from training.settings.checks import check
from training.settings.masked_autoencoder import TargetSettings

DEFAULT_SIZE = 224  # image size in pixels for models that do not define one


class AverageTeacher(nn.Module):
    """The exponential moving average of the student's own encoder, which sees whole images (BYOL, data2vec)."""

    def __init__(self, model: PreTrainingModel, settings: TargetSettings, max_steps: int) -> None:
        super().__init__()
        self.average = AveragedModel(model.base_model).eval().requires_grad_(False)
        self.average.update_parameters(model.base_model)  # the first update copies the weights
        self.decays, self.max_steps = settings.teacher_decay, max_steps
        self.num_layers = settings.feature_target_layers
        depth = model.config.depths[-1]
        check("feature_target_layers", self.num_layers, self.num_layers <= depth, f"be at most {depth}, the last stage")

    def decay(self, step: int) -> float:
        """The moving average's decay. Over the run, it goes from the first to the second value of `teacher_decay`.

        A dry run may take more steps than the run has.
        """
        first, last = self.decays
        return first + (last - first) * min(step / self.max_steps, 1)

    @torch.no_grad()
    def update(self, model: PreTrainingModel, step: int) -> None:
        """Update the moving average with the student's weights after `step` steps."""
        self.average.multi_avg_fn = get_ema_multi_avg_fn(self.decay(step))
        self.average.update_parameters(model.base_model)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The teacher's features `(B, F, h, w)`: the mean of the last blocks' outputs."""
        found: list[Tensor] = []
        with hooked(list(self.average.module.encoder.stages[-1].layers[-self.num_layers :]), found.append):  # type: ignore[union-attr,index]
            last = self.average(pixel_values).last_hidden_state
        return torch.stack([as_map(x, last.shape) for x in found]).mean(dim=0)


def as_map(features: Tensor, shape: torch.Size) -> Tensor:
    """The features of a block as a map of this shape, `(B, F, h, w)`; a transformer's are tokens, `(B, h * w, F)`."""
    return features if features.ndim == 4 else features.mT.unflatten(2, shape[2:])


class FrozenTeacher(nn.Module):
    """Any frozen vision backbone of Transformers, with images of its image processor's size and statistics."""

    def __init__(self, name: str, num_layers: int, revision: str | None = None) -> None:
        super().__init__()
        revision = revision or "main"
        try:
            model = AutoModel.from_pretrained(name, revision=revision, dtype=torch.float32, trust_remote_code=False)
            processor = AutoImageProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            rule = f"be a vision model with an image processor, but Transformers says: {error}"
            raise ValueError(f"`teacher_name_or_path` (={name}) must {rule}") from error
        self.name, self.num_layers = name, num_layers
        self.model: Any = getattr(model, "vision_model", model).eval().requires_grad_(False)
        self.size = side_of(processor)
        flipped = getattr(processor, "do_flip_channel_order", None)
        self.check(not flipped, "take images in RGB, not in BGR")
        normalised, channels = getattr(processor, "do_normalize", None), getattr(self.model.config, "num_channels", 3)
        statistics = (processor.image_mean, processor.image_std) if normalised else ([0.0] * channels, [1.0] * channels)
        self.statistics = [torch.tensor(v).view(1, -1, 1, 1) for v in statistics]

    def check(self, holds: bool, rule: str) -> None:
        """Raise a `ValueError` unless the rule holds for this model."""
        check("teacher_name_or_path", self.name, holds, rule)

    @torch.no_grad()
    def num_channels(self, image_size: int | None) -> int:
        """The number of feature channels. Raises if two calls of the model give different features."""
        side = self.size or image_size or DEFAULT_SIZE
        image = torch.rand(1, self.statistics[0].shape[1], side, side)
        features = self.features(image)
        same = torch.allclose(features, self.features(image), atol=1e-4)
        self.check(same, "say the same of the same image, but draws at random (a masked autoencoder?)")
        return features.shape[1]

    def prepare(self, pixel_values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Resize and normalise images for the teacher, from the student's mean and deviation `(1, C, 1, 1)`."""
        pixels = pixel_values.float() * std + mean
        if self.size is not None and pixels.shape[-1] != self.size:
            pixels = F.interpolate(pixels, size=(self.size, self.size), mode="bilinear", antialias=True)
        teacher_mean, teacher_std = (t.to(pixels.device) for t in self.statistics)
        return (pixels - teacher_mean) / teacher_std

    def features(self, pixel_values: Tensor) -> Tensor:
        """The mean of the last layers' feature maps `(B, F, rows, columns)`, for square images."""
        outputs = self.model(pixel_values=pixel_values, output_hidden_states=self.num_layers > 1)
        layers = [outputs.last_hidden_state]
        if self.num_layers > 1:
            layers = list(outputs.hidden_states[-self.num_layers :])
            rule = f"be at most {len(outputs.hidden_states) - 1}, the teacher's layers"
            check("feature_target_layers", self.num_layers, self.num_layers < len(outputs.hidden_states), rule)
            rule = "be 1 for a teacher whose layers differ in size"
            check("feature_target_layers", self.num_layers, len({x.shape for x in layers}) == 1, rule)
        x = torch.stack(layers).mean(dim=0)
        return x if x.ndim == 4 else self.tokens_as_map(x, pixel_values.shape[-1])

    def tokens_as_map(self, x: Tensor, image_size: int) -> Tensor:
        """Reshape tokens `(B, T, F)` to a square map, without the leading class, distillation and register tokens."""
        config: Any = self.model.config
        patch = getattr(config, "patch_stride", None) or getattr(config, "patch_size", None)
        patch = patch if patch is None or isinstance(patch, int) else patch[0]
        prefixes = sorted({0, 1, 2, 1 + (getattr(config, "num_register_tokens", None) or 0)})
        sides = {prefix: isqrt(max(x.shape[1] - prefix, 0)) for prefix in prefixes}
        # Some models merge patches, 2 x 2 into one, from layer to layer.
        possible = {image_size // patch >> level for level in range(8)} if patch else set(sides.values())
        fits = [(p, side) for p, side in sides.items() if side in possible - {0} and side * side == x.shape[1] - p]
        self.check(bool(fits), f"have a token for each patch of an image, not {x.shape[1]} for {image_size} pixels")
        prefix, side = fits[0]
        return x[:, prefix:].mT.unflatten(2, (side, side))


def side_of(processor: Any) -> int | None:
    """Side length in pixels of the square images of an image processor. None if it does not define a size."""
    size = (processor.crop_size if getattr(processor, "do_center_crop", None) else None) or processor.size or {}
    return size.get("height") or size.get("shortest_edge") if getattr(processor, "do_resize", True) else None


def create_average_teacher(
    model: PreTrainingModel, settings: TargetSettings, max_steps: int, accelerator: Accelerator
) -> AverageTeacher | None:
    """Create the moving-average teacher, or None if no features are to be predicted. Call it before `prepare`."""
    if model.config.target_type == "pixel":
        return None
    kind, rule = accelerator.distributed_type, "be given with a kind of training that leaves a process parts of weights"
    check("teacher_name_or_path", None, kind not in SHARDED, f"{rule}, as {kind.value}")
    return AverageTeacher(model.to(accelerator.device), settings, max_steps)


class Targets:
    """Prepares batches for the model: moves them to its device, and adds the teacher's features if there is one."""

    def __init__(
        self,
        teacher: AverageTeacher | FrozenTeacher | None,
        accelerator: Accelerator,
        model_config: PreTrainingConfig,
        settings: TargetSettings,
        processor: Any,
    ) -> None:
        self.teacher = teacher.to(accelerator.device) if teacher is not None else None
        self.accelerator = accelerator
        self.target_size: int = model_config.target_size  # type: ignore[attr-defined]
        self.normalises = settings.feature_target_norm == "layer_norm"
        if isinstance(teacher, FrozenTeacher):
            channels, count = teacher.statistics[0].shape[1], model_config.num_channels
            rule = f"be 1 or {channels} with `teacher_name_or_path`, whose images have {channels}"
            check("num_channels", count, count in (1, channels), rule)
        statistics = (processor.image_mean, processor.image_std)
        self.statistics = [torch.tensor(v, device=accelerator.device).view(1, -1, 1, 1) for v in statistics]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = send_to_device(batch, self.accelerator.device)  # type: ignore[assignment]
        if self.teacher is None:
            return batch
        return {**batch, "feature_targets": self.of(batch["pixel_values"])}

    @torch.no_grad()
    def of(self, pixel_values: Tensor) -> Tensor:
        """The teacher's features `(B, F, h, w)`, computed once for each image, whatever its number of views."""
        with self.accelerator.autocast():
            if isinstance(self.teacher, FrozenTeacher):
                features = self.teacher.features(self.teacher.prepare(pixel_values, *self.statistics))
            else:
                assert self.teacher is not None
                features = self.teacher(pixel_values)
        features = features.float()
        rows, columns = (side // self.target_size for side in pixel_values.shape[2:])
        if features.shape[2:] != (rows, columns):
            features = F.adaptive_avg_pool2d(features, (rows, columns))
        if self.normalises:
            features = F.layer_norm(features.permute(0, 2, 3, 1), features.shape[1:2]).permute(0, 3, 1, 2)
        return features
