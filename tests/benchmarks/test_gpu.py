"""The GPU's benchmarks, on a processor: the command and its parts in a small form, and what must make it fail."""

import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial

import psutil
import pytest
import torch
from torch import nn

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import (
    bounds,
    compiled,
    contenders,
    correct,
    kernel_pairs,
    kernels,
    machine,
    printing,
    processes,
    profile,
    speed,
    subjects,
    training,
    training_runs,
)
from benchmarks.gpu.printing import tables
from benchmarks.gpu.results import Results
from benchmarks.gpu.rows import Rows, read_rows
from benchmarks.gpu.settings import SHARES, SPEED_CASES, create_parser
from benchmarks.shared.classifiers import V1_BLOCKS
from benchmarks.shared.measure import Ratio, describe_machine
from hf_convnextv2 import depthwise, fused_mlp, gpu_depthwise, packing, triton_kernels

SMALL = shlex.split(
    "--device cpu --backend eager --image_size 64 --correct_image_size 64 --larger_size '' --rounds 1 "
    "--calls 1 --kernels_size atto --kernels_batch 1 "
    "--matrix_size 64 --copy_mib 1 --profile_case step:atto:1:bfloat16 --dtypes float32 bfloat16 --modes eager "
    "--speed_cases step:atto:1:float32:compiled training:atto:1:bfloat16:eager inference:atto:1:float32:captured "
    "--minutes 10"
)
WITH_TRAINING = shlex.split(
    "--backend aot_eager --dtypes float32 bfloat16 float16 --modes eager compiled --minutes 30 --training_workers 1 "
    "--training_images 16 --training_batch 4 --training_image_size 64 --training_steps 8"
)


@pytest.fixture(autouse=True)
def warnings_are_errors_in_the_parts_too(monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def restored_precision():
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


def settings_of(*flags):
    return create_parser().parse_args([*SMALL, *flags])


# The command


def rows_of(part, folder, *flags):
    """What a part writes that is run in this process."""
    part.run(settings_of(*flags), Rows(folder / "rows", 1000))
    return read_rows(folder / "rows")


def test_the_command_runs_a_part_and_writes_what_it_found(tmp_path, capsys):
    output = tmp_path / "docs/gpu.json"
    flags = ["--parts", "speed", "--speed_cases", "inference:atto:1:float32:eager"]
    assert command.main([*SMALL, *flags, "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["machine"]["torch"] == f"torch {torch.__version__}" and list(output.parent.iterdir()) == [output]
    (part,) = found["parts"].values()
    assert part["error"] is None and part["rows"][-1]["images/s"] > 0
    printed = capsys.readouterr().out
    assert f"torch {torch.__version__}" in printed and printed.endswith("all parts passed\n")


PARTS = """
    import json, os, signal, sys, time
    name, rows = sys.argv[1:3]
    with open(rows, "a") as file:
        file.write('{"what": "%s", "ok": %s}\\n{"what"' % (name, "false" if name == "WRONG" else "true"))
    if name == "machine":
        with open(rows, "w") as file:
            file.write('{"machine": {"processor": "a processor"}, "left_out": []}\\n')
    if name == "SIGNALLED":
        output = sys.argv[sys.argv.index("--output") + 1]
        while not (os.path.exists(output) and json.load(open(output))["parts"].get(name, {"rows": []})["rows"]):
            time.sleep(0.05)
        os.replace(output, output + ".meanwhile")
        os.kill(os.getppid(), signal.SIGTERM)
        os.system("sleep 1000")
    if name == "speed":
        os.abort()
    if name == "profile":
        raise ValueError("no kernel")
    if name == "training":
        os.system("sleep 1000")
"""


def parts_that(monkeypatch, tmp_path, wrong="nothing", signalled="nothing"):
    """Put a program in the place of the parts."""
    text = textwrap.dedent(PARTS).replace("WRONG", wrong).replace("SIGNALLED", signalled)
    (tmp_path / "parts.py").write_text(text)
    monkeypatch.setattr(processes, "PART", [sys.executable, str(tmp_path / "parts.py")])


def test_a_part_that_dies_leaves_the_rows_of_all(monkeypatch, tmp_path, capsys):
    parts_that(monkeypatch, tmp_path)
    output = tmp_path / "gpu.json"
    assert command.main(["--device", "cpu", "--minutes", "0.1", "--output", str(output)]) == 1
    parts = json.loads(output.read_text())["parts"]
    assert {name: part["rows"] for name, part in parts.items()} == {n: [{"what": n, "ok": True}] for n in SHARES}
    assert parts["correct"]["error"] is None
    assert parts["speed"]["error"].startswith("SIGABRT")
    assert parts["profile"]["error"] == "exit status 1: ValueError: no kernel"
    assert parts["training"]["error"].startswith("stopped after its") and parts["training"]["seconds"] < 7
    assert "failed: exit status 1: ValueError: no kernel" in capsys.readouterr().out


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_found_is_written_though_it_cannot_be_printed(fails, monkeypatch, tmp_path, capsys):
    def as_text(value):
        raise TypeError("no text")

    parts_that(monkeypatch, tmp_path)
    if fails:
        monkeypatch.setattr(printing, "as_text", as_text)
        with pytest.raises(TypeError):
            tables([{"a": 1}])
    output = tmp_path / "gpu.json"
    assert command.main(["--device", "cpu", "--parts", "kernels", "correct", "--output", str(output)]) == 0
    parts = json.loads(output.read_text())["parts"]
    assert [part["rows"] for part in parts.values()] == [[{"what": n, "ok": True}] for n in ("kernels", "correct")]
    printed = capsys.readouterr()
    assert ("no text" in printed.err) == fails and ("kernels: what kernels, ok True" in printed.out) != fails


def test_a_command_that_is_told_to_stop_writes_what_it_has(monkeypatch, tmp_path, capsys):
    """The part looks at the file while it runs, and then has its parent stopped."""
    parts_that(monkeypatch, tmp_path, signalled="correct")
    output, handler = tmp_path / "gpu.json", signal.getsignal(signal.SIGTERM)
    assert command.main(["--device", "cpu", "--output", str(output)]) == 1
    meanwhile = json.loads((tmp_path / "gpu.json.meanwhile").read_text())["parts"]
    parts = json.loads(output.read_text())["parts"]
    assert list(parts) == ["kernels", "correct"] and "stopped by a signal" in capsys.readouterr().out
    assert [part["error"] for part in meanwhile.values()] == [None, processes.UNFINISHED]
    assert [part["error"] for part in parts.values()] == [None, "stopped by a signal"]
    assert meanwhile["correct"]["rows"] == parts["correct"]["rows"] == [{"what": "correct", "ok": True}]
    assert not any("sleep 1000" in " ".join(each.cmdline()) for each in psutil.Process().children(recursive=True))
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_run_of_other_parts_keeps_those_of_an_earlier_one(monkeypatch, tmp_path):
    parts_that(monkeypatch, tmp_path)
    output = tmp_path / "gpu.json"
    for names in (["kernels", "correct"], ["correct"]):
        assert command.main(["--device", "cpu", "--parts", *names, "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert sorted(found["parts"]) == ["correct", "kernels"]
    assert not any("machine" in part for part in found["parts"].values())


def test_parts_of_another_machine_are_kept_with_its_description(tmp_path):
    output, part = str(tmp_path / "gpu.json"), {"seconds": 1.0, "error": None, "rows": []}
    for machine_name, name in (("first", "kernels"), ("second", "correct"), ("second", "speed")):
        results = Results(output, [name])
        results.describe({"accelerator": machine_name}, [])
        results.set(name, part)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["machine"] == {"accelerator": "second"} and list(found["parts"]) == ["kernels", "correct", "speed"]
    assert found["parts"]["kernels"] == {**part, "machine": {"accelerator": "first"}}
    assert found["parts"]["correct"] == found["parts"]["speed"] == part


def test_what_failed_in_an_earlier_run_is_kept_and_fails_no_later_one(tmp_path):
    output, well = str(tmp_path / "gpu.json"), {"seconds": 1.0, "error": None, "rows": [{"ok": True}]}
    for machine_name, names in (("first", ["speed", "correct"]), ("second", ["correct"])):
        results = Results(output, names)
        results.describe({"accelerator": machine_name}, [])
        for name in names:
            results.set(name, {**well, "error": "died"} if name == "speed" else {**well, "rows": [{"ok": False}]})
    assert results.failures() == ['correct: {"ok": false}']
    results = Results(output, ["kernels"])
    results.describe({"accelerator": "third"}, [])
    results.set("kernels", well)
    assert results.failures() == []
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [part["error"] for part in parts.values()] == ["died", None, None]


def test_a_machine_that_was_not_described_is_not_kept_once_one_is(tmp_path):
    output = str(tmp_path / "gpu.json")
    results = Results(output, ["kernels"])
    results.set("machine", {"seconds": 180.0, "error": "stopped after its 180 s", "rows": []})
    assert results.failures() == ["machine: stopped after its 180 s"]
    results = Results(output, ["kernels"])
    results.describe({"accelerator": "a GPU"}, [])
    assert results.failures() == [] and json.loads((tmp_path / "gpu.json").read_text())["parts"] == {}


@pytest.mark.parametrize(("wrong", "status"), [("nothing", 0), ("correct", 1)])
def test_a_wrong_row_makes_the_command_fail(wrong, status, monkeypatch, tmp_path, capsys):
    parts_that(monkeypatch, tmp_path, wrong)
    assert command.main(["--device", "cpu", "--parts", "correct"]) == status
    assert ('"ok": false' in capsys.readouterr().out) == (wrong == "correct")


def test_the_command_without_its_device_says_so_at_once(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        command.main([])
    assert "--device cpu" in capsys.readouterr().err


def test_shares_are_of_the_whole_and_the_cases_can_be_read():
    assert sum(SHARES.values()) == pytest.approx(1)
    for text in SPEED_CASES:
        name, mode = text.rsplit(":", 1)
        case = contenders.Case.parse(name)
        assert (
            mode in ("captured", "eager", "compiled")
            and case.num_blocks > 11
            and case.what in (*contenders.CLASSIFIER, "step", "views", "encoder")
        )
    assert len(set(SPEED_CASES)) == len(SPEED_CASES)
    assert create_parser().parse_args([]).training_checks == list(training.CHECKS)


def test_tables_have_the_columns_of_their_rows():
    rows = [{"a": 1, "b": Ratio(2.0, 1.0, 3.0)._asdict()}, {"c": None, "d": 1e-6}, {"a": True, "b": "x|y"}]
    first, second = tables(rows).split("\n\n")
    assert first.splitlines() == ["| a | b |", "|---|---|", "| 1 | 2.00 (1.00 to 3.00) |", "| True | x/y |"]
    assert second.splitlines()[2] == "|  | 1.0e-06 |"


@pytest.mark.parametrize("value", [{"size": "base"}, [{"a|b": 1}], {}, (1, 2), {1: None}, float("nan"), "a|b"])
def test_any_row_can_be_printed(value):
    assert tables([{"left_out": value}]).splitlines()[2].count("|") == 2


def test_the_machine_is_described_without_what_is_not_installed(monkeypatch, tmp_path):
    for library in ("timm", "datasets"):
        monkeypatch.setitem(sys.modules, library, None)
    assert "timm" not in describe_machine() and "transformers" in describe_machine()
    machine.run(settings_of(), Rows(tmp_path / "rows", 10))
    (row,) = read_rows(tmp_path / "rows")
    assert row["left_out"] == [
        "the comparisons with timm: timm is not installed",
        "the part `training`: datasets is not installed",
    ]


# Correctness


def test_models_are_right_on_a_processor(tmp_path):
    rows = rows_of(correct, tmp_path)
    assert len(rows) == 25 and all(row["ok"] for row in rows)
    assert {row["what"] for row in rows} == {
        *("depthwise convolution, 4 positions a side", "depthwise convolution, 1 positions a side", "fused MLP"),
        *("FCMAE atto", "FCMAE atto, 4 views", "FCMAE atto, a teacher's features"),
        *("classifier atto", "ConvMAE tiny", "classifier atto, V1's blocks"),
    }


def test_compiled_models_are_right_on_a_processor(tmp_path):
    settings = settings_of("--dtypes", "bfloat16")
    for create in [correct.subjects(settings, "compiled")[index] for index in (0, 3, 5)]:
        correct.compare(create, settings, Rows(tmp_path / "rows", 100), "compiled", 0)
    rows = read_rows(tmp_path / "rows")
    assert [row["against"].split(":")[0] for row in rows] == [
        *(["float64 on the processor"] * 2 + ["float64"]),
        *("float64 on the processor", "float64"),
    ]
    assert all(row["ok"] for row in rows)


LAYER = "convnextv2.encoder.stages.1.layers.0"


@pytest.mark.parametrize(
    ("subject", "overrides", "broken"),
    [
        *(("fcmae", {}, broken) for broken in (None, f"{LAYER}.grn.weight")),
        *(("classifier", V1_BLOCKS, broken) for broken in (None, f"{LAYER}.layer_scale_parameter")),
    ],
)
def test_a_model_with_a_wrong_parameter_on_the_device_is_found(subject, overrides, broken, monkeypatch, tmp_path):
    exact = correct.gradients

    def gradients(model, *arguments, **keywords):
        is_ours = hasattr(model, "convnextv2")
        if broken is not None and is_ours and next(model.parameters()).dtype == torch.float32:
            model = correct.copy.deepcopy(model)
            with torch.no_grad():
                model.get_parameter(broken)[..., 3] *= 1.1
        return exact(model, *arguments, **keywords)

    monkeypatch.setattr(correct, "gradients", gradients)
    settings = settings_of("--dtypes", "float32")
    create = partial(getattr(subjects, subject), settings, "atto", depths=[1, 1, 1, 1], **overrides)
    correct.compare(create, settings, Rows(tmp_path / "rows", 100), "eager", 0)
    rows = read_rows(tmp_path / "rows")
    assert len(rows) == 2 and rows[0]["ok"] is (broken is None)


def test_losses_that_are_not_numbers_are_wrong(tmp_path):
    nothing = correct.Found(float("nan"), torch.full((3,), float("nan"), dtype=torch.float64))
    correct.add_row(Rows(tmp_path / "rows", 1), "", "", "float16", "", nothing, correct.Found(1.0, torch.ones(3)))
    assert read_rows(tmp_path / "rows")[0]["ok"] is False


# Bounds


def test_bytes_of_a_block_worked_by_hand():
    """10 rows of 4 channels, of 2 bytes: 80 bytes C wide, 320 bytes 4C wide."""
    convolution = norm = 80 + 80
    up, down = 80 + 320, 320 + 80
    forward = convolution + norm + up + down
    assert bounds.block_bytes(10, 4, 2, training=False) == forward == 1120
    backward = 2 * (80 + 80 + 80) + (80 + 320 + 80) + (320 + 80 + 320)
    assert bounds.block_bytes(10, 4, 2, training=True) == forward + backward == 1120 + 1680
    assert bounds.bytes_moved([(10, 4), (10, 4)], 100, 2, training=False) == 2 * 1120 + 400
    assert bounds.bytes_moved([(10, 4)], 100, 2, training=True) == 2800 + 1200


def test_blocks_of_a_step_worked_by_hand():
    """At 224 pixels 19 of 49 cells are seen, of 64, 16, 4 and 1 positions by stage; the decoder sees all."""
    config = contenders.ConvNextV2FCMAEConfig.from_size("base")
    found = contenders.blocks_of_fcmae(config, contenders.Case("step", "base", 2, "bfloat16"), 224)
    stages = [(2 * 19 * 64, 128)] * 3 + [(2 * 19 * 16, 256)] * 3 + [(2 * 19 * 4, 512)] * 27 + [(2 * 19, 1024)] * 3
    assert found == [*stages, (2 * 49, 512)]
    views = contenders.ConvNextV2FCMAEConfig.from_size("base", num_visible_sets=4)
    found = contenders.blocks_of_fcmae(views, contenders.Case("views", "base", 2, "bfloat16"), 224)
    assert found[0] == (2 * 49 * 64, 128) and found[-1] == (4 * 2 * 49, 512)


def test_operations_are_those_of_the_products():
    layer, x = nn.Linear(3, 5), torch.randn(7, 3)
    assert bounds.operations_of(lambda: layer(x), training=False) == 2 * 7 * 3 * 5
    assert bounds.operations_of(lambda: layer(x), training=True) == 3 * (2 * 7 * 3 * 5)
    depthwise, x = nn.Conv2d(4, 4, 7, padding=3, groups=4), torch.randn(1, 4, 10, 10)
    assert bounds.operations_of(lambda: depthwise(x), training=True) == 3 * (2 * 10 * 10 * 4 * 7 * 7)


def test_operations_of_a_model_are_those_of_the_paper():
    """Table 10 has 4.47 G multiplications of tiny at 224 pixels, each with an addition."""
    inference, training = (contenders.Case(what, "tiny", 2, "float32") for what in ("inference", "training"))
    assert contenders.work_of(inference, 224).operations == pytest.approx(2 * 2 * 4.47e9, rel=0.01)
    assert contenders.work_of(training, 224).operations == pytest.approx(3 * 2 * 2 * 4.47e9, rel=0.01)
    work = bounds.Work(operations=4e12, bytes=1e9)
    assert work.seconds(bounds.Rates(operations=1e12, bytes=2e9)) == (4.0, 0.5)


# Kernels


@pytest.fixture
def in_the_interpreter(monkeypatch):
    for module in (triton_kernels, packing):
        monkeypatch.setattr(module, "has_kernels", lambda device: True)


def test_layers_are_timed_in_their_plain_form_on_a_processor(tmp_path):
    rows = rows_of(kernels, tmp_path)
    layers = [row for row in rows if "ms products" in row or row["what"].startswith("convolution,")]
    assert len(layers) == 4 * (3 + 2) + 3 and not any("ms kernels" in row for row in rows)
    assert all(0 < row["error plain"] < 1e-2 for row in rows if "error plain" in row)
    assert rows[-1]["what"] == "eager step of atto, 1 images" and rows[-1]["launches plain"] > 1000


@pytest.mark.parametrize(("create", "side"), [(kernel_pairs.convolutions, 4), (kernel_pairs.mlps, 1)])
def test_kernels_are_timed_next_to_the_plain_form(create, side, in_the_interpreter, monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "REPEATS", 1)
    rows = Rows(tmp_path / "rows", 100)
    with torch.no_grad():
        kernels.add_pairs(create, settings_of(), 8, side, rows)
    found = read_rows(tmp_path / "rows")
    assert found and all(row["ok"] and row["error kernels"] < 2e-2 for row in found)
    assert all(row["times as fast"] == row["ms plain"] / row["ms kernels"] for row in found)


def test_a_step_can_be_without_kernels(in_the_interpreter):
    assert kernel_pairs.have_kernels("cpu") and depthwise.runs_on_kernels(torch.zeros(1))
    with kernel_pairs.without_kernels():
        assert not kernel_pairs.have_kernels("cpu") and not depthwise.runs_on_kernels(torch.zeros(1))
        assert not fused_mlp.runs_on_kernels(torch.zeros(1)) and not packing.has_kernels(torch.device("cpu"))
    assert kernel_pairs.have_kernels("cpu")


def test_kernels_that_are_wrong_are_found(in_the_interpreter, monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "REPEATS", 1)
    convolve = gpu_depthwise.convolve_cells
    monkeypatch.setattr(gpu_depthwise, "convolve_cells", lambda *a, **k: 1.1 * convolve(*a, **k))
    rows = Rows(tmp_path / "rows", 100)
    kernels.attempt(rows, "", "layers", lambda: kernels.add_pairs(kernel_pairs.convolutions, settings_of(), 8, 4, rows))
    assert [row["ok"] for row in read_rows(tmp_path / "rows")] == [False, False, True]


def test_layers_that_fail_leave_the_others(tmp_path):
    def fail():
        raise RuntimeError("out of memory\nand more")

    rows = Rows(tmp_path / "rows", 4)
    kernels.attempt(rows, "a layer", "layers", fail)
    kernels.attempt(rows, "a step", "step", fail)
    failed, left_out = read_rows(tmp_path / "rows")
    assert failed == {"what": "a layer", "error": "RuntimeError: out of memory", "ok": False}
    assert left_out["left_out"] == "a step" and left_out["seconds_left"] <= 4


# Speed and profile


def test_contenders_are_timed_on_a_processor(tmp_path):
    rates, *alone, step, training, inference = rows_of(speed, tmp_path)[1:]
    assert [row["contender"] for row in alone] == ["ours", "masked-dense"]
    assert rates["GB/s"] > 0
    assert [row["mode"] for row in (step, training, inference)] == ["compiled", "eager", "captured"]
    assert "times masked-dense" in step and {"times transformers", "times timm"} <= set(training) & set(inference)
    assert all(row["of the bound"] > 0 and row["ms"] > 0 for row in (step, training, inference))


def test_a_step_is_profiled_on_a_processor(tmp_path):
    timed, first, *longest = rows_of(profile, tmp_path)
    assert timed["ms without the profiler"] > 0
    assert first["kernels"] > 1000 and len(longest) == profile.LONGEST
    assert 0 < first["ms busy"] <= first["ms from first to last"]
    assert [row["ms"] for row in longest] == sorted((row["ms"] for row in longest), reverse=True)


def test_contenders_without_timm(monkeypatch):
    case = contenders.Case.parse("training:atto:1:float32")
    assert list(contenders.contenders(case, settings_of(), "eager")) == ["ours", "transformers", "timm"]
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    assert list(contenders.contenders(case, settings_of(), "eager")) == ["ours", "transformers"]


def test_a_contender_that_fails_leaves_the_others(monkeypatch, tmp_path):
    def fail():
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(speed, "contenders", lambda *_: {"ours": lambda: lambda: None, "peer": lambda: fail})
    case, rows = contenders.Case.parse("step:atto:1:float32"), Rows(tmp_path / "rows", 100)
    speed.run_here(case, "eager", settings_of(), rows, {"float32": bounds.Rates(1, 1)})
    second, first = read_rows(tmp_path / "rows")
    assert first["images/s"] > 0 and second["without"] == "peer" and second["error"] == "RuntimeError: out of memory"
    assert "ok" not in second  # a peer's failure is not ours


def serve(connection, name, *_):
    """A contender that does as its name says."""
    if name == "late":
        time.sleep(1000)
    if name in ("dies", "ours that dies"):
        os._exit(7)
    connection.send({"seconds": 0.5, "peak": None})
    for index in range(100):
        connection.recv()
        if name == "dies later" and index == 1:
            os._exit(8)
        connection.send(0.01)


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A function that runs a compiled case with contenders of these names, and returns its rows."""

    def run(*names):
        monkeypatch.setattr(compiled, "CONTEXT", multiprocessing.get_context("fork"))  # without imports
        monkeypatch.setattr(compiled, "_serve", serve)
        monkeypatch.setattr(compiled, "contenders", lambda *_: dict.fromkeys(names))
        rows = Rows(tmp_path / "rows", 2)
        case = contenders.Case.parse("step:atto:1:float32")
        settings = settings_of("--rounds", "3", "--compiled_share", "0.5")
        speed.run_compiled([case, case], settings, rows, {"float32": bounds.Rates(1, 1)})
        return read_rows(tmp_path / "rows")

    return run


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_compiled_contender_that_is_late_or_dies_is_named_and_the_others_are_timed(served):
    *reports, row = served("ours", "peer", "late", "dies", "dies later")
    assert [report["contender"] for report in reports[:2]] == ["ours", "peer"]
    assert {report["without"]: report["error"] for report in reports if "without" in report} == {
        "late": speed.NO_TIME,
        "dies": "exit status 7",
        "dies later": "exit status 8",
    }
    assert not any("ok" in report for report in reports)
    assert row["ms"] == pytest.approx(10) and row["times peer"]["median"] == 1
    assert "times late" not in row and "times dies later" not in row


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_our_compiled_contender_must_not_die(served, monkeypatch):
    monkeypatch.setattr(speed, "OURS", "ours that dies")
    report, *others = served("ours that dies", "peer")
    assert report["error"] == "exit status 7" and report["ok"] is False
    assert [row.get("contender") for row in others] == ["peer"]


def test_cases_for_which_no_time_is_left_are_named(tmp_path):
    rows = Rows(tmp_path / "rows", 0)
    speed.run(settings_of(), rows)
    left_out = [row["left_out"] for row in read_rows(tmp_path / "rows")[2:]]
    assert left_out == settings_of().speed_cases
    assert [case.rsplit(":")[-1] for case in left_out] == ["compiled", "eager", "captured"]


def test_busy_time_counts_kernels_at_once_only_once():
    kernels = [("a", 10.0, 4.0), ("b", 12.0, 4.0), ("a", 20.0, 1.0), ("c", 20.2, 0.5)]
    assert profile.busy_and_span(kernels) == (7.0, 11.0)
    assert profile.longest(kernels) == [("a", (5.0, 2)), ("b", (4.0, 1)), ("c", (0.5, 1))]


def test_gaps_are_those_of_a_call_without_the_profiler(monkeypatch, tmp_path):
    """Kernels take 7 of its 20 ms, which is 10 under the profiler."""
    kernels = [("a", 1e3, 4e3), ("b", 8e3, 3e3)]
    monkeypatch.setattr(profile, "contenders", lambda *_: {profile.OURS: lambda: lambda: None})
    monkeypatch.setattr(profile, "kernels_of", lambda *_: kernels)
    monkeypatch.setattr(profile, "seconds_of", lambda call: 0.020)
    row = rows_of(profile, tmp_path)[1]
    assert (row["ms busy"], row["ms from first to last"], row["share of gaps"]) == (7, 10, pytest.approx(13 / 20))
    assert profile.share_of_gaps(7.1, 7.0) == 0


def test_gaps_in_the_file_are_those_of_its_own_figures():
    rows = json.loads((processes.ROOT / "docs/benchmarks/gpu.json").read_text())["parts"]["profile"]["rows"]
    times = {row["mode"]: row["ms without the profiler"] for row in rows if "ms without the profiler" in row}
    found = [row for row in rows if "share of gaps" in row]
    assert found
    for row in found:
        assert row["share of gaps"] == profile.share_of_gaps(row["ms busy"], times[row["mode"]])


# Training


def make_run(folder, losses, weights=b"weights"):
    folder.mkdir()
    lines = [json.dumps({"step": i + 1, "loss": loss, "data_wait": 0.0}) for i, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9, "lo']))
    (folder / "model.safetensors").write_bytes(weights)
    return training_runs.Run(None, folder, folder / "log", 0.0)


def test_runs_that_are_not_equal_to_the_bit_are_found(tmp_path):
    run = make_run(tmp_path / "run", [1.0, 0.5])
    assert training_runs.difference(run, make_run(tmp_path / "same", [1.0, 0.5])) is None
    other = make_run(tmp_path / "other", [1.0, 0.5000000000000001])
    assert training_runs.difference(run, other) == "losses differ from step 2 on: 0.5 and 0.5000000000000001"
    assert training_runs.difference(run, make_run(tmp_path / "short", [1.0])).startswith("losses differ from step 2")
    assert training_runs.difference(run, make_run(tmp_path / "weights", [1.0, 0.5], b"other")) == "weights differ"


def test_training_is_left_out_without_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "training.pretrain", None)
    training.run(settings_of(), Rows(tmp_path / "rows", 10))
    (row,) = read_rows(tmp_path / "rows")
    assert row["ok"] is None and "training.pretrain" in row["figure"]


def test_a_run_that_fails_is_told_by_its_error(tmp_path):
    run = make_run(tmp_path / "run", [])
    run.log.write_text(
        "start\npretrain.py: error: `image_size` must be 32.\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\nCalledProcessError: 1\n\n"
    )
    assert training_runs.last_line(run) == "pretrain.py: error: `image_size` must be 32."


def test_runs_that_are_late_are_told_and_killed(tmp_path):
    launch = training_runs.Launcher(settings_of(), tmp_path, time.monotonic() + 3)
    command = [sys.executable, "-c", "import os; os.system('sleep 1000')"]
    launch.processes.append(subprocess.Popen(command))
    run = training_runs.Run(launch.processes[0], tmp_path, tmp_path / "log", launch.end)
    assert training_runs.finish(run) == training_runs.LATE
    children = psutil.Process(run.process.pid).children(recursive=True)
    launch.kill_late_runs()
    assert children and run.process.returncode == -signal.SIGKILL
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_checks_that_are_late_or_for_a_gpu_fail_nothing(tmp_path):
    outcomes = iter([training.Outcome(None, "a figure"), training.Outcome(training.LATE), training.Outcome("differs")])
    launch, rows = training_runs.Launcher(settings_of(), tmp_path, 0.0), Rows(tmp_path / "rows", 25)
    for name, on_processor in (("fits", True), ("for a GPU", False), ("late", True), ("wrong", True)):
        training.check(training.Check(name, lambda launch: next(outcomes), on_processor), launch, rows)
    found = [(row["what"], row["ok"], row["figure"]) for row in read_rows(tmp_path / "rows")]
    assert found == [
        ("fits", True, "a figure"),
        ("for a GPU", None, "left out: not on a processor"),
        ("late", None, training.LATE),
        ("wrong", False, "differs"),
    ]


@pytest.mark.slow
def test_everything_runs_on_a_processor(tmp_path):
    output = tmp_path / "gpu.json"
    assert command.main([*SMALL, *WITH_TRAINING, "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["parts"]["training"]["rows"]
    checks = training.CHECKS.values()
    assert {row["what"] for row in rows if row["ok"]} == {each.what for each in checks if each.on_processor}
    assert len(rows) == len(checks) and not any(row["ok"] is False for row in rows)
