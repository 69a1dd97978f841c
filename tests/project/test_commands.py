"""The commands of the README and of docs/, as a user types them, and those that train stopped once and resumed.

Recipe, flags and launcher are the pages'; only the runs are short, and nothing is downloaded or uploaded.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import PreTrainedModel

from conversion.convert import main as convert
from hf_convnextv2 import ConvMAEConfig, ConvMAEForPreTraining, ConvNextV2Config, ConvNextV2ForImageClassification
from tests.labelled_photographs import VALUES, write_label_folder
from tests.photographs import CLASSES, cut, write_folder, write_masked_folder, write_objects_folder, write_parquet
from tests.readme import OFFICIAL, PAGES, README, commands, make_stand_ins, save_classifier
from training.evaluation.pictures import read_metrics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SHORT = "--max_train_steps 6 --warmup_steps 2 --per_device_train_batch_size 4 --logging_steps 1"


AS_IN_THE_PAGES = dict(zip((*CLASSES, *VALUES), ("cat", "dog", "bird", "price", "weight"), strict=True))


def readme_commands() -> dict[str, str]:
    """The three commands of "Train on your own images", by script."""
    words = [shlex.split(command) for command in commands(README)]
    runs = [each for each in words if each[0] == "accelerate" and any("path/to" in word for word in each)]
    return {Path(each[2]).stem: shlex.join(each[3:]) for each in runs}


def start(script: str, flags: str, places: dict[str, str]) -> subprocess.Popen[str]:
    """`accelerate launch` a command of the README with its paths replaced and more flags."""
    arguments = readme_commands()[script]
    for written, place in places.items():
        assert written in arguments, f"the README's command has no {written}"
        arguments = arguments.replace(written, place)
    launch = f"-m accelerate.commands.launch --num_cpu_threads_per_process 2 training/{script}.py {arguments} {flags}"
    return subprocess.Popen(
        [sys.executable, *shlex.split(launch)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(script: str, flags: str, places: dict[str, str]) -> None:
    process = start(script, flags, places)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output


def stop_after(steps: int, script: str, flags: str, places: dict[str, str], folder: Path) -> None:
    """Start a command and ask its training process to stop when it has logged some steps."""
    process, metrics = start(script, flags, places), folder / "metrics.jsonl"
    while not metrics.exists() or len(read_metrics(metrics)) < steps:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    trainer = psutil.Process(process.pid).children()[0]
    trainer.terminate()
    output, _ = process.communicate(timeout=600)
    assert "exit code 75" in output or "returned non-zero exit status 75" in output, output
    assert 0 < len(read_metrics(metrics)) < 6


@pytest.mark.parametrize("kind", ["folder", "parquet", "stream"])
def test_readme_commands_stopped_and_resumed_give_what_an_unbroken_run_gives(kind, tmp_path):
    write = write_folder if kind == "folder" else write_parquet
    images = str(write(tmp_path / "images", {"train": 12, "test": 4}))
    more = SHORT + (" --streaming true" if kind == "stream" else "")
    accumulate = " --gradient_accumulation_steps 2 --ema_decay 0.99"
    settings = {"pretrain": accumulate, "finetune": f"{accumulate} --mixup 0.8 --layer_decay 0.9 --eval_steps 3"}
    pretrained = {}
    for script in ("pretrain", "finetune"):
        for run in ("whole", "resumed"):
            folder = tmp_path / script / run
            if script == "pretrain":
                places = {"path/to/images": images, "out/pretrain": str(folder)}
            else:
                places = {
                    "path/to/labelled": images,
                    "out/pretrain": pretrained["whole"],
                    "out/classifier": str(folder),
                }
            flags = more + settings[script]
            if run == "resumed":
                stop_after(2, script, flags, places, folder)
                flags += " --resume_from_checkpoint latest"
            finish(script, flags, places)
            pretrained.setdefault(run, str(folder))
        whole, resumed = (tmp_path / script / run for run in ("whole", "resumed"))
        assert [row["step"] for row in read_metrics(resumed / "metrics.jsonl") if "loss" in row] == [1, 2, 3, 4, 5, 6]
        losses = [
            [row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row] for run in (whole, resumed)
        ]
        assert losses[0] == losses[1]
        assert_close(load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors"), rtol=0, atol=0)

    classifier = tmp_path / "finetune" / "resumed"
    validated = f"--output_dir {tmp_path / 'validate'}" + (" --streaming true" if kind == "stream" else "")
    finish("validate", validated, {"out/classifier": str(classifier), "path/to/labelled": images})
    expected = json.loads((classifier / "all_results.json").read_text())
    found = json.loads((tmp_path / "validate" / "eval_results.json").read_text())
    assert found["eval_accuracy"] == expected["eval_accuracy"]


def write_what_the_pages_name(folder: Path) -> None:
    """Data sets, models of the Hub, an official file and a checkpoint, small, under the names that the pages have."""
    for name in ("training", "conversion"):
        (folder / name).symlink_to(ROOT / name)
    write_folder(folder / "path/to/images", {"train": 8})
    write_folder(folder / "path/to/labelled", {"train": 8, "test": 4})
    write_masked_folder(folder / "path/to/masked", {"train": 8, "test": 4})
    write_objects_folder(folder / "path/to/objects", {"train": 8, "test": 4})
    write_label_folder(folder / "path/to/tagged", {"train": 16, "test": 8}, "jsonl", AS_IN_THE_PAGES)
    write_parquet(folder / "ILSVRC/imagenet-1k", {"train": 8, "validation": 4})
    for name in OFFICIAL:
        save_classifier(folder / name, 1000)
    cut("coffee", 1)[0].save(folder / "photo.jpg")
    v1: dict[str, Any] = {"use_grn": False, "layer_scale_init_value": 1e-6}
    for name, blocks in (("convnextv2_tiny_1k_224_ema.pt", dict[str, Any]()), ("convnext_tiny_1k_224_ema.pth", v1)):
        config = ConvNextV2Config.from_size("tiny", num_labels=1000, **blocks)
        write_official(folder / name, ConvNextV2ForImageClassification(config))
    write_official(folder / "convmae_base.pth", ConvMAEForPreTraining(ConvMAEConfig()))


def write_official(file: Path, model: PreTrainedModel) -> None:
    """Random weights as the official code releases trained ones."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(f"{scratch}/ours")
        convert([f"{scratch}/ours", f"{scratch}/official", "--to", "official"])
        torch.save({"model": load_file(f"{scratch}/official/model.safetensors")}, file)


def write_models(folder: Path, made: set[str]) -> None:
    """What a page takes from another page's commands: trained models, and a checkpoint with its average."""
    make_stand_ins(folder)
    for name in made:  # by the page's own commands
        shutil.rmtree(folder / name, ignore_errors=True)
    if "out/classifier" not in made:
        save_classifier(folder / "out/classifier", len(CLASSES))
    checkpoint = folder / "out/pretrain/checkpoint-5000"
    shutil.copytree(folder / "out/pretrain", checkpoint)
    average = {f"module.{name}": value for name, value in load_file(checkpoint / "model.safetensors").items()}
    torch.save({**average, "n_averaged": torch.tensor(1)}, checkpoint / "custom_checkpoint_1.pkl")


# Not run here: test_pages.py knows `make` and installations by name; the rest needs GPUs, or is a suite of its own.
INSTALLS = ("make", "pip", "git", "cd", "docker")
SERVES = "spaces.app"  # until it is stopped
UPLOADS = {"conversion.publish", "spaces.publish"}
ELSEWHERE = (
    "one_gpu.yaml",
    "several_gpus.yaml",
    "several_nodes.yaml",
    "fsdp2.yaml",
    "test_upstream_suites.py",
    "gpu.json",
)
LAUNCHERS = {"accelerate": "accelerate.commands.launch", "torchrun": "torch.distributed.run"}


def runs(page: Path) -> list[list[str]]:
    """The words of the commands of a page that are run."""
    words = [shlex.split(command) for command in commands(page)]
    ours = [each for each in words if each[0] not in INSTALLS and SERVES not in each]
    return [each for each in ours if not any(word.endswith(ELSEWHERE) for word in each)]


WITH_RUNS = [page for page in PAGES if runs(page)]


def as_arguments(words: list[str]) -> list[str]:
    """A command as Python runs it here: short, and without an upload."""
    program, *rest = words
    if program in LAUNCHERS:
        rest = ["-m", LAUNCHERS[program], *(rest[1:] if program == "accelerate" else rest)]
    if any(word.endswith(("pretrain.py", "finetune.py", "segment.py", "detect.py")) for word in rest):
        rest += f"{SHORT} --gradient_accumulation_steps 1".split()
    if "training/compare.py" in rest:
        rest += ["--label_shares", "1.0", "--seeds", "0", "--finetune_steps", "2", "--pretrain_epochs", "1"]
    return rest + (["--dry_run"] if UPLOADS & set(rest) and "--dry_run" not in rest else [])


def test_the_pages_with_commands_that_run_are_these():
    expected = {"README", "quickstart", "devices", "evaluating", "views", "paper", "converting", "publishing"}
    expected |= {"segmentation", "detection", "predicting", "embedding", "convmae", "comparing", "labels", "spaces"}
    expected |= {"analysis", "exporting"}
    assert {page.stem for page in WITH_RUNS} == expected and len(runs(README)) == 3
    left_out = {word for page in PAGES for command in commands(page) for word in command.split() if "/" in word}
    assert all(any(word.endswith(name) for word in left_out) for name in ELSEWHERE)


@pytest.mark.parametrize("page", WITH_RUNS, ids=lambda page: page.stem)
def test_every_command_of_a_page_runs_as_it_is_typed_one_after_the_other(page, tmp_path):
    write_what_the_pages_name(tmp_path)
    made = {word for words in runs(page) for flag, word in pairwise(words) if flag == "--output_dir"}
    if "out/pretrain" not in made:
        write_models(tmp_path, made)
    printed = ""
    for words in runs(page):
        assigned = takewhile(lambda word: re.fullmatch(r"[A-Z_]+=\S+", word), words)
        variables = dict(word.split("=", 1) for word in assigned)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        command = [sys.executable, *as_arguments(words[len(variables) :])]
        if page.stem == "devices":  # the same run on other devices
            command += ["--overwrite_output_dir", "true"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    for folder in made:
        result = "compare.json" if folder == "out/compare" else "model.safetensors"
        result = "analysis.json" if page.stem == "analysis" else result
        assert (tmp_path / folder / result).is_file() and (tmp_path / folder / "README.md").is_file()
    if page == README:
        assert "Evaluating on split `test` of path/to/labelled" in printed
    if page.stem == "converting":
        for folder in ("out/tiny", "out/encoder"):
            assert (tmp_path / folder / "model.safetensors").is_file() and (tmp_path / folder / "README.md").is_file()
