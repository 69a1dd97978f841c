"""Sources that do not answer for a while: every row comes once all the same; a missing local file is said at once."""

import gc
import multiprocessing
import zipfile
from itertools import islice

import datasets
import fsspec
import pytest
import torch
from aiohttp import ClientTimeout

from tests.dropping_server import come_back, serving
from tests.photographs import quick_datasets, write_folder, write_parquet
from training.data import retry as reconnect
from training.data.decoding import BadImageError, decode_image
from training.data.retry import read_on

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets", "impatient")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(reconnect, "WAITS", (0.05, 0.1, 0.1))
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0.05)


@pytest.fixture
def remote(tmp_path):
    write_parquet(tmp_path / "parquet", {"train": 6}, files=3)
    with serving(tmp_path / "parquet") as server:
        names = [f"{server.url}/train-{i:05d}-of-00003.parquet" for i in range(3)]
        yield server, datasets.load_dataset("parquet", data_files=names, split="train", streaming=True)


def pixels(rows):
    return [row["image"].tobytes() for row in rows]


def test_rows_come_once_although_the_server_goes_away_between_files(remote, capsys):
    server, source = remote
    expected = pixels(source)
    server.leave_after = server.num_answered + 2  # in the second file
    come_back(server, 0.12)
    found = read_on(lambda done: islice(source, done, None), "the stream")
    assert pixels(found) == expected and server.num_dropped
    assert "Warning: the stream cannot be read (FileNotFoundError" in capsys.readouterr().out


def test_without_it_a_short_absence_ends_the_stream(remote):
    server, source = remote
    server.leave_after = server.num_answered + 2
    come_back(server, 0.12)
    with pytest.raises(FileNotFoundError):
        list(source)


def test_a_server_that_stays_away_is_given_up(remote):
    server, source = remote
    server.away.set()
    with pytest.raises(ConnectionError, match=r"the stream could not be read for 0.25 s: .*resume from the last"):
        next(read_on(lambda done: islice(source, done, None), "the stream"))
    assert server.num_dropped >= 4  # the first and three more


def test_patience_begins_anew_with_every_row_that_comes():
    failures = []

    def rows(done):
        if done < 10:
            yield done
        if len(failures) < 9:
            failures.append(done)
            raise ConnectionResetError

    assert list(read_on(rows, "a stream")) == list(range(10)) and len(failures) == 9


def test_a_local_file_that_is_missing_is_not_waited_for(tmp_path, capsys):
    with pytest.raises(FileNotFoundError):
        next(read_on(lambda done: (tmp_path / "none").open(), "a file"))
    assert "Trying again" not in capsys.readouterr().out


def test_a_forked_process_leaves_the_connections_of_the_first_one_alone(remote):
    server, _ = remote
    options = {"client_kwargs": {"timeout": ClientTimeout(total=5)}}
    for _ in range(4):
        assert fsspec.filesystem("http", **options).exists(f"{server.url}/train-00000-of-00003.parquet")
        process = multiprocessing.get_context("fork").Process(target=gc.collect)  # fsspec has forgotten them by then
        process.start()
        process.join()


@pytest.mark.parametrize("archive", [False, True])
def test_images_that_a_stream_names_by_a_remote_path_are_read_there(archive, tmp_path):
    """As `datasets` gives them for folders and archives of images that are streamed: a path, and no bytes."""
    root = write_folder(tmp_path / "folder", {"train": 1}, classes=("coffee",))
    with zipfile.ZipFile(root / "images.zip", "w") as file:
        file.write(root / "train/coffee/0.jpg", "train/coffee/0.jpg")
    with serving(root) as server:
        name = f"{server.url}/images.zip" if archive else f"{server.url}/train/coffee/0.jpg"
        source = datasets.load_dataset("imagefolder", data_files=name, split="train", streaming=True, drop_labels=True)
        value = next(iter(source.cast_column("image", datasets.Image(decode=False))))["image"]
        assert value["bytes"] is None and "://" in value["path"]
        found = decode_image(value, 3, "image").pixels
        server.away.set()
        if not archive:  # an archive is kept open
            with pytest.raises(ConnectionError):  # which is not the image's fault
                decode_image(value, 3, "image")
    assert torch.equal(found, decode_image(str(root / "train/coffee/0.jpg"), 3, "image").pixels)
    with pytest.raises(BadImageError, match="No such file"):
        decode_image(str(root / "none.jpg"), 3, "image")
