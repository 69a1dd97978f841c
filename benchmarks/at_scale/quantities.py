"""The quantities that the tables of docs/scale.md are computed from, each with its source."""

from functools import cache
from typing import NamedTuple

import torch

from hf_convnextv2 import ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining

GPUS = (8, 64, 512)
GPUS_OF_A_NODE = 8
SIZES = ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
TOTAL_BATCH = 4096  # images, paper, Table 8
BASE_LEARNING_RATE = 1.5e-4  # of 256 images, paper, Table 8
IMAGENET_IMAGES = 1_281_167
IMAGENET_BYTES = 147_897_477_120  # ILSVRC2012_img_train.tar
IMAGE_BYTES = IMAGENET_BYTES / IMAGENET_IMAGES
SHUFFLE_BUFFER = 1000  # images, the default of `shuffle_buffer_size`
STORAGE = 10e9  # bytes/s of a shared disk or an object store, assumed

# Measured on one H200 in bf16 at 224 pixels, 128 images a step, recorded as a CUDA graph: docs/benchmarks/gpu.json.
BATCH_MEASURED = 128
STEP_MEASURED = {"tiny": 18.8e-3, "base": 33.5e-3}  # seconds of an FCMAE step
TRAINING_MEASURED = {"tiny": 34.5e-3, "base": 70.7e-3}  # seconds of a classifier's training step
EAGER_STEP = 136e-3  # seconds of an FCMAE step of base, not recorded: docs/benchmarks.md
# 10^18 operations of 800 epochs of pre-training on ImageNet-1k: docs/paper.md
EFLOP = {"atto": 2.5, "femto": 3.1, "pico": 4.6, "nano": 7.2, "tiny": 12.2, "base": 38.6}
EFLOP |= {"large": 84.4, "huge": 277.7}
# Images of 500 x 375 pixels a second that a data loader worker gives, on a core of its own: benchmarks/loader.json
WORKER_MEASURED = 315


class Network(NamedTuple):
    """What joins GPUs: the bytes per second in one direction, of a GPU (NVLink) or of all GPUs of a node."""

    name: str
    rate: float


NVLINK = Network("NVLink, 450 GB/s a GPU", 450e9)
FAST = Network("8 x 200 Gb/s a node", 8 * 200e9 / 8)
SLOW = Network("25 Gb/s a node", 25e9 / 8)


@cache
def num_parameters(size: str) -> int:
    """The parameters of the whole FCMAE model, which all have gradients."""
    with torch.device("meta"):
        model = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig.from_size(size))
    return sum(parameter.numel() for parameter in model.parameters())


def step_seconds(size: str) -> float:
    """Seconds of an FCMAE step of 128 images: measured, or from the line through the two that were measured."""
    if size in STEP_MEASURED:
        return STEP_MEASURED[size]
    slope = (STEP_MEASURED["base"] - STEP_MEASURED["tiny"]) / (EFLOP["base"] - EFLOP["tiny"])
    return STEP_MEASURED["tiny"] + slope * (EFLOP[size] - EFLOP["tiny"])


def all_reduce_seconds(num_bytes: float, num_gpus: int, network: Network) -> float:
    """Seconds of a ring all-reduce, without latency: each link carries 2 (n - 1) / n of the bytes.

    A ring over several nodes enters and leaves each of them once, so that a node's network carries what a link does.
    """
    return 2 * (num_gpus - 1) / num_gpus * num_bytes / network.rate
