"""Drawing the anchors or regions of an image that enter the losses of an R-CNN."""

import torch
from torch import Tensor


class RegionSampler:
    """Draws up to `size` regions of an image, of which at most the share `positive_share` shows an object.

    As torchvision's `BalancedPositiveNegativeSampler`, for one image at a time and with a generator of its own: with
    `seed`, the draw depends on nothing but the image, however many images a batch or a process has.
    """

    def __init__(self, size: int, positive_share: float) -> None:
        self.size, self.positive_share = size, positive_share
        self.seed: int | None = None  # of the next draw; None: PyTorch's own generator

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each image's labels `(N,)` (1 and more: an object, 0: none, -1: not to be drawn), two masks `(N,)`: the
        drawn regions that show an object, and those that show none."""
        masks: tuple[list[Tensor], list[Tensor]] = ([], [])
        for of_image in labels:
            positive, negative = torch.where(of_image >= 1)[0], torch.where(of_image == 0)[0]
            num_positive = min(len(positive), int(self.size * self.positive_share))
            num_negative = min(len(negative), self.size - num_positive)
            generator = None
            if self.seed is not None:
                generator = torch.Generator(of_image.device).manual_seed(self.seed)
            for regions, count, found in zip((positive, negative), (num_positive, num_negative), masks, strict=True):
                order = torch.randperm(len(regions), generator=generator, device=of_image.device)
                mask = torch.zeros_like(of_image, dtype=torch.bool)
                mask[regions[order[:count]]] = True
                found.append(mask)
        return masks
