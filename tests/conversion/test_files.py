"""What is written appears whole under its name, or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conversion import files
from conversion.files import atomic_path, partial_path, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_gets_its_name_at_the_end_of_the_block(tmp_path, sync):
    file = tmp_path / "card.md"
    file.write_text("old")
    with atomic_path(file, sync=sync) as partial:
        partial.write_text("new")
        assert file.read_text() == "old" and partial.parent == tmp_path
        assert partial.name.startswith(".card.md.") and partial.suffix == ".partial"
        assert str(os.getpid()) in partial.name
    assert file.read_text() == "new" and names(tmp_path) == ["card.md"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
def test_an_error_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path, error):
    file = tmp_path / "card.md"
    file.write_text("old")
    with pytest.raises(error), atomic_path(file) as partial:
        partial.write_text("half of the")
        raise error
    assert file.read_text() == "old" and names(tmp_path) == ["card.md"]


def test_a_plain_write_would_lose_the_old_file(tmp_path):
    """The control of the test above."""
    file = tmp_path / "card.md"
    file.write_text("old")
    with pytest.raises(OSError), file.open("w") as stream:
        stream.write("half of the")
        raise OSError
    assert file.read_text() == "half of the"


def test_a_rename_that_fails_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "taken", "a file cannot have the name of a folder")
    assert names(tmp_path) == ["taken"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    (tmp_path / "card.md").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "card.md"):
        pass
    assert (tmp_path / "card.md").read_text() == "old" and names(tmp_path) == ["card.md"]


def test_a_folder_appears_with_all_its_files_or_not_at_all(tmp_path):
    with pytest.raises(ValueError), atomic_path(tmp_path / "model") as partial:
        (partial / "part").mkdir(parents=True)
        (partial / "part/weights").write_text("half")
        raise ValueError
    assert names(tmp_path) == []
    with atomic_path(tmp_path / "model") as partial:
        (partial / "part").mkdir(parents=True)
        (partial / "part/weights").write_text("all")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model/part/weights").read_text() == "all" and names(tmp_path) == ["model"]


def test_a_folder_replaces_none_that_holds_something(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("old")
    with pytest.raises(OSError), atomic_path(tmp_path / "model") as partial:
        partial.mkdir()
    assert (tmp_path / "model/weights").read_text() == "old" and names(tmp_path) == ["model"]


def test_all_files_are_flushed_before_the_rename(tmp_path, monkeypatch):
    flushed: list[Path] = []
    flush = files.flush

    def note(path: Path) -> None:
        flush(path)
        flushed.append(path)

    monkeypatch.setattr(files, "flush", note)
    for sync in (False, True):
        assert flushed == []
        with atomic_path(tmp_path / f"model-{sync}", sync=sync) as partial:
            (partial / "part").mkdir(parents=True)
            (partial / "part/weights").touch()
            (partial / "config").touch()
    assert set(flushed) == {partial, partial / "config", partial / "part", partial / "part/weights"}


WRITER = """
import sys
from pathlib import Path
from conversion import files
from conversion.files import atomic_path
with atomic_path(Path(sys.argv[1])) as partial:
    partial.write_text(sys.argv[2] * 1000)
    print(partial, flush=True)
    sys.stdin.readline()
    assert partial.read_text() == sys.argv[2] * 1000
"""


def test_two_processes_that_write_the_same_file_do_not_take_each_others(tmp_path):
    file = tmp_path / "card.md"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(file), word], **pipes) for word in "ab"]
    paths = {writer.stdout.readline() for writer in writers}
    assert len(paths) == 2 and len(names(tmp_path)) == 2, "both are in the middle"
    for writer, word in zip(writers, "ab", strict=True):
        writer.communicate("go on\n")
        assert writer.returncode == 0 and file.read_text() == word * 1000
    assert names(tmp_path) == ["card.md"]


def test_of_a_link_the_link_is_removed_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/weights").write_text("kept")
    with partial_path(tmp_path / "model") as partial:
        partial.symlink_to(tmp_path / "folder")
    assert names(tmp_path) == ["folder"] and (tmp_path / "folder/weights").read_text() == "kept"


def test_two_blocks_of_one_process_have_paths_of_their_own(tmp_path):
    """As two containers that share a folder, whose processes may have the same id."""
    with partial_path(tmp_path / "card.md") as first, partial_path(tmp_path / "card.md") as second:
        assert first != second
        first.touch()
    assert names(tmp_path) == []


def test_what_a_killed_process_has_left_is_known_by_the_file_that_it_was_writing(tmp_path):
    for name in ("a.csv", "a.csv.b.csv", "[a].csv", f"{'long' * 60}.csv"):
        with partial_path(tmp_path / name) as partial:
            partial.touch()
            assert files.leftovers_of(tmp_path / name) == [partial]
            for other in ("a", "a.csv", "a.csv.b.csv", "b.csv"):
                assert name == other or files.leftovers_of(tmp_path / other) == []
