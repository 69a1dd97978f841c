"""Devices without float64, systems without fork, SIGHUP and `resource`: simulated here, since this machine has them."""

import os
import runpy
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.dynamic_module_utils import get_imports

import hf_convnextv2
from conversion.files import flush
from tests.photographs import fresh_accelerate, quick_datasets, write_folder, write_tiny_fcmae
from training import finetune, pretrain
from training.evaluation.pictures import read_metrics
from training.machine import memory
from training.run.checkpoints import describe_files
from training.run.losses import AT_ONCE, Losses, add_up
from training.settings.scripts import FinetuneSettings, PretrainSettings

__all__ = ["fresh_accelerate", "quick_datasets"]
pytestmark = pytest.mark.usefixtures("fresh_accelerate")
TRAINING = Path(__file__).parents[2] / "training"
MODELS = Path(hf_convnextv2.__file__).parent
SETTINGS = {"per_device_train_batch_size": 4, "max_train_steps": 3, "logging_steps": 2, "with_tracking": False}
SETTINGS |= {"checkpointing_steps": 1, "ema_decay": 0.9, "image_size": 32}


class WithoutFloat64(TorchDispatchMode):
    """A device that refuses what Apple's refuse; everything that this process computes is on it."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64 for leaf in tree_leaves(result)):
            raise TypeError(f"{function}: there is no float64 on this device")
        return result


def test_the_device_without_float64_refuses_it():
    with WithoutFloat64(), pytest.raises(TypeError, match="no float64"):
        torch.zeros(1).double()


@pytest.mark.usefixtures("quick_datasets")
@pytest.mark.parametrize("script", [pretrain, finetune])
def test_a_run_needs_no_float64(script, tmp_path):
    images = write_folder(tmp_path / "images", {"train": 4, "test": 2})
    settings = {**SETTINGS, "dataset_name": str(images), "output_dir": str(tmp_path / "out"), "num_workers": 1}
    with WithoutFloat64():  # the worker is another process: it prepares images on the processor
        if script is pretrain:
            fields = {"target_type": "pixel+feature", "model_name_or_path": str(write_tiny_fcmae(tmp_path / "fcmae"))}
            pretrain.main(PretrainSettings(**settings, **fields))
        else:
            finetune.main(FinetuneSettings(**settings, num_stages=2, eval_split="test", mixup=0.8))
    assert [line["step"] for line in read_metrics(tmp_path / "out/metrics.jsonl") if "loss" in line] == [2, 3]


def test_losses_are_summed_as_in_float64():
    values = torch.rand(AT_ONCE + 500, 2) * torch.logspace(-4, 4, AT_ONCE + 500)[:, None]
    losses, expected = Losses(1), torch.zeros(3, dtype=torch.float64)
    for loss, part in values:
        losses.add(loss, part)
        expected += torch.stack((loss.double(), torch.tensor(1.0, dtype=torch.float64), part.double()))
    assert len(losses.waiting) < AT_ONCE
    assert losses.since_last_line() == expected.tolist() == losses.close_line() == losses.total
    assert sum(values[:, 0]).item() != expected[0].item()  # the control: in float32 it is another sum
    losses.add(torch.tensor(2.0), torch.tensor(1.0))
    assert losses.close_line() == [2.0, 1.0, 1.0]
    assert losses.total == add_up([expected.tolist(), [2.0, 1.0, 1.0]])


def test_losses_of_an_older_checkpoint_are_taken_up():
    losses = Losses(0, window=[1.5, 2.0], total=[8.0, 4.0])
    losses.add(torch.tensor(0.25))
    assert losses.close_line() == [1.75, 3.0] and losses.total == [9.75, 7.0]


# Systems


def test_every_module_loads_without_what_windows_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.delattr(os, "register_at_fork")
    for name in ("SIGHUP", "SIGCHLD", "SIGKILL", "pthread_kill"):
        monkeypatch.delattr(signal, name)
    for file in sorted(TRAINING.glob("*.py")):
        found = runpy.run_path(str(file), run_name="without")
        if file.name == "signals.py":
            assert [number.name for number in found["STOPPING"]] == ["SIGTERM", "SIGINT"]


def test_code_that_travels_with_a_model_imports_only_what_every_system_has():
    """Transformers refuses a repository whose code imports a module that is missing, wherever in the code."""
    named = {name for file in MODELS.glob("*.py") for name in get_imports(file)}
    assert not named & {"resource", "triton"} and {"torch", "transformers"} <= named


def test_peak_memory_is_in_bytes_on_every_system(monkeypatch):
    linux = memory.peak_resident_memory()
    assert linux >= psutil.Process().memory_info().rss // 2
    monkeypatch.setattr(sys, "platform", "darwin")  # where the same figure means bytes
    assert memory.peak_resident_memory() * 1024 == pytest.approx(linux, rel=0.01)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=7)))
    assert memory.peak_resident_memory() == 7


def test_a_checkpoint_is_flushed_and_named_as_on_windows(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights.bin").write_bytes(b"weights")
    assert list(describe_files(tmp_path)) == ["model/weights.bin"]
    opened = []

    def note_and_open(path, flags):
        opened.append((path.name, flags))
        return os.open(path, flags)

    windows = SimpleNamespace(**{**vars(os), "name": "nt", "open": note_and_open})
    monkeypatch.setattr("conversion.files.os", windows)
    for path in (tmp_path, tmp_path / "model/weights.bin"):
        flush(path)
    assert opened == [("weights.bin", os.O_RDWR)]  # a folder cannot be opened, a file not flushed that is only read
