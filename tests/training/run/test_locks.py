"""The lock on a folder: one command at a time, and no child that happens to outlive it."""

import os
import subprocess
import sys

import pytest

from tests.photographs import message_of
from tests.training.test_distributed import ROOT
from training.run.locks import LOCK, only_one

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
FORKED = """
import os, sys
from pathlib import Path
from training.run.locks import only_one
with only_one(Path(sys.argv[1])):
    if os.fork():
        os._exit(1)
    print("child", flush=True)
    sys.stdin.read()
"""


def test_a_locked_folder_is_refused_until_it_is_free(tmp_path):
    with only_one(tmp_path / "a"):
        with only_one(tmp_path / "b"):
            pass
        message = message_of(lambda: only_one(tmp_path / "a").__enter__())
        assert message.startswith(f"`output_dir` (={tmp_path / 'a'}) must not be in use")
    with only_one(tmp_path / "a"):
        pass


def test_a_lock_whose_file_was_removed_is_no_lock(tmp_path, monkeypatch):
    import fcntl

    lock = fcntl.flock

    def ended_meanwhile(descriptor, how):
        (tmp_path / LOCK).unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", ended_meanwhile)
    assert "must not be in use" in message_of(lambda: only_one(tmp_path).__enter__())


def test_a_file_system_without_locks_has_none(tmp_path, monkeypatch):
    import fcntl

    def refuse(descriptor, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_one(tmp_path), only_one(tmp_path):
        pass


def test_a_forked_worker_that_outlives_its_program_does_not_keep_the_lock(tmp_path):
    command = [sys.executable, "-c", FORKED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as program:
        assert program.stdin and program.stdout
        assert program.stdout.readline() == b"child\n" and program.wait() == 1
        with only_one(tmp_path):
            pass
        program.stdin.close()


def test_a_program_that_was_given_the_lock_keeps_it(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with only_one(tmp_path) as lock:
        assert lock is not None
        program = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[lock])
    with program:
        assert "must not be in use" in message_of(lambda: only_one(tmp_path).__enter__())
    with only_one(tmp_path):
        pass
