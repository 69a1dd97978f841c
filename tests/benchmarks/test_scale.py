"""The figures of docs/scale.md: its formulas hold, and its quantities are those of the pages that they are from."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.at_scale import quantities
from benchmarks.at_scale.quantities import FAST, NVLINK, Network, all_reduce_seconds, num_parameters, step_seconds
from benchmarks.at_scale.saving import measure_files
from benchmarks.at_scale.shuffling import NUM_CLASSES, batches, fully_shuffled, statistics
from benchmarks.scale import write
from tests.photographs import forget_accelerate

ROOT = Path(__file__).parents[2]


def test_the_quantities_are_those_of_the_pages_that_they_are_from():
    rows = json.loads((ROOT / "docs/benchmarks/gpu.json").read_text())["parts"]["speed"]["rows"]
    for what, measured in (("step", quantities.STEP_MEASURED), ("training", quantities.TRAINING_MEASURED)):
        found = {row["size"]: row["ms"] for row in rows if row.get("what") == what and row["batch"] == 128}
        assert {size: round(1000 * seconds, 1) for size, seconds in measured.items()} == {
            size: round(ms, 1) for size, ms in found.items()
        }
    costs = re.findall(r"^\| (\w+) \| ([\d.]+) \|", (ROOT / "docs/paper.md").read_text(), re.M)
    assert {size: float(cost) for size, cost in costs} == quantities.EFLOP
    rows = json.loads((ROOT / "docs/benchmarks/loader.json").read_text())["rows"]
    slowest = min(row["loader alone, images/s"] for row in rows if row["photographs"] == "500 x 375")
    assert round(slowest) == quantities.WORKER_MEASURED
    eager = re.search(r"FCMAE step, eager \| \d+ ms \| (\d+) ms", (ROOT / "docs/benchmarks.md").read_text())
    assert eager is not None and int(eager[1]) == 1000 * quantities.EAGER_STEP


def test_the_eager_step_on_an_h100_is_the_profiled_one():
    timed, kernels, *_ = json.loads((ROOT / "docs/benchmarks/gpu.json").read_text())["parts"]["profile"]["rows"]
    milliseconds, busy = round(timed["ms without the profiler"]), round(kernels["ms busy"])
    page = (ROOT / "docs/benchmarks.md").read_text()
    found = re.search(
        r"took (\d+) ms on a machine with an H100: .* for (\d+) ms, in ([\d,]+) .*\n.* other (0\.\d+)", page
    )
    assert found is not None
    assert [float(number.replace(",", "")) for number in found.groups()] == [
        *(milliseconds, busy, kernels["kernels"]),
        round(kernels["share of gaps"], 2),
    ]
    assert f"with an H100, took {milliseconds} ms:" in (ROOT / "docs/scale.md").read_text()


def test_parameters_are_those_of_the_model_card():
    card = (ROOT / "MODEL_CARD.md").read_text()
    rows = re.findall(r"^\| (\w+) \| [\d, ]+ \| [\d, ]+ \| [\d,]+ \| ([\d,]+) \|", card, re.M)
    assert {size: num_parameters(size) for size in quantities.SIZES} == {
        size: int(count.replace(",", "")) for size, count in rows if size in quantities.SIZES
    }


@pytest.mark.parametrize("num_gpus", [2, 5, 8])
def test_a_ring_moves_the_bytes_of_the_formula(num_gpus):
    """Played: each GPU passes a part on, n - 1 times to add it up and n - 1 times to spread the sums."""
    values = np.random.default_rng(0).integers(0, 100, (num_gpus, num_gpus))  # GPU, part
    expected, sent = values.sum(axis=0), 0
    held = values.copy()
    for shift, adds in ((0, True), (1, False)):
        for turn in range(num_gpus - 1):
            part = [(gpu + shift - turn) % num_gpus for gpu in range(num_gpus)]
            moved = [held[gpu, part[gpu]] for gpu in range(num_gpus)]
            for gpu in range(num_gpus):
                to = (gpu + 1) % num_gpus
                held[to, part[gpu]] = moved[gpu] + (held[to, part[gpu]] if adds else 0)
            sent += 1  # parts over each link
    assert (held == expected).all()
    num_bytes = 4 * num_gpus
    assert all_reduce_seconds(num_bytes, num_gpus, Network("a byte a second", 1)) == sent * num_bytes / num_gpus


def test_times_by_hand(monkeypatch):
    assert all_reduce_seconds(450e9, 8, NVLINK) == pytest.approx(1.75)
    assert all_reduce_seconds(200e9, 512, FAST) == pytest.approx(2 * 511 / 512)
    assert step_seconds("base") == 33.5e-3
    monkeypatch.setitem(quantities.EFLOP, "middle", (quantities.EFLOP["tiny"] + quantities.EFLOP["base"]) / 2)
    assert step_seconds("middle") == pytest.approx((18.8e-3 + 33.5e-3) / 2)


def test_a_full_shuffle_has_the_classes_and_neighbours_of_the_formula():
    num_images, batch_size = 100_000, 500
    classes = np.arange(num_images) * NUM_CLASSES // num_images
    distinct, together = statistics(fully_shuffled(num_images, batch_size, 50), classes)
    assert distinct == pytest.approx(NUM_CLASSES * (1 - (1 - 1 / NUM_CLASSES) ** batch_size), rel=0.01)
    assert together == pytest.approx(batch_size / num_images, rel=0.2)


def test_readers_with_small_buffers_on_sorted_files_give_few_classes():
    classes = np.arange(20_000) * NUM_CLASSES // 20_000
    few, many = (statistics(batches(20_000, 64, 4, 2, 64, buffer, 4), classes) for buffer in (8, 2000))
    assert few[0] < 20 < many[0] and few[1] > 2 * many[1]
    everything = batches(20_000, 64, 4, 2, 20_000 // 4, 100, 1)
    assert len(np.unique(everything[0])) == len(everything[0])  # no image twice


@pytest.fixture
def fresh_accelerate():
    forget_accelerate()
    yield
    forget_accelerate()


def test_a_checkpoint_of_many_processes_has_a_file_of_each(fresh_accelerate, tmp_path):
    row = measure_files(5, str(tmp_path / "run"))
    assert row["processes"] == 5 and row["files"] >= 10 and row["MB"] > 0
    assert not list((tmp_path / "run").glob("*checkpoint*"))


def test_the_file_keeps_parts_that_are_not_measured_anew(tmp_path):
    for found in ({"a": [{"x": 1}], "b": [{"x": 2}]}, {"b": [{"x": 3}]}):
        write(tmp_path / "scale.json", found)
    parts = json.loads((tmp_path / "scale.json").read_text())["parts"]
    assert {name: part["rows"] for name, part in parts.items()} == {"a": [{"x": 1}], "b": [{"x": 3}]}
