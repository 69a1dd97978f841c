"""The README's commands, as a user types them: pre-train, fine-tune and validate, stopped once and resumed.

Recipe, flags and launcher are the README's; only the runs are short.
"""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.photographs import write_folder, write_parquet
from training.pictures import read_metrics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SHORT = "--max_train_steps 6 --warmup_steps 2 --per_device_train_batch_size 4 --logging_steps 1"


def readme_commands() -> dict[str, str]:
    """The three commands of "Train on your own images", by script."""
    block = (ROOT / "README.md").read_text().split("## Train on your own images")[1].split("```")[1]
    commands = re.findall(r"^accelerate launch training/(\w+)\.py ((?:.*\\\n)*.*)$", block, re.MULTILINE)
    return {script: arguments.replace("\\\n", " ") for script, arguments in commands}


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
    accumulate = {"pretrain": " --gradient_accumulation_steps 2 --ema_decay 0.99", "finetune": " --eval_steps 3"}
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
            flags = more + accumulate[script]
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
