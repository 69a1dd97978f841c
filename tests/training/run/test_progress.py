"""What a run shows of its progress: a bar in a terminal, whole lines anywhere else."""

import io
import re

import datasets
import huggingface_hub.utils
import pytest
import transformers

from training.console import bars
from training.console.bars import keep_bars_to_terminals
from training.run import progress
from training.run.plan import Plan
from training.run.progress import Progress

PLAN = Plan(num_samples=100, total_batch_size=20, steps_per_epoch=5, max_steps=1500, warmup_steps=0, learning_rate=1)
LOGGED = {"loss": 0.51237, "images_per_second": 319.6, "data_wait": 0.034}


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        return 2


@pytest.fixture(autouse=True)
def size(monkeypatch):
    """Columns and lines of a terminal, which a test sets."""
    size = [120, 40]
    monkeypatch.setattr(bars.os, "get_terminal_size", lambda number: size)
    return size


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_where_nobody_watches_each_logged_step_is_a_line_with_steps_epoch_loss_rate_and_time_left(capsys, clock):
    shown = Progress(PLAN, step=2, is_shown=True)
    for _ in range(10):
        shown.advance()
    clock[0] = 20.0  # two seconds a step, 1488 steps to go
    shown.log(LOGGED)
    shown.close()
    expected = "step 12 of 1,500, epoch 2.40 of 300, loss 0.5124, 320 images/s, 3 % waiting for data, 49:36 left\n"
    assert capsys.readouterr() == (expected, "")


def test_a_stream_of_unknown_length_has_no_epochs(capsys, clock):
    shown = Progress(Plan(None, 20, None, 1500, 0, 1), step=0, is_shown=True)
    shown.advance()
    shown.log(LOGGED)
    assert capsys.readouterr().out.startswith("step 1 of 1,500, loss 0.5124")


def test_a_terminal_gets_a_bar_of_steps_and_epochs(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    shown = Progress(PLAN, step=2, is_shown=True)
    for _ in range(10):
        shown.advance()
    shown.log(LOGGED)
    shown.say("accuracy 70 %")
    shown.close()
    assert re.search(r"epoch 2\.40 of 300: +1%.*\| 12/1500 .*loss=0\.5124, images/s=320", terminal.getvalue())
    assert capsys.readouterr().out == "accuracy 70 %\n"


@pytest.mark.parametrize("no_size", [(0, 0), (120, 0)])  # as under `script`, or in a container
def test_a_terminal_without_size_gets_lines(no_size, monkeypatch, capsys, size):
    monkeypatch.setattr("sys.stderr", Terminal())
    size[:] = no_size
    shown = Progress(PLAN, step=0, is_shown=True)
    shown.advance()
    shown.log(LOGGED)
    assert capsys.readouterr().out.startswith("step 1 of 1,500")


def test_all_processes_but_the_first_are_silent(capsys):
    shown = Progress(PLAN, step=0, is_shown=False)
    shown.advance()
    shown.log(LOGGED)
    shown.say("text")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("stream", "rank", "kept"), [(Terminal, "0", True), (io.StringIO, "0", False), (Terminal, "1", False)]
)
def test_bars_of_the_libraries_are_kept_to_terminals(stream, rank, kept, monkeypatch):
    calls = []
    for module in (datasets, huggingface_hub.utils):
        monkeypatch.setattr(module, "disable_progress_bars", lambda: calls.append("off"))
    monkeypatch.setattr(transformers.utils.logging, "disable_progress_bar", lambda: calls.append("off"))
    monkeypatch.setattr("sys.stderr", stream())
    monkeypatch.setenv("LOCAL_RANK", rank)
    keep_bars_to_terminals()
    assert calls == ([] if kept else ["off"] * 3)
