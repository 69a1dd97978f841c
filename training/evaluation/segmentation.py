"""Evaluates semantic segmentation at the images' original sizes: mean IoU and accuracies from one confusion matrix."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from training.evaluation.loop import collate_lists, pass_over
from training.settings.evaluation import SegmentPredictionSettings

STRIDE = 2 / 3  # of windows, relative to their side
NUM_SHOWN = 8  # images in the picture of predictions


class Shown(NamedTuple):
    """An evaluated image for a picture: normalised `(C, h, w)`, true and predicted classes `(H, W)`."""

    pixel_values: Tensor
    labels: Tensor
    prediction: Tensor


def collate_pairs(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of images and labels of different sizes, as lists."""
    return collate_lists(samples, ("pixel_values", "labels"))


NO_PIXEL = "No pixel of the images to evaluate on has a class: there is no mean IoU."


class SegmentationEvaluator:
    """Evaluates a segmentation model on a loader of images and labels of any size.

    `confusion` `(num_labels, num_labels)` counts the pixels of the last evaluation, with a row for each true class.
    `shown` are the first of its images that this process evaluated.
    """

    def __init__(self, num_labels: int, ignored: int, settings: SegmentPredictionSettings) -> None:
        self.num_labels, self.ignored = num_labels, ignored
        self.window, self.scales, self.flip = settings.eval_window, settings.eval_scales, settings.eval_flip
        self.confusion: np.ndarray | None = None
        self.shown: list[Shown] = []

    def __call__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        loader: DataLoader[Any],
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """`eval_mean_iou`, `eval_mean_accuracy`, `eval_overall_accuracy` and `eval_loss`, over all processes.

        `eval_majority_accuracy` is the overall accuracy of always predicting the most frequent class. Each image counts
        once. Without a pixel that has a class, there is `eval_samples` alone. The result is empty if `is_stopped`
        becomes true after a batch, in all processes.
        """
        confusion = torch.zeros(self.num_labels, self.num_labels, dtype=torch.int64)
        shown: list[Shown] = []
        losses: list[Tensor] = []

        def measure(batch: dict[str, Any]) -> tuple[Tensor, ...]:
            counts, sums = [], []
            for pixel_values, labels in zip(batch["pixel_values"], batch["labels"], strict=True):
                with accelerator.autocast():
                    scores = self.predict(model, pixel_values.to(accelerator.device), labels.shape)
                labels = labels.to(accelerator.device)
                counts.append(self.count(scores, labels).flatten())
                sums.append(self.sum_of_losses(scores, labels))
                if len(shown) < NUM_SHOWN:
                    shown.append(Shown(pixel_values.cpu(), labels.cpu(), scores.argmax(0).cpu()))
            return torch.stack(counts), torch.stack(sums)

        def add(counts: Tensor, sums: Tensor) -> None:
            confusion.add_(counts.sum(0).cpu().view_as(confusion))
            losses.append(sums.cpu())

        if not pass_over(accelerator, model, loader, measure, add, is_stopped):
            return {}
        summed = torch.cat(losses)
        if not confusion.any():
            return {"eval_samples": len(summed)}
        self.confusion, self.shown = confusion.numpy(), shown
        loss = summed.sum() / max(1, int(confusion.sum()))
        figures = {"loss": loss.item(), **mean_figures(confusion.numpy())}
        return {**{f"eval_{name}": value for name, value in figures.items()}, "eval_samples": len(summed)}

    def predict(self, model: nn.Module, pixel_values: Tensor, size: Sequence[int]) -> Tensor:
        """Log-probabilities `(num_labels, H, W)` of an image `(C, h, w)`, averaged over scales and flips."""
        found = []
        for scale in self.scales:
            image = pixel_values[None]
            if scale != 1:
                image = F.interpolate(image, scale_factor=scale, mode="bilinear", antialias=True)
            for is_flipped in (False, True)[: 1 + self.flip]:
                logits = self.logits(model, image.flip(-1) if is_flipped else image)
                logits = logits.flip(-1) if is_flipped else logits
                logits = F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)
                found.append(logits[0].log_softmax(0))
        return found[0] if len(found) == 1 else torch.stack(found).logsumexp(0) - np.log(len(found))

    def logits(self, model: nn.Module, image: Tensor) -> Tensor:
        """Logits `(1, num_labels, h, w)` of an image `(1, C, h, w)`: of the whole, or the mean of windows on it."""
        if self.window is None:
            return model(pixel_values=image).logits
        height, width = image.shape[-2:]
        total = image.new_zeros(1, self.num_labels, height, width, dtype=torch.float32)
        count = image.new_zeros(1, 1, height, width, dtype=torch.float32)
        for top, bottom in spans(height, self.window):
            for left, right in spans(width, self.window):
                part = (..., slice(top, bottom), slice(left, right))
                total[part] += model(pixel_values=image[part]).logits.float()
                count[part] += 1
        return total / count

    def count(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The confusion matrix of an image."""
        known = labels != self.ignored
        pairs = labels[known] * self.num_labels + scores.argmax(0)[known]
        return pairs.bincount(minlength=self.num_labels**2).view(self.num_labels, self.num_labels)

    def sum_of_losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The sum of the cross-entropy over the pixels of an image, float64."""
        pixels = F.nll_loss(scores[None], labels[None], ignore_index=self.ignored, reduction="none")
        return pixels.sum(dtype=torch.float64 if scores.device.type == "cpu" else torch.float32)

    @staticmethod
    def in_words(results: dict[str, Any]) -> str:
        """The results of an evaluation as one line of text."""
        if "eval_mean_iou" not in results:
            return f"no pixel has a class, {results['eval_samples']:,} images"
        shares = {name: f"{100 * results[f'eval_{name}']:.1f} %" for name in ("mean_iou", "overall_accuracy")}
        majority = f"always the largest class: {100 * results['eval_majority_accuracy']:.1f} %"
        text = f"mean IoU {shares['mean_iou']}, pixel accuracy {shares['overall_accuracy']} ({majority})"
        return f"{text}, loss {results['eval_loss']:.4f}, {results['eval_samples']:,} images"


def spans(length: int, window: int) -> Iterator[tuple[int, int]]:
    """Windows that cover a length, with overlaps; all are of one size, unless the length is smaller."""
    stride = max(1, round(STRIDE * window))
    starts = range(0, max(0, length - window) + stride, stride)
    for start in starts:
        begin = max(0, min(start, length - window))
        yield begin, min(begin + window, length)


def class_figures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """IoU, precision and recall (the class accuracy) of each class; NaN where the divisor is 0."""
    hits, true, predicted = np.diag(confusion).astype(float), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"iou": hits / (true + predicted - hits), "precision": hits / predicted, "recall": hits / true}


def mean_figures(confusion: np.ndarray) -> dict[str, float]:
    """Means over classes: of the IoU, over those that are true or predicted anywhere; of the accuracy, over true."""
    figures, total = class_figures(confusion), max(1, int(confusion.sum()))
    return {
        "mean_iou": mean(figures["iou"]),
        "mean_accuracy": mean(figures["recall"]),
        "overall_accuracy": float(np.trace(confusion) / total),
        "majority_accuracy": float(confusion.sum(1).max() / total),
    }


def mean(values: np.ndarray) -> float:
    """The mean of the numbers that are not NaN; 0 if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
