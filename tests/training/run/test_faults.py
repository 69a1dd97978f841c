"""What happens around a run: no room on the disk, no permission, dying workers, failing trackers, lost connections.

The run goes on, or stops and says why; its last checkpoint is whole, and the run resumed from it is the unbroken one.
"""

import json
import os
import re
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
from accelerate.tracking import TensorBoardTracker
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.dropping_server import come_back, serving
from tests.photographs import (
    fcmae,
    forget_accelerate,
    fresh_accelerate,
    quick_datasets,
    write_folder,
    write_parquet,
    write_tiny_fcmae,
)
from tests.small_models import run_python
from training import pretrain
from training.data import retry as reconnect
from training.evaluation.pictures import read_metrics
from training.machine.disk import writing
from training.run import training_run
from training.run.checkpoints import Checkpoints, find_damage, numbered_folders
from training.settings.scripts import PretrainSettings

__all__ = ["fcmae", "fresh_accelerate", "quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets", "fresh_accelerate")
SETTINGS = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 1, "max_train_steps": 5}
SETTINGS |= {"logging_steps": 1, "checkpointing_steps": 1, "reconstruction_steps": 2, "with_tracking": False}
NOBODY = 65534


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images") / "folder", {"train": 6})


def run(folder, dataset, fcmae, **fields):
    forget_accelerate()
    settings = {**SETTINGS, "num_workers": 0, "dataset_name": str(dataset), "output_dir": str(folder), **fields}
    pretrain.main(PretrainSettings(model_name_or_path=fcmae, **settings))
    return folder


def assert_the_unbroken_run(folder, whole):
    """The same losses in the log, and the same weights."""
    losses = [
        [(line["step"], line.get("loss")) for line in read_metrics(run / "metrics.jsonl")] for run in (folder, whole)
    ]
    assert losses[0] == losses[1]
    assert_close(load_file(folder / "model.safetensors"), load_file(whole / "model.safetensors"), rtol=0, atol=0)


def limit_file_size(limit):
    """Let writing fail beyond so many bytes of a file, as on a disk without room (Python ignores the signal)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


# From a call on, files end after so many bytes: in the weights, in the optimizer's state, at once.
FULL = [
    (Checkpoints, "save", 3, 5000, "checkpoint-3 cannot be written"),
    (Checkpoints, "save", 3, 12000, "checkpoint-3 cannot be written"),
    (Checkpoints, "save", 3, 1, "checkpoint-3 cannot be written"),
    (training_run, "save_model", 1, 5000, "cannot be written"),
]


@pytest.mark.parametrize(("owner", "name", "call", "limit", "message"), FULL)
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint_whole(
    owner, name, call, limit, message, images, fcmae, tmp_path, monkeypatch
):
    whole = run(tmp_path / "whole", images, fcmae)
    save, calls = getattr(owner, name), []

    def save_without_room(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            limit_file_size(limit)
        return save(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, save_without_room)
        try:
            with pytest.raises(OSError, match=message) as error:
                run(tmp_path / "full", images, fcmae)
        finally:
            limit_file_size(resource.RLIM_INFINITY)
    assert "Checkpoints that are there are whole: make room for it, then resume" in str(error.value)
    assert not (tmp_path / "full/model.safetensors").exists()
    found = numbered_folders(tmp_path / "full")
    assert found and not any(find_damage(checkpoint) for checkpoint in found)
    assert_the_unbroken_run(run(tmp_path / "full", images, fcmae, resume_from_checkpoint="latest"), whole)


def test_a_full_disk_is_known_by_what_the_system_says_not_by_the_words_of_an_error(tmp_path):
    def fail(words):
        (tmp_path / "partial").mkdir(exist_ok=True)
        (tmp_path / "partial/weights").write_bytes(b"half")
        with writing(tmp_path / "checkpoint", tmp_path / "partial"):
            raise RuntimeError(words)

    with pytest.raises(RuntimeError, match=r"^PytorchStreamWriter failed$"):  # there is room: something else
        fail("PytorchStreamWriter failed")
    assert (tmp_path / "partial/weights").read_bytes() == b"half" and not (tmp_path / ".probe").exists()
    try:
        limit_file_size(12000)
        with pytest.raises(OSError, match=r"checkpoint cannot be written: .*File too large"):
            fail("words of a later version")
    finally:
        limit_file_size(resource.RLIM_INFINITY)


def test_a_log_that_cannot_be_written_stops_the_run_and_is_whole_after_a_resume(images, fcmae, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", images, fcmae)
    save, log = Checkpoints.save, tmp_path / "full/metrics.jsonl"

    def save_and_fill(self, step, **progress):
        save(self, step, **progress)
        if step == 2:
            log.rename(tmp_path / "kept")
            log.symlink_to("/dev/full")  # every write to it is one too many

    with monkeypatch.context() as patched, pytest.raises(OSError, match=r"metrics.jsonl cannot be written: .*No space"):
        patched.setattr(Checkpoints, "save", save_and_fill)
        run(tmp_path / "full", images, fcmae)
    (tmp_path / "kept").replace(log)
    assert_the_unbroken_run(run(tmp_path / "full", images, fcmae, resume_from_checkpoint="latest"), whole)


@contextmanager
def as_plain_user(tmp_path, **closed):
    """Without the rights of root, for whom nothing is forbidden, and with these permissions on these paths."""
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:  # pytest's own, for root alone
            parent.chmod(0o755)
    for name, mode in closed.items():
        (tmp_path / name).chmod(mode)
    if root := os.geteuid() == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for name in closed:
            (tmp_path / name).chmod(0o777)


@pytest.mark.parametrize("closed", ["images/train", "images/train/coffee", "images/train/coffee/3.jpg"])
@pytest.mark.parametrize("streaming", [False, True])
def test_images_that_may_not_be_read_are_named(closed, streaming, tmp_path):
    images, model = write_folder(tmp_path / "images", {"train": 6}), write_tiny_fcmae(tmp_path / "fcmae")
    with as_plain_user(tmp_path, **{closed: 0}), pytest.raises(ValueError, match=r"ermission denied") as error:
        run(tmp_path / "out", images, str(model), streaming=streaming)
    assert str(tmp_path / closed) in str(error.value)


def test_a_folder_that_may_not_be_written_is_refused_before_any_work(images, tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    model = write_tiny_fcmae(tmp_path / "fcmae")
    monkeypatch.setattr(training_run, "create_accelerator", lambda config: pytest.fail("work has begun"))
    message = r"`output_dir` \(=.*closed/out\) must be writable, but .*closed is not"
    with as_plain_user(tmp_path, closed=0o555), pytest.raises(ValueError, match=message):
        run(tmp_path / "closed/out", images, str(model))


@pytest.mark.parametrize("method", ["log", "log_images", "finish"])
def test_a_tracker_that_fails_is_named_and_left(method, images, fcmae, tmp_path, monkeypatch, capsys):
    whole = run(tmp_path / "whole", images, fcmae)
    calls = []

    def fail(self, *args, **kwargs):
        calls.append(1)
        raise ConnectionError("no route to the tracker")

    monkeypatch.setattr(TensorBoardTracker, method, fail)
    tracked = run(tmp_path / "tracked", images, fcmae, with_tracking=True)
    assert calls == [1]  # and is not asked again
    said = "Warning: the tracker tensorboard failed: ConnectionError('no route to the tracker'). Going on without it."
    assert said in capsys.readouterr().out
    assert_the_unbroken_run(tracked, whole)


def test_a_tracker_that_cannot_start_is_said_before_the_first_step(images, fcmae, tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise PermissionError("log in first")

    monkeypatch.setattr(TensorBoardTracker, "start", fail)
    with pytest.raises(ValueError, match=r"`report_to` \(=tensorboard\) must be a tracker that can be started.*log in"):
        run(tmp_path / "out", images, fcmae, with_tracking=True)
    assert not (tmp_path / "out/metrics.jsonl").exists()


@pytest.mark.filterwarnings("ignore:`log_with=")  # Accelerate's own, which goes on without a tracker
def test_a_tracker_that_is_not_installed_is_said_before_any_work(images, fcmae, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "create_model", lambda config: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match=r"`report_to` \(=comet_ml\) must be installed: `pip install comet_ml`"):
        run(tmp_path / "out", images, fcmae, with_tracking=True, report_to="comet_ml")


# A process of its own: the death of its workers is an exception wherever it is at that moment, and might be in pytest.
DYING_WORKERS = """
import json, multiprocessing, os, signal, sys
from training import pretrain
from training.data.batches import TrainBatches
from training.settings.scripts import PretrainSettings

fetch, fetched = TrainBatches.__next__, []

def fetch_and_kill(self):
    fetched.append(1)
    if len(fetched) == 3:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
    return fetch(self)

TrainBatches.__next__ = fetch_and_kill
try:
    pretrain.main(PretrainSettings(**json.loads(sys.argv[1])))
except RuntimeError as error:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the other worker's end would be another error
    print(error, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("streaming", [False, True])
def test_a_worker_that_dies_stops_the_run_and_the_run_is_taken_up_again(streaming, fcmae, tmp_path, monkeypatch):
    images = write_parquet(tmp_path / "parquet", {"train": 6})
    settings = {"num_workers": 2, "streaming": streaming, "max_train_steps": 12}
    whole = run(tmp_path / "whole", images, fcmae, **settings)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folders = {"dataset_name": str(images), "output_dir": str(tmp_path / "broken"), "model_name_or_path": fcmae}
    said = run_python(DYING_WORKERS, json.dumps({**SETTINGS, **settings, **folders}), cwd=Path(__file__).parents[3])
    assert re.search(r"DataLoader worker .*(killed by signal: Killed|exited unexpectedly)", said)
    assert not any(find_damage(checkpoint) for checkpoint in numbered_folders(tmp_path / "broken"))
    resumed = run(tmp_path / "broken", images, fcmae, **settings, resume_from_checkpoint="latest")
    assert_the_unbroken_run(resumed, whole)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_source_that_goes_away_and_comes_back_changes_nothing(num_workers, fcmae, tmp_path, monkeypatch):
    monkeypatch.setattr(reconnect, "WAITS", (0.05, 0.1, 0.2, 0.5, 0.5))
    monkeypatch.setattr("datasets.config.STREAMING_READ_RETRY_INTERVAL", 0.05)
    write_parquet(tmp_path / "parquet", {"train": 6}, files=1)
    settings = {"num_workers": num_workers, "streaming": True, "max_train_steps": 12}
    whole = run(tmp_path / "whole", tmp_path / "parquet/train-00000-of-00001.parquet", fcmae, **settings)
    with serving(tmp_path / "parquet") as server:
        url = f"{server.url}/train-00000-of-00001.parquet"
        run(tmp_path / "near", url, fcmae, **settings)
        middle = server.num_answered * 2 // 3
        server.leave_after = server.num_answered + middle
        come_back(server, 0.4)
        dropped = run(tmp_path / "dropped", url, fcmae, **settings)
        assert server.num_dropped
        assert_the_unbroken_run(dropped, whole)

        monkeypatch.setattr(reconnect, "WAITS", (0.05, 0.1))
        server.leave_after = server.num_answered + middle
        with pytest.raises(ConnectionError, match=r"could not be read for"):  # by a reader, or for the picture
            run(tmp_path / "lost", url, fcmae, **settings)
        server.away.clear()
        assert not any(find_damage(checkpoint) for checkpoint in numbered_folders(tmp_path / "lost"))
        assert_the_unbroken_run(run(tmp_path / "lost", url, fcmae, **settings, resume_from_checkpoint="latest"), whole)
