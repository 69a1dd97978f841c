"""Contenders that take turns in processes of their own."""

import os
from functools import partial
from itertools import groupby

import torch

from benchmarks.shared.measure import alternate_apart


def noting(file, name):
    """A call that notes who makes it."""

    def call():
        with open(file, "a") as notes:
            notes.write(f"{name} {os.getpid()} {torch.get_num_threads()}\n")

    return call


def test_each_contender_takes_its_turns_in_a_process_of_its_own(tmp_path):
    file = tmp_path / "notes.txt"
    seconds = alternate_apart({name: partial(noting, file, name) for name in "AB"}, rounds=3, calls=2)
    assert {name: len(spent) for name, spent in seconds.items()} == {"A": 3, "B": 3}
    assert all(0 < each < 1 for spent in seconds.values() for each in spent)
    lines = [line.split() for line in file.read_text().splitlines()]
    turns = [(name, len(list(calls))) for name, calls in groupby(line[0] for line in lines)]
    assert turns == [("A", 3), ("B", 3)] * 4  # a call and a round that do not count
    processes = {name: {line[1] for line in lines if line[0] == name} for name in "AB"}
    assert all(len(each) == 1 for each in processes.values())
    assert processes["A"] != processes["B"] and str(os.getpid()) not in processes["A"] | processes["B"]
    assert {line[2] for line in lines} == {str(torch.get_num_threads())}
