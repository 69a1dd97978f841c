"""A comparison by `accelerate launch`, killed and stopped in the middle of runs, gives what an unbroken one gives."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.photographs import write_folder
from training.evaluation.pictures import read_metrics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
STEPS = 30
TINY = {"per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3, "checkpointing_steps": 5}
RECIPES = {
    "pretrain": {**TINY, "num_stages": 2, "image_size": 32, "decoder_hidden_size": 16, "max_train_steps": STEPS},
    "finetune": TINY,
}


def start(folder, name):
    flags = [f"--{task}_config={folder / f'{task}.yaml'}" for task in RECIPES]
    flags += [f"--dataset_name={folder / 'images'}", f"--output_dir={folder / name}", "--num_workers=0"]
    flags += ["--label_shares", "1.0", "--seeds", "0", f"--finetune_steps={STEPS}"]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "training/compare.py", *flags]
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def wait_for_steps(process, run, count):
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or len(read_metrics(metrics)) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def test_a_comparison_that_is_killed_and_stopped_gives_what_an_unbroken_one_gives(tmp_path):
    write_folder(tmp_path / "images", {"train": 8, "test": 6})
    for task, recipe in RECIPES.items():
        (tmp_path / f"{task}.yaml").write_text(yaml.safe_dump(recipe))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(tmp_path, "whole")
    assert "of balanced accuracy" in process.communicate(timeout=600)[0] and process.returncode == 0

    process = start(tmp_path, "broken")
    wait_for_steps(process, broken / "pretrain/fcmae-0", 12)
    family = psutil.Process(process.pid).children(recursive=True)
    for child in family:
        child.suspend()  # else the run might end before the next command looks
    process.kill()
    again = start(tmp_path, "broken")
    said = again.communicate(timeout=600)[0]
    assert again.returncode == 1 and "must not be in use" in said  # the run that the killed command has left
    for child in family:
        child.kill()
    psutil.wait_procs(family, timeout=60)
    process.communicate(timeout=60)

    process = start(tmp_path, "broken")
    wait_for_steps(process, broken / "runs/1-0-random", 7)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 75 and "the runs under way save a checkpoint" in said, said
    assert not (broken / "runs/1-0-random/model.safetensors").exists()
    assert not psutil.pid_exists(process.pid) and list((broken / "runs/1-0-random").glob("checkpoint-*"))

    process = start(tmp_path, "broken")
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    for run in ("pretrain/fcmae-0", "runs/1-0-random", "runs/1-0-fcmae"):
        weights = [load_file(folder / run / "model.safetensors") for folder in (whole, broken)]
        assert_close(*weights, rtol=0, atol=0)
    figures = [json.loads((folder / "compare.json").read_text())["figures"] for folder in (whole, broken)]
    assert figures[0] == figures[1]
