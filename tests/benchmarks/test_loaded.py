"""The benchmark beside other processes: they compute for as long as it says, and are gone afterwards."""

import time
from multiprocessing import resource_tracker

import psutil
import pytest

from benchmarks.loaded import beside, compare
from benchmarks.shared.measure import Ratio


@pytest.mark.parametrize("number", [0, 2])
def test_so_many_processes_compute_meanwhile(number):
    resource_tracker.ensure_running()  # the process that Python starts for the first semaphore
    before = set(psutil.Process().children(recursive=True))
    with beside(number):
        found = set(psutil.Process().children(recursive=True)) - before
        spent = {process: process.cpu_times().user for process in found}
        time.sleep(0.5)
        busy = [process for process in found if process.cpu_times().user > spent[process]]
        assert len(busy) == number
    assert not [process for process in busy if process.is_running()]


def test_there_is_a_row_for_each_number_of_processes():
    rows = compare(("atto", "inference", 2, 64, "cpu", "float32"), "grown", [0, 1], 1)
    assert [row["busy processes"] for row in rows] == [0, 1]
    assert all(isinstance(row["times Transformers"], Ratio) and row["heap"] == "grown" for row in rows)
