"""The computed tables of docs/scale.md."""

from collections.abc import Callable

from benchmarks.at_scale.quantities import (
    BASE_LEARNING_RATE,
    BATCH_MEASURED,
    EAGER_STEP,
    FAST,
    GPUS,
    GPUS_OF_A_NODE,
    IMAGE_BYTES,
    IMAGENET_IMAGES,
    NVLINK,
    SHUFFLE_BUFFER,
    SIZES,
    SLOW,
    STEP_MEASURED,
    STORAGE,
    TOTAL_BATCH,
    TRAINING_MEASURED,
    WORKER_MEASURED,
    all_reduce_seconds,
    num_parameters,
    step_seconds,
)
from benchmarks.shared.measure import Row
from training.data.streams import reads_of_an_epoch

WORKERS = 16  # data loader workers of a GPU: what base needs at the GPU's own rate
SHARDS = (64, 100, 1024, 4096, 10_000)


def gradients() -> list[Row]:
    """Bytes of all gradients, and milliseconds of their all-reduce in float32."""
    rows = []
    for size in SIZES:
        count = num_parameters(size)
        row: Row = {"size": size, "parameters": f"{count:,}", "bf16, MB": f"{2 * count / 1e6:,.0f}"}
        row["fp32, MB"] = f"{4 * count / 1e6:,.0f}"
        row["step of 128 images, ms"] = f"{1000 * step_seconds(size):.1f}" + ("" if size in STEP_MEASURED else " *")
        for gpus, network in ((8, NVLINK), (64, FAST), (512, FAST), (64, SLOW), (512, SLOW)):
            seconds = all_reduce_seconds(4 * count, gpus, network)
            row[f"{gpus} GPUs, {network.name}"] = number(1000 * seconds)
        rows.append(row)
    return rows


def batches() -> list[Row]:
    """What a total batch of 4,096 images and what 128 images a GPU mean for base."""
    rows, rate = [], BATCH_MEASURED / STEP_MEASURED["base"]
    for gpus in GPUS:
        each, total = TOTAL_BATCH // gpus, BATCH_MEASURED * gpus
        gradient = 4 * num_parameters("base")
        reduced = all_reduce_seconds(gradient, gpus, NVLINK if gpus <= GPUS_OF_A_NODE else FAST)
        row: Row = {"GPUs": gpus, "images a GPU of 4,096": each, "GPU's own time, ms": number(1000 * each / rate)}
        row["eager, ms"] = number(1000 * max(EAGER_STEP, each / rate))
        row["all-reduce, ms"] = number(1000 * reduced)
        row["total batch of 128 a GPU"] = f"{total:,}"
        row["its learning rate"] = f"{BASE_LEARNING_RATE * total / 256:.1e}"
        row["its steps an epoch"] = number(IMAGENET_IMAGES / total)
        rows.append(row)
    return rows


def images() -> list[Row]:
    """Images, cores and bytes per second at the GPUs' own rate."""
    rows = []
    cases = [("FCMAE", size, seconds) for size, seconds in STEP_MEASURED.items()]
    cases += [("fine-tuning", size, seconds) for size, seconds in TRAINING_MEASURED.items()]
    for what, size, seconds in cases:
        rate = BATCH_MEASURED / seconds
        row: Row = {"training": f"{what}, {size}", "images/s a GPU": f"{rate:,.0f}"}
        row["cores a GPU"] = f"{rate / WORKER_MEASURED:.1f}"
        for gpus in GPUS:
            row[f"images/s, {gpus} GPUs"] = number(gpus * rate)
            row[f"GB/s, {gpus} GPUs"] = number(gpus * rate * IMAGE_BYTES / 1e9)
        rows.append(row)
    return rows


def readers() -> list[Row]:
    """Readers, the shards that they need and the images that they hold."""
    rows = []
    for gpus in GPUS:
        count = gpus * WORKERS
        row: Row = {"GPUs": gpus, "readers": f"{count:,}"}
        row["images of ImageNet-1k a reader"] = f"{IMAGENET_IMAGES / count:,.0f}"
        row["MB of a shard, one a reader"] = number(IMAGENET_IMAGES / count * IMAGE_BYTES / 1e6)
        row["shards opened a second"] = number(
            gpus * BATCH_MEASURED / STEP_MEASURED["base"] / (IMAGENET_IMAGES / count)
        )
        held = min(SHUFFLE_BUFFER, IMAGENET_IMAGES / count)
        row["MB of images a reader holds"] = number(held * IMAGE_BYTES / 1e6)
        row["GB a node holds"] = number(held * IMAGE_BYTES * WORKERS * GPUS_OF_A_NODE / 1e9)
        row["s until a node has them, 25 Gb/s"] = number(held * IMAGE_BYTES * WORKERS * GPUS_OF_A_NODE / SLOW.rate)
        rows.append(row)
    return rows


def shards() -> list[Row]:
    """How many times the shards are read in an epoch, by the number of them and of the readers."""
    rows = []
    for count in SHARDS:
        row: Row = {"shards": f"{count:,}"}
        for gpus in GPUS:
            each = reads_of_an_epoch(count, gpus * WORKERS) / count
            row[f"{gpus * WORKERS:,} readers"] = f"{each:.2f}"
        rows.append(row)
    return rows


def checkpoints() -> list[Row]:
    """Bytes of a checkpoint, and of the reads of all processes that resume from it."""
    rows = []
    for size in SIZES:
        count = num_parameters(size)
        whole = 16 * count
        row: Row = {"size": size, "weights, GB": number(4 * count / 1e9), "optimizer, GB": number(8 * count / 1e9)}
        row["average, GB"] = number(4 * count / 1e9)
        row["all, GB"] = number(whole / 1e9)
        row["512 processes read, GB"] = number(512 * whole / 1e9)
        row["s at 10 GB/s"] = number(512 * whole / STORAGE)
        row["once a node, s"] = number(512 / GPUS_OF_A_NODE * whole / STORAGE)
        row["states of a GPU with FSDP2 over 8, GB"] = number(16 * count / 8 / 1e9)
        rows.append(row)
    return rows


TABLES: dict[str, Callable[[], list[Row]]] = {
    **{"gradients": gradients, "batches": batches, "images": images},
    **{"readers": readers, "shards": shards, "checkpoints": checkpoints},
}


def number(value: float) -> str:
    """Three figures, without more decimals than they need."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
