"""predict.py and embed.py after stops and kills, and in several processes: one file, no image lost or doubled."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.photographs import cut, message_of, quick_datasets, write_parquet
from tests.training.test_distributed import ROOT
from tests.training.test_distributed import run as launch
from tests.training.test_embed import assert_same_rows, embedded, read_features
from tests.training.test_predict import classifier, images, mask_rcnn, predicted, read, segmenter
from training import embed, predict
from training.prediction import parts
from training.prediction.answers import ClassAnswers, MaskAnswers
from training.prediction.features import FeatureAnswers
from training.run.accelerator import create_plain_accelerator
from training.run.locks import only_one

__all__ = ["classifier", "images", "mask_rcnn", "quick_datasets", "segmenter"]
pytestmark = pytest.mark.usefixtures("quick_datasets")


class Script(NamedTuple):
    """A script, how a test runs and reads it, and which of its classes answers; all of it on the same classifier."""

    name: str
    run: Any
    read: Any
    answers: type
    suffix: str
    changed: dict[str, Any]  # a setting that changes the answers
    said: str


EMBED = ("embed", embedded, read_features, FeatureAnswers)
SCRIPTS = {
    "predict": Script("predict", predicted, read, ClassAnswers, ".csv", {"top_k": 2}, "`top_k` was 1 and is 2"),
    "embed, parquet": Script(*EMBED, ".parquet", {"normalize": True}, "`normalize` was False and is True"),
    "embed, npy": Script(*EMBED, ".npy", {"pooling": ["max"]}, "`pooling` was ['mean'] and is ['max']"),
}


@pytest.fixture(params=SCRIPTS)
def script(request):
    return SCRIPTS[request.param]


def assert_same(script, rows, expected, tolerance=1e-6):
    if script.name == "embed":
        return assert_same_rows(rows, expected, tolerance)
    assert [(row["image"], row["label"]) for row in rows] == [(row["image"], row["label"]) for row in expected]
    scores = [[float(row["score"]) for row in each] for each in (rows, expected)]
    assert np.allclose(*scores, rtol=0, atol=tolerance)


class Killed(BaseException):
    """Ends a run anywhere."""


def killed_after(count, monkeypatch, kind):
    """Let a run end when it has answered `count` batches; every batch is a part of its own."""
    answer, seen = kind.__call__, []

    def call(self, accelerator, model, batch):
        if len(seen) == count:
            raise Killed
        seen.append([sample["image"] for sample in batch["samples"]])
        return answer(self, accelerator, model, batch)

    monkeypatch.setattr(parts, "SECONDS_BETWEEN_PARTS", 0)
    monkeypatch.setattr(kind, "__call__", call)
    return seen


@pytest.mark.parametrize("form", ["folder", "stream"])
def test_a_resumed_run_computes_the_rest_alone_and_gives_the_same_file(
    script, form, classifier, images, tmp_path, monkeypatch, capsys
):
    is_stream = form == "stream"
    name = write_parquet(tmp_path / "parquet", {"train": 4}) / "*.parquet" if is_stream else images
    fields = {"streaming": is_stream}
    whole = script.run(classifier, name, tmp_path / f"whole{script.suffix}", **fields)
    output = tmp_path / f"answers{script.suffix}"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        first = killed_after(1, patch, script.answers)
        script.run(classifier, name, output, **fields)
    assert not output.exists()
    with monkeypatch.context() as patch:
        second = killed_after(99, patch, script.answers)
        rows = script.run(classifier, name, output, **fields, per_device_eval_batch_size=4)  # batches may differ
    assert "Going on after 5 images" in capsys.readouterr().out
    assert sum(map(len, first)) == 5 and sum(map(len, second)) == 7
    assert_same(script, rows, whole)
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_goes_on_with_its_own_settings_and_images_alone(script, classifier, images, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    for i, picture in enumerate(cut("coffee", 7)):
        picture.save(own / f"{i}.png")
    output = tmp_path / f"answers{script.suffix}"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(1, patch, script.answers)
        script.run(classifier, own, output)
    message = message_of(lambda: script.run(classifier, own, output, **script.changed))
    assert f"must go on as it began, but {script.said}. Start with `--overwrite true`" in message
    (own / "6.png").unlink()
    assert "`number of images` was 7 and is 6" in message_of(lambda: script.run(classifier, own, output))
    assert len(script.run(classifier, own, output, overwrite=True)) == 6


def test_a_run_goes_on_though_its_masks_lie_among_the_images_of_its_pattern(segmenter, images, tmp_path, monkeypatch):
    shutil.copytree(images, tmp_path / "own")
    pattern, output = tmp_path / "own/**/*.*", tmp_path / "own/answers.csv"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(1, patch, MaskAnswers)
        predicted(segmenter, pattern, output)
    assert len(list((tmp_path / "own/answers_masks").rglob("*.png"))) == 5
    with monkeypatch.context() as patch:
        rest = killed_after(99, patch, MaskAnswers)
        assert len(predicted(segmenter, pattern, output)) == 12
    assert sum(map(len, rest)) == 7


@pytest.mark.parametrize("loss", ["deleted", "of another table"])
def test_a_run_does_not_go_on_without_the_masks_that_are_done(loss, segmenter, images, tmp_path, monkeypatch):
    output, masks = tmp_path / "answers.csv", tmp_path / "answers_masks"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(1, patch, MaskAnswers)
        predicted(segmenter, images, output)
    name = sorted(masks.rglob("*.png"))[2].relative_to(masks)
    (masks / name).unlink()
    if loss == "of another table":
        predicted(segmenter, images, tmp_path / "other.csv")
        shutil.copy(tmp_path / "other_masks" / name, masks / name)
    message = message_of(lambda: predicted(segmenter, images, output))
    assert (
        f"answers_masks) must hold the masks of all images that are done, but lacks {name}: delete {output}.partial"
        in message
    )
    shutil.rmtree(f"{output}.partial")
    if loss == "deleted":
        assert len(predicted(segmenter, images, output, overwrite=True)) == 12
        assert len(list(masks.rglob("*.png"))) == 12


def test_two_commands_do_not_share_a_folder_of_masks(segmenter, images, tmp_path):
    masks = tmp_path / "masks"
    with only_one(masks):
        message = message_of(lambda: predicted(segmenter, images, tmp_path / "answers.csv", masks_dir=str(masks)))
    assert "`masks_dir` (=" in message and "must not be in use" in message
    (masks / ".lock").unlink()
    predicted(segmenter, images, tmp_path / "answers.csv", masks_dir=str(masks))
    assert not list(masks.rglob(".*"))


def stopped_at_five(script, model, dataset, output, monkeypatch, **fields):
    """A run that ends after its first batch."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(1, patch, script.answers)
        script.run(model, dataset, output, **fields)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin"])
def test_a_run_does_not_go_on_with_another_model(file, script, classifier, images, tmp_path, monkeypatch):
    model, output = tmp_path / "model", tmp_path / f"answers{script.suffix}"
    shutil.copytree(classifier, model)
    (model / "pytorch_model.bin").touch()
    (model / "eval_results.json").touch()
    stopped_at_five(script, model, images, output, monkeypatch)
    os.utime(model / "eval_results.json", (0, 0))  # no answer depends on it
    os.utime(model / file, (0, 0))
    assert f"`{file} of the model` was [" in message_of(lambda: script.run(model, images, output))
    assert len(script.run(model, images, output, overwrite=True)) == 12


@pytest.mark.parametrize("form", ["folder", "pattern", "column of paths", "parquet", "stream"])
def test_a_run_does_not_go_on_with_images_of_the_same_names(form, script, classifier, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    for i, picture in enumerate(cut("coffee", 7)):
        picture.save(own / f"{i}.png")
    name = {"folder": own, "pattern": own / "*.png"}.get(form, tmp_path / "own.parquet")
    files = sorted(own.glob("*.png"))

    def write():
        values = [str(file) if "paths" in form else {"bytes": file.read_bytes(), "path": None} for file in files]
        pq.write_table(pa.table({"image": values}), tmp_path / "own.parquet")

    write()
    output, fields = tmp_path / f"answers{script.suffix}", {"streaming": form == "stream"}
    stopped_at_five(script, classifier, name, output, monkeypatch, **fields)
    shutil.copyfile(own / "2.png", own / "1.png")
    if form in ("parquet", "stream"):
        write()
    changed = {"parquet": "`images` was", "stream": "`sizes and times of data files` was"}
    message = message_of(lambda: script.run(classifier, name, output, **fields))
    assert changed.get(form, "`sizes and times of image files` was") in message
    rows = script.run(classifier, name, output, overwrite=True, **fields)
    assert len(rows) == 7 and same_answer(rows[1], rows[2])


def same_answer(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one if name not in ("image", "index"))


def test_a_run_does_not_go_on_in_another_precision(script, classifier, images, tmp_path, monkeypatch):
    def as_the_environment_says(settings):
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"  # until the run ends
        return create_plain_accelerator(settings)

    output = tmp_path / f"answers{script.suffix}"
    stopped_at_five(script, classifier, images, output, monkeypatch)
    with monkeypatch.context() as patch:
        for module in (predict, embed):
            patch.setattr(module, "create_plain_accelerator", as_the_environment_says)
        message = message_of(lambda: script.run(classifier, images, output))
    assert "`mixed_precision` was no and is bf16. Start" in message
    assert len(script.run(classifier, images, output, mixed_precision="no")) == 12


def test_a_run_that_was_killed_while_its_output_was_named_goes_on(script, classifier, images, tmp_path, monkeypatch):
    output, replace = tmp_path / f"answers{script.suffix}", os.replace

    def killed(source, target):
        if Path(target) == output:
            (tmp_path / f".{output.name}.7-left.partial").touch()  # as a kill leaves it
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", killed)
        script.run(classifier, images, output)
    assert not output.exists() and list(tmp_path.glob("*.partial"))
    with monkeypatch.context() as patch:
        assert not killed_after(99, patch, script.answers)
        assert len(script.run(classifier, images, output)) == 12
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*.partial"))


def test_two_commands_do_not_write_one_output(script, classifier, images, tmp_path):
    output = tmp_path / f"answers{script.suffix}"
    with only_one(tmp_path / f"answers{script.suffix}.partial"):
        message = message_of(lambda: script.run(classifier, images, output, overwrite=True))
    assert f"`output_file` (={output}) must not be in use" in message and not output.exists()
    assert len(script.run(classifier, images, output)) == 12


def test_the_bad_images_of_an_interrupted_run_count(script, classifier, tmp_path, monkeypatch, capsys):
    own = tmp_path / "own"
    own.mkdir()
    for i, picture in enumerate(cut("coffee", 7)):
        picture.save(own / f"{i}.png")
    for i in (0, 6):
        (own / f"{i}.png").write_bytes(b"")
    output = tmp_path / f"answers{script.suffix}"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(1, patch, script.answers)
        script.run(classifier, own, output)
    message = message_of(lambda: script.run(classifier, own, output, max_bad_images=1))
    assert "`max_bad_images` (=1) must be at least the number of bad images. 6.png" in message
    rows = script.run(classifier, own, output)
    assert [row["image"] for row in rows if row["error"]] == ["0.png", "6.png"] and len(rows) == 7
    assert "2 of 7 images" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "stream"])
@pytest.mark.parametrize(
    ("case", "kind"),
    [("predict", "segmenter"), ("predict", "mask_rcnn"), *((case, "classifier") for case in SCRIPTS)],
)
def test_two_processes_give_the_file_of_one(case, kind, form, images, tmp_path, request):
    script, model = SCRIPTS[case], request.getfixturevalue(kind)
    name = write_parquet(tmp_path / "parquet", {"train": 3}) / "*.parquet" if form == "stream" else images
    fields = {"per_device_eval_batch_size": 5, "streaming": form == "stream"}
    fields |= {"threshold": 0.2} if script.name == "predict" else {}
    whole = script.run(model, name, tmp_path / f"1{script.suffix}", **fields)
    output = tmp_path / f"2{script.suffix}"
    settings = {"model_name_or_path": model, "dataset_name": name, "num_workers": 1, "output_file": output, **fields}
    launch([f"training/{script.name}.py", *(f"--{key}={value}" for key, value in settings.items())], 2, tmp_path)
    found = script.read(output)
    if script.name == "predict":
        assert found == whole
    else:
        assert_same_rows(found, whole, 0)
    assert len({row["image"] for row in whole}) == (9 if form == "stream" else 12)


@pytest.mark.slow
def test_a_killed_process_leaves_what_the_same_command_goes_on_from(script, classifier, images, tmp_path):
    whole = script.run(classifier, images, tmp_path / f"whole{script.suffix}", per_device_eval_batch_size=1)
    output = tmp_path / f"answers{script.suffix}"
    flags = {"model_name_or_path": classifier, "dataset_name": images, "output_file": output}
    flags |= {"per_device_eval_batch_size": 1, "num_workers": 1}
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    path = str(Path("training", f"{script.name}.py"))
    slow = (
        "import os, runpy, signal, sys; from training.prediction import parts;\n"
        "parts.SECONDS_BETWEEN_PARTS = 0; write = parts.Parts.write\n"
        "def kill(self):\n"
        "    write(self)\n"
        "    if self.num_done == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "parts.Parts.write = kill\n"
        f"runpy.run_path({path!r}, run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "cache")
    for code, start in ((-signal.SIGKILL, ["-c", slow]), (0, [path])):
        command = [sys.executable, *start, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert output.exists() == (code == 0)
    assert "Going on after 5 images" in done.stdout
    assert_same(script, script.read(output), whole)
