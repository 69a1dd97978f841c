"""Images per second of predict.py and embed.py on a folder of JPEG photographs, beside the model alone on tensors, and
their memory over many files.

    python -m benchmarks.predictions --sizes atto tiny --batch_size 16 --num_workers 1
    python -m benchmarks.predictions --files 100000
    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m benchmarks.predictions --num_workers 0

A round of a script goes over all photographs, from files to parts of answers, with its model loaded. The model alone
computes as many images, of one batch again and again, in one process with a thread for each core. Memory is measured
with a tiny model, so that reading and writing are most of the work: that of the script's process and with its data
loader workers, read twice a second.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import config as datasets_config
from PIL import Image

from benchmarks.endurance import memory_of
from benchmarks.folders import write_folder
from benchmarks.shared.classifiers import create_model, wake_grn
from benchmarks.shared.measure import Call, Row, alternate, parse_arguments, report, times_as_fast
from benchmarks.shared.photographs import photographs
from hf_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification, create_image_processor
from training.machine.cores import usable_cores
from training.prediction.answers import create_answers
from training.prediction.batches import create_reader
from training.prediction.encoders import load_encoder
from training.prediction.feature_files import FeatureTables
from training.prediction.features import FeatureAnswers
from training.prediction.images import Images, find_images
from training.prediction.loop import Answering, answer_images, begin
from training.prediction.models import load_stored_model
from training.prediction.parts import JsonLines, PartForm, Parts
from training.run.accelerator import create_plain_accelerator
from training.settings.embedding import EmbedSettings
from training.settings.prediction import PredictSettings
from training.settings.run import ProcessSettings

STORED = (500, 375)  # width and height of the photographs
SETTINGS: dict[str, Any] = {"predict": PredictSettings, "embed": EmbedSettings}
OUTPUTS = {"predict": "answers.csv", "embed": "features.parquet"}
SPANS = 10  # of the run, with a figure of memory each


def main() -> None:
    args = parse_arguments(
        str(__doc__), rounds=5, sizes=["atto", "tiny"], batch_size=16, num_workers=1, images=256, files=0, folder=""
    )
    accelerator = create_plain_accelerator(ProcessSettings())
    with scratch_folder(accelerator, args.folder) as folder:
        cache = folder / "cache"
        datasets_config.HF_DATASETS_CACHE = cache
        os.environ["HF_DATASETS_CACHE"] = str(cache)
        if args.files:
            write_folder(folder / "images", args.files)
            rows = [row for script in SETTINGS for row in memory(script, folder, args)]
        else:
            with accelerator.main_process_first():
                write_photographs(folder / "photographs", args.images)
            rows = [row for size in args.sizes for row in speeds(accelerator, size, folder, args)]
    if accelerator.is_main_process:
        report(rows, args.output)


@contextmanager
def scratch_folder(accelerator: Accelerator, parent: str) -> Iterator[Path]:
    """A temporary folder, one for all processes."""
    with tempfile.TemporaryDirectory(dir=parent or None) as own:
        yield Path(broadcast_object_list([own])[0])
        accelerator.wait_for_everyone()


def write_photographs(folder: Path, count: int) -> None:
    """Write `count` JPEG photographs, if they are not there yet."""
    if folder.is_dir():
        return
    folder.mkdir()
    for number, photograph in enumerate(islice(cycle(photographs()), count)):
        photograph.resize(STORED, Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg", quality=90)


def save_model(model: Any, folder: Path) -> None:
    """Write a classifier with its image processor."""
    model.save_pretrained(folder)
    create_image_processor(model.config).save_pretrained(folder)


def speeds(accelerator: Accelerator, size: str, scratch: Path, args: Any) -> list[Row]:
    """Images per second of the model alone, and of each script with the same batch size."""
    model: Any = create_model("ours", size).eval()
    if accelerator.is_main_process:
        save_model(model, scratch / size)
    accelerator.wait_for_everyone()
    pixel_values = torch.randn(args.batch_size, 3, 224, 224)
    calls: dict[str, Call] = {}
    if accelerator.is_main_process:
        calls["model alone"] = partial(run_alone, model, pixel_values, args.images)
    else:
        calls["model alone"] = lambda: None
    calls |= {script: prepare(accelerator, script, scratch, size, args) for script in SETTINGS}
    calls = {name: partial(in_all_processes, accelerator, call) for name, call in calls.items()}
    seconds = alternate(calls, args.rounds, warm_up=1)
    rows: list[Row] = []
    for script in SETTINGS:
        row: Row = {"size": size, "batch": args.batch_size, "script": script}
        row |= {"processes": accelerator.num_processes, "workers": args.num_workers}
        row["images/s alone"] = args.images / median(seconds["model alone"])
        row["images/s"] = args.images / median(seconds[script])
        row["times as fast as alone"] = times_as_fast(seconds["model alone"], seconds[script])
        rows.append(row)
        accelerator.print(row, flush=True)
    return rows


def in_all_processes(accelerator: Accelerator, call: Call) -> None:
    """Begin and end a call in all processes together."""
    accelerator.wait_for_everyone()
    call()
    accelerator.wait_for_everyone()


@torch.no_grad()
def run_alone(model: Any, pixel_values: torch.Tensor, count: int) -> None:
    """Compute at least `count` images, with a thread for each core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    for _ in range(0, count, len(pixel_values)):
        model(pixel_values)
    torch.set_num_threads(threads)


def prepare(accelerator: Accelerator, script: str, scratch: Path, size: str, args: Any) -> Call:
    """A call that goes over all photographs as the script does."""
    settings = SETTINGS[script](
        model_name_or_path=str(scratch / size),
        dataset_name=str(scratch / "photographs"),
        output_file=str(scratch / OUTPUTS[script]),
        per_device_eval_batch_size=args.batch_size,
        num_workers=args.num_workers,
    )
    images = find_images(settings.data, 3)
    model, answers, form = loaded(settings, images)
    reader = create_reader(images, settings.data, 3, answers.transform)

    def call() -> None:
        parts = Parts(Path(settings.output.output_file), {"dataset_name": "photographs"}, form)
        begin(accelerator, parts, overwrite=True)
        answer_images(script, accelerator, model, answers, reader, settings.data, parts)
        if accelerator.is_main_process:
            assert parts.num_done == args.images and not parts.num_bad
            parts.remove()

    return call


def loaded(settings: Any, images: Images) -> tuple[Any, Answering, PartForm]:
    """The model, how it answers, and how its answers are stored."""
    if isinstance(settings, PredictSettings):
        stored = load_stored_model(settings.model, None)
        return stored.model, create_answers(stored, settings, images), JsonLines()
    encoder = load_encoder(settings.model, None)
    features = FeatureAnswers(encoder, settings.features)
    return encoder.model, features, FeatureTables(features.shapes, settings.features.dtype, {})


def memory(script: str, scratch: Path, args: Any) -> list[Row]:
    """The MiB of a script in each tenth of the time of its run on small files."""
    sizes: dict[str, Any] = {"hidden_sizes": [32, 64], "depths": [1, 1], "image_size": 32, "num_labels": 10}
    config = ConvNextV2Config(**sizes)
    model = ConvNextV2ForImageClassification(config)
    wake_grn(model)
    save_model(model, scratch / "small")
    output = scratch / OUTPUTS[script]
    settings = {
        "model_name_or_path": scratch / "small",
        "dataset_name": scratch / "images",
        "output_file": output,
        "num_workers": args.num_workers,
    }
    command = [sys.executable, f"training/{script}.py", *(f"--{key}={value}" for key, value in settings.items())]
    process = subprocess.Popen(command, env={**os.environ, "ACCELERATE_USE_CPU": "true"})
    samples = watch(process, output.with_name(f"{output.name}.partial"))
    if process.returncode:
        sys.exit(process.returncode)
    return [tenth(script, args.files, samples, number) for number in range(SPANS)]


def watch(process: subprocess.Popen[bytes], parts: Path) -> list[tuple[float, float]]:
    """MiB of the process, and with its workers, twice a second from the time when it begins with its images."""
    samples = []
    while process.poll() is None:
        time.sleep(0.5)
        if parts.exists():
            try:
                own = psutil.Process(process.pid).memory_info().rss / 2**20
            except psutil.NoSuchProcess:
                break
            samples.append((own, memory_of(process.pid)))
    process.wait()
    return samples


def tenth(script: str, files: int, samples: list[tuple[float, float]], number: int) -> Row:
    """The most memory in a tenth of the samples, and how much more it is than in the second tenth: the buffers of the
    libraries still grow in the first one.
    """
    spans = [samples[len(samples) * i // SPANS : len(samples) * (i + 1) // SPANS] or samples for i in range(SPANS)]
    own, second = (max(each[0] for each in span) for span in (spans[number], spans[1]))
    row: Row = {"script": script, "files": files, "tenth of the run": number + 1}
    row["process, MiB"] = own
    row["with workers, MiB"] = max(each[1] for each in spans[number])
    row["above the second tenth, MiB"] = own - second
    return row


if __name__ == "__main__":
    main()
