"""Write what a classifier, a segmentation model or a detector says of images to a table.

    accelerate launch training/predict.py --model_name_or_path out/classifier \\
        --dataset_name path/to/images --output_file out/answers.csv
    accelerate launch training/predict.py --model_name_or_path out/segmenter \\
        --dataset_name 'photos/**/*.jpg' --output_file out/answers.parquet --masks_dir out/masks
    accelerate launch training/predict.py --model_name_or_path out/detector \\
        --dataset_name path/to/images --output_file out/objects.json --threshold 0.3
    accelerate launch training/predict.py --model_name_or_path facebook/convnextv2-tiny-1k-224 --top_k 5 \\
        --dataset_name ILSVRC/imagenet-1k --split test --streaming true --output_file out/answers.jsonl
"""

import sys

from training.console.errors import told_in_a_line
from training.settings.command_line import parse_settings
from training.settings.prediction import PredictSettings

if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong setting at once
    settings = parse_settings(PredictSettings, sys.argv[1:], __doc__)

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from training.console.bars import Phase
from training.data.labels import class_list
from training.data.samples import make_samples
from training.models.creation import with_background
from training.prediction.answers import Answers, check_fits, create_answers
from training.prediction.batches import Batch, ImageReader, batches, rounds
from training.prediction.files import write_answers
from training.prediction.images import Images, find_images
from training.prediction.models import StoredModel, load_stored_model
from training.prediction.parts import Answer, Parts
from training.run.accelerator import create_plain_accelerator
from training.run.stored_models import check_precision
from training.settings.checks import check

MAX_NAMED = 20  # bad images that are named while predicting


def main(settings: PredictSettings) -> Path:
    """Predict, write the output file and return its path."""
    accelerator = create_plain_accelerator(settings.processes)
    stored = load_stored_model(settings.model, settings.data.background)
    check_fits(stored, settings)
    check_precision(accelerator, stored.model.config)
    data = with_background(settings.data, settings.model)
    with accelerator.main_process_first():
        images = find_images(data, stored.num_channels)
    answers, output = create_answers(stored, settings, images), Path(settings.output.output_file)
    parts = Parts(output, record_of(settings, stored, images))
    start = begin(accelerator, parts, settings, stored)
    samples = make_samples(data, images.source, stored.num_channels, answers.transform)
    reader = ImageReader(images, samples, data.skip_bad_images)
    loader = batches(accelerator, images, reader, data, start, answers.stacks)
    model = stored.model.to(accelerator.device).eval()  # type: ignore[arg-type]
    predicted = predict(accelerator, model, answers, loader)
    total = None if images.total is None else images.total - start
    with Phase("Predicting", total, " images") as phase:
        keep(accelerator, predicted, parts, phase, data.max_bad_images)
    if accelerator.is_main_process:
        finish(output, parts, answers, class_list(stored.model.config))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return output


def record_of(settings: PredictSettings, stored: StoredModel, images: Images) -> dict[str, Any]:
    """All that the answers depend on."""
    facts, values = settings.facts(), settings.values()
    record = {name: value for name, value in values.items() if facts[name].affects_result}
    weights = sorted(Path(settings.model.model_name_or_path or "").glob("*.safetensors"))
    stamps = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in weights}
    return {**record, "weights": stamps, "images": images.fingerprint, "number of images": images.total}


def begin(accelerator: Accelerator, parts: Parts, settings: PredictSettings, stored: StoredModel) -> int:
    """The number of images that an earlier run has done; in all processes."""
    found = [0]
    if accelerator.is_main_process:
        masks, overwrite = settings.output.masks, settings.output.overwrite
        if stored.kind == "segmentation model" and parts.is_new and masks.exists():
            rule = "be empty: give another folder, or replace its masks with `--overwrite true`"
            check("masks_dir", masks, overwrite or (masks.is_dir() and not any(masks.iterdir())), rule)
        found = [parts.begin(overwrite)]
        if found[0]:
            print(f"Going on after {found[0]:,} images, whose answers are in {parts.folder}.", flush=True)
    return broadcast_object_list(found)[0]


@torch.no_grad()
def predict(
    accelerator: Accelerator, model: torch.nn.Module, answers: Answers, loader: Iterator[Batch]
) -> Iterator[list[Answer]]:
    """The answers to the next images, in order, in each process those of all."""
    for batch in rounds(loader):
        found = iter(answers(accelerator, model, batch) if len(batch["pixel_values"]) else [])
        own = [
            {"image": sample["image"], **({"error": sample["error"]} if "error" in sample else next(found))}
            for sample in batch["samples"]
        ]
        gathered: list[Answer] = gather_object(own)
        if not gathered:
            return
        yield gathered


def keep(
    accelerator: Accelerator, predicted: Iterator[list[Answer]], parts: Parts, phase: Phase, most_bad: int | None
) -> None:
    """Keep the answers in parts, and name bad images; the first process does, the others go along."""
    bad = 0
    for gathered in predicted:
        phase.update(len(gathered))
        for answer in gathered if accelerator.is_main_process else ():
            if "error" in answer:
                bad += 1
                rule = f"be at least the number of bad images. {answer['image']}: {answer['error']}"
                check("max_bad_images", most_bad, most_bad is None or bad <= most_bad, rule)
                if bad <= MAX_NAMED:
                    print(f"Warning: {answer['image']}: {answer['error']}", flush=True)
        if accelerator.is_main_process:
            parts.add(gathered)
    if accelerator.is_main_process:
        parts.write()


def finish(output: Path, parts: Parts, answers: Answers, names: list[str]) -> None:
    """Write the output file of all parts, and say what is in it."""
    rule = "hold images, but there is none"
    check("dataset_name", parts.record["dataset_name"], parts.num_done > 0, rule)
    write_answers(output, parts, answers, names)
    bad = sum("error" in answer for answer in parts)
    what = f"{bad:,} of {parts.num_done:,} images could not be read: see `error`." if bad else ""
    parts.remove()
    print(f"Wrote the answers to {parts.num_done:,} images to {output}. {what}".rstrip(), flush=True)


if __name__ == "__main__":
    with told_in_a_line():
        main(settings)
