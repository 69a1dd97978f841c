"""Waiting threads spin on a machine that does nothing else and sleep beside other processes; results stay the same."""

import multiprocessing
import os
import sys
import threading
import time

import pytest
import torch

from hf_convnextv2 import ConvNextV2ForImageClassification, waiting
from hf_convnextv2.waiting import (
    LEAST_SECONDS,
    SECONDS_BETWEEN_CHECKS,
    SLEEP_TIMES,
    TOO_LONG,
    IdleThread,
    Usage,
    Waiting,
    is_switchable,
    share_cores,
    spent_between,
    used_so_far,
)
from tests.small_models import awake, run_python, small_config

CPU = torch.device("cpu")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="waiting threads are switched on Linux alone")


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Machine:
    """A clock, and what two threads have used so far, that a test moves on."""

    def __init__(self, monkeypatch):
        self.time, self.usage = 100.0, {"1": Usage(10.0, 3.0), "2": Usage(8.0, 5.0)}
        self.processor_time = 50.0
        monkeypatch.setattr(waiting.time, "monotonic", lambda: self.time)
        monkeypatch.setattr(waiting.time, "process_time", lambda: self.processor_time)
        monkeypatch.setattr(waiting, "used_so_far", lambda: dict(self.usage))

    def compute(self, delayed, seconds=1.0, passed=None):
        """The first thread computes or is delayed for so many seconds; both are delayed for the same time."""
        self.time += seconds if passed is None else passed
        self.processor_time += seconds - delayed / 2
        for thread, computing in (("1", seconds - delayed / 2), ("2", 0.0)):
            used = self.usage[thread]
            self.usage[thread] = Usage(used.computing + computing, used.delayed + delayed / 2)

    def compute_elsewhere(self, seconds):
        """In threads that have ended."""
        self.time += seconds
        self.processor_time += seconds


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


@pytest.fixture
def waits(machine, monkeypatch):
    """The process's, without an idle thread so far, after its first check."""
    waits = Waiting()
    monkeypatch.setattr(waiting, "_waiting", lambda: waits)
    waits.adapt()
    yield waits
    if waits.idle_thread is not None:
        waits.idle_thread.end()


def idle_threads():
    return [thread for thread in threading.enumerate() if thread.name == "convnextv2-idle"]


def test_threads_sleep_once_others_take_the_cores_and_spin_again_afterwards(waits, machine):
    before, delayed = idle_threads(), TOO_LONG + 0.01
    rest = SLEEP_TIMES * (1 - delayed / 2)
    for waited, seconds, sleeps in (
        (TOO_LONG - 0.01, 1.0, False),
        (delayed, 1.0, True),
        (0.0, rest - 0.1, True),  # whether the cores are free does not show while threads sleep
        (0.0, 0.2, False),
        (TOO_LONG - 0.01, 1.0, False),
        (delayed, 1.0, True),
        (0.0, rest + 0.1, False),
        (delayed, 1.0, True),  # the other process is still there
    ):
        machine.compute(waited, seconds)
        waits.adapt()
        assert (waits.idle_thread is not None) == sleeps == (len(idle_threads()) > len(before))


def test_delays_count_by_the_time_that_was_computed(waits, machine):
    machine.compute(TOO_LONG + 0.1, seconds=2.0)
    waits.adapt()
    assert waits.idle_thread is None
    machine.compute(TOO_LONG / 2 + 0.1, seconds=0.5)
    waits.adapt()
    assert waits.idle_thread is not None


def test_threads_sleep_for_longer_if_it_took_longer_to_see_that_they_should(waits, machine):
    machine.compute(6.0, seconds=6.0)
    waits.adapt()
    for seconds, sleeps in ((SLEEP_TIMES * 3.0 - 0.1, True), (0.2, False)):  # of the 6 s, it computed 3
        machine.compute(0.0, seconds)
        waits.adapt()
        assert (waits.idle_thread is not None) == sleeps


def test_time_without_computing_is_no_rest(waits, machine):
    machine.compute(1.0)
    waits.adapt()
    machine.compute(0.0, seconds=0.1, passed=3600.0)
    waits.adapt()
    assert waits.idle_thread is not None


def test_threads_that_come_and_go_rest_no_longer_than_others(waits, machine):
    machine.compute(1.0)
    waits.adapt()
    for number in range(100, 110):  # as in a server with a thread for each request
        assert waits.idle_thread is not None
        machine.usage = {str(number): Usage(0.5, 0.0)}
        machine.compute_elsewhere(SLEEP_TIMES * 0.051)  # of the second in which others were seen, it computed half
        waits.adapt()
    assert waits.idle_thread is None


@pytest.mark.parametrize(
    ("passed", "seconds"), [(SECONDS_BETWEEN_CHECKS / 2, 1.0), (SECONDS_BETWEEN_CHECKS, LEAST_SECONDS / 2)]
)
def test_nothing_is_told_from_a_moment_or_from_little_work(passed, seconds, waits, machine):
    for sleeps in (False, True):  # twice as long, or as much, is enough
        machine.compute(seconds, seconds, passed)
        waits.adapt()
        assert (waits.idle_thread is not None) == sleeps


def test_threads_spin_where_the_system_does_not_say_how_long_they_wait_for_a_core(monkeypatch):
    monkeypatch.setattr(waiting, "THREADS", "/proc/absent")
    assert used_so_far() == {}
    waits = Waiting()
    for now in (1.0, 2.0, 3.0):
        monkeypatch.setattr(waiting.time, "monotonic", lambda now=now: now)
        waits.adapt()
    assert waits.idle_thread is None


def test_threads_that_began_or_ended_meanwhile_do_not_count():
    before = {"1": Usage(1.0, 0.5), "2": Usage(7.0, 7.0)}
    assert spent_between(before, {"1": Usage(3.0, 0.75), "3": Usage(9.0, 9.0)}) == [Usage(2.0, 0.25)]


def test_a_thread_that_wants_a_core_all_the_time_computes_or_is_delayed():
    cores, matrix, found = os.sched_getaffinity(0), torch.ones(64, 64), {}

    def compute():
        os.sched_setaffinity(0, {min(cores)})  # of this thread: both have one core
        name, start, before = str(threading.get_native_id()), time.perf_counter(), used_so_far()
        while time.perf_counter() - start < 0.5:
            torch.mm(matrix, matrix)
        (spent,) = spent_between({name: before[name]}, {name: used_so_far()[name]})
        found[name] = (*spent, time.perf_counter() - start)

    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    for computing, delayed, passed in found.values():
        assert computing < 0.8 * passed
        assert computing + delayed <= 1.01 * passed
    assert sum(delayed for _, delayed, _ in found.values()) > 0.1


def test_one_thread_has_nobody_to_wait_for(waits, machine):
    torch.set_num_threads(1)
    machine.compute(1.0)
    waits.adapt()
    assert waits.idle_thread is None


def test_another_number_of_threads_ends_the_idle_thread(waits, machine):
    machine.compute(1.0)
    waits.adapt()
    assert waits.idle_thread.beside == 2
    torch.set_num_threads(3)
    waits.adapt()
    assert waits.idle_thread is None
    machine.compute(1.0)
    waits.adapt()
    assert waits.idle_thread.beside == 3


def test_threads_spin_where_many_cores_would_need_many_idle_threads(waits, machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(waiting.MOST + 1))
    machine.compute(1.0)
    waits.adapt()
    assert waits.idle_thread is None
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4))
    waits.adapt()
    assert waits.idle_thread is not None


def refused(number):
    raise RuntimeError("can't start new thread")


def test_the_switch_is_given_up_for_good_once_threads_are_refused(waits, machine, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(waiting, "check_room", refused)
        machine.compute(1.0)
        waits.adapt()
    machine.compute(1.0)
    waits.adapt()
    assert waits.idle_thread is None


def test_the_number_of_threads_stays_as_it_was(waits, machine):
    machine.compute(1.0)
    waits.adapt()
    seen = [torch.get_num_threads()]
    fresh = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    fresh.start()
    fresh.join()
    assert seen == [2, 2]


def test_threads_that_begin_during_a_switch_have_the_number_of_the_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    seen, codes = [], {IdleThread.run.__code__, waiting.start_openmp_threads.__code__}

    def begin_another(frame, event, argument):
        if frame.f_code in codes:
            another = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            another.start()
            another.join()
            return begin_another  # at each line
        return None

    before = threading.gettrace()
    idle_thread = IdleThread()
    threading.settrace(begin_another)
    try:
        idle_thread.begin()
    finally:
        threading.settrace(before)
    idle_thread.end()
    assert idle_thread.works
    assert len(seen) > 8
    assert set(seen) == {2}


def test_an_idle_thread_has_as_many_openmp_threads_as_make_more_than_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    torch.zeros(2**17).add_(1)
    before = set(os.listdir("/proc/self/task"))
    idle_thread = IdleThread()
    idle_thread.begin()
    added = set(os.listdir("/proc/self/task")) - before
    idle_thread.end()
    assert len(added) == 8


@pytest.mark.parametrize("library", ["libabsent.so", "libc.so.6"])
def test_without_the_functions_of_openmp_threads_spin(library, waits, machine, monkeypatch):
    monkeypatch.setattr(waiting, "TORCH_LIBRARY", library)
    before = idle_threads()
    machine.compute(1.0)
    waits.adapt()
    assert waits.idle_thread is None
    assert idle_threads() == before
    assert torch.get_num_threads() == 2


def test_results_are_the_same_bits_in_either_way(waits, machine):
    torch.manual_seed(0)
    model, images = awake(ConvNextV2ForImageClassification(small_config())), torch.randn(4, 3, 64, 64)
    expected = model(images).logits
    machine.compute(1.0)
    waits.adapt()
    assert torch.equal(model(images).logits, expected)


def test_every_forward_pass_looks(monkeypatch):
    looks = []
    monkeypatch.setattr(waiting, "IS_SWITCHABLE", True)
    monkeypatch.setattr(Waiting, "adapt", lambda self: looks.append(1))
    awake(ConvNextV2ForImageClassification(small_config()))(torch.randn(1, 3, 64, 64))
    assert looks == [1]
    share_cores(torch.device("cuda"))
    monkeypatch.setattr(waiting, "IS_SWITCHABLE", False)
    share_cores(CPU)
    assert looks == [1]


@pytest.mark.parametrize("name", waiting.SET_BY_USER)
def test_what_the_user_has_set_for_openmp_is_left_alone(name):
    assert is_switchable({"PATH": "/bin"})
    assert not is_switchable({name: "1"})


def test_a_compiled_model_does_not_look(monkeypatch):
    monkeypatch.setattr(waiting, "IS_SWITCHABLE", True)
    monkeypatch.setattr(Waiting, "adapt", None)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: share_cores(x.device) or x + 1, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(2)).tolist() == [1, 1]


def has_an_idle_thread(connection):
    connection.send((waiting._waiting().idle_thread is not None, len(idle_threads())))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_begins_anew():
    idle_thread = IdleThread()
    idle_thread.begin()
    waiting._waiting().idle_thread = idle_thread
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=has_an_idle_thread, args=(theirs,))
    process.start()
    assert ours.recv() == (False, 0)
    process.join()
    idle_thread.end()
    waiting._waiting().idle_thread = None


PROCESSOR_TIME = """
import os, time, torch
from hf_convnextv2.waiting import IdleThread

torch.set_num_threads(len(os.sched_getaffinity(0)))
x = torch.zeros(2**17)

def spent():  # in operations between which the other threads wait for milliseconds
    start = time.process_time()
    for _ in range(100):
        x.add_(1)
        time.sleep(0.002)
    return time.process_time() - start

spent()
spinning = spent()
idle_thread = IdleThread()
idle_thread.begin()
sleeping = spent()
idle_thread.end()
print(spinning, sleeping, spent())
"""


@pytest.mark.skipif(CORES < 2, reason="one core has no threads that wait")
def test_an_idle_thread_lets_the_others_sleep(tmp_path, monkeypatch):
    for name in waiting.SET_BY_USER:
        monkeypatch.delenv(name, raising=False)
    spinning, sleeping, spinning_again = map(float, run_python(PROCESSOR_TIME, cwd=tmp_path).split())
    assert sleeping < 0.5 * spinning
    assert sleeping < 0.5 * spinning_again


# A limit of the address space refuses threads to root too, unlike a limit of their number.
REFUSED = """
import os, resource, torch
from hf_convnextv2.waiting import IdleThread

def works():
    idle_thread = IdleThread()
    idle_thread.begin()
    idle_thread.end()
    return idle_thread.works

torch.set_num_threads(2)
torch.zeros(2**17).add_(1)
os.sched_getaffinity = lambda process: range(32)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
unlimited = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, unlimited[1]))
refused = works()
resource.setrlimit(resource.RLIMIT_AS, unlimited)
print(refused, works())
"""


def test_a_process_that_may_not_start_the_threads_goes_on(tmp_path):
    assert run_python(REFUSED, cwd=tmp_path).split() == ["False", "True"]
