"""Several processes train as one does: the same images a step, the same losses; blocks sharded over two processes."""

import json
import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification
from tests.photographs import (
    CLASSES,
    VIEWS,
    WRITE_TINY,
    write_masked_parquet,
    write_objects_parquet,
    write_parquet,
    write_tiny_convmae,
    write_tiny_fcmae,
)
from training.evaluation.pictures import read_metrics

ROOT = Path(__file__).parents[2]
STEPS = 20


def run(script: list[str], processes: int, tmp_path: Path) -> str:
    """Output of a script in so many processes."""
    launch = [] if processes == 1 else ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "cache")
    command = [sys.executable, *launch, *script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def as_flags(settings: dict[str, Any]) -> list[str]:
    """The words of a command line that give these settings."""
    return [word for name, value in settings.items() for word in (f"--{name}", *str(value).split())]


def write_tiny_classifier(folder: Path) -> Path:
    """A classifier of the photographs with a head at random, large enough for answers to differ."""
    set_seed(0)
    config = ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 2], image_size=32, num_labels=len(CLASSES))
    config.id2label, config.label2id = dict(enumerate(CLASSES)), {name: i for i, name in enumerate(CLASSES)}
    model = ConvNextV2ForImageClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    return folder


# The tiny model has two stages; the batch normalisation of the head uses the statistics of all processes.
SEGMENT = {
    "decoder_hidden_size": 8,
    "auxiliary_loss_weight": 0,
    "num_labels": 3,
    "image_size": 32,
    "eval_split": "test",
}
DETECT = {
    "decoder_hidden_size": 8,
    "box_head_size": 16,
    "box_batch_size": 32,
    "anchor_sizes": "8 16 32",
    "image_size": 48,
    "scale_range": "0.5 1.5",
    "eval_split": "test",
}
# Which regions a detector keeps and draws, and which of few units are above 0, can change with the last digit of its
# weights in float32, which is another one with each number of processes. Trained steps are therefore compared in
# float64, and those in float32 with weights that hardly move.
STILL = {**DETECT, "learning_rate": 1e-9}
THROUGH = {"float32": [], "float64": ["tests/in_float64.py"]}
TOLERANCE = {"float32": 1e-5, "float64": 1e-8}
ROUNDED = 1e-7  # of a detector's loss in float64: PyTorch computes that of objectness in the labels' type, float32
DETECTION_LOSSES = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_rpn_box_reg")  # the other parts of it
WRITERS = {"segment": partial(write_masked_parquet, unknown=True), "detect": write_objects_parquet}
NUM_TESTED = {"segment": 21, "detect": 21}  # images to evaluate on: no multiple of the processes' batches


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "fields", "family", "dtype"),
    [
        ("pretrain", {}, "convnextv2", "float32"),
        ("pretrain", VIEWS, "convnextv2", "float32"),
        ("segment", SEGMENT, "convnextv2", "float32"),
        ("detect", DETECT, "convnextv2", "float64"),
        ("detect", STILL, "convnextv2", "float32"),
        ("pretrain", {}, "convmae", "float32"),
        ("pretrain", VIEWS, "convmae", "float32"),
    ],
)
def test_the_same_total_batch_gives_the_same_losses_in_one_two_and_three_processes(
    script, fields, family, dtype, tmp_path
):
    write = WRITERS.get(script, write_parquet)
    settings = {
        "learning_rate": 1e-3,
        **fields,
        "model_name_or_path": WRITE_TINY[family](tmp_path / "pretrained"),
        "dataset_name": write(tmp_path / "parquet", {"train": 9, "test": 7}),
        "max_train_steps": STEPS,
        "checkpointing_steps": STEPS,
        "logging_steps": 1,
        "num_workers": 1,
        "with_tracking": False,
    }
    losses, lines, results = {}, {}, {}
    for processes in (1, 2, 3):
        output = tmp_path / str(processes)
        flags = {**settings, "output_dir": output, "per_device_train_batch_size": 6 // processes}
        words = as_flags(flags)
        run([*THROUGH[dtype], f"training/{script}.py", *words], processes, tmp_path)
        state = json.loads((output / f"checkpoint-{STEPS}/training_state.json").read_text())
        assert state["num_processes"] == processes
        lines[processes] = [line for line in read_metrics(output / "metrics.jsonl") if "loss" in line]
        losses[processes] = [line["loss"] for line in lines[processes]]
        assert len(losses[processes]) == STEPS
        results[processes] = json.loads((output / "all_results.json").read_text())
        assert results[processes].get("eval_samples") == NUM_TESTED.get(script)
    for processes in (2, 3):
        assert losses[processes] == pytest.approx(losses[1], rel=max(TOLERANCE[dtype], ROUNDED))
        for name in ("grad_norm", *DETECTION_LOSSES) if script == "detect" else ():
            found, expected = ([line[name] for line in lines[count]] for count in (processes, 1))
            assert found == pytest.approx(expected, rel=TOLERANCE[dtype]), name
        for name in {"eval_loss", "eval_mean_iou", "eval_map", "eval_map_mask"} & set(results[1]):
            assert results[processes][name] == pytest.approx(results[1][name], rel=1e-3)
    assert losses[1][0] != pytest.approx(losses[1][1], rel=1e-4)  # the control: steps differ by more


THREE_STAGES = partial(write_tiny_fcmae, num_stages=3)  # that Mask2Former needs


@pytest.mark.parametrize(
    ("script", "fields", "write_model"),
    [
        ("pretrain", {"mixed_precision": "bf16"}, write_tiny_fcmae),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("pretrain", {}, write_tiny_convmae),
                ("finetune", {"image_size": 32, "eval_split": "test"}, write_tiny_fcmae),
                ("segment", {**SEGMENT, "mixed_precision": "bf16"}, write_tiny_fcmae),
                ("segment", {**SEGMENT, "architecture": "mask2former", "decoder_hidden_size": 32}, THREE_STAGES),
            ]
        ),
    ],
)
def test_weights_that_are_sharded_train_as_whole_ones(script, fields, write_model, tmp_path):
    """The monitor, the evaluation and the saved model have the whole weights, and the losses are not rounded."""
    settings = {
        **fields,
        "model_name_or_path": write_model(tmp_path / "pretrained"),
        "dataset_name": WRITERS.get(script, write_parquet)(tmp_path / "parquet", {"train": 9, "test": 4}),
        "per_device_train_batch_size": 3,
        "max_train_steps": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "num_workers": 0,
        "with_tracking": False,
    }
    losses, weights = {}, {}
    for name, through in (("whole", "tests/plain_adamw.py"), ("sharded", "tests/sharded_on_cpu.py")):
        words = as_flags(settings)
        output = tmp_path / name
        run([through, f"training/{script}.py", *words, f"--output_dir={output}"], 2, tmp_path)
        losses[name] = [line["loss"] for line in read_metrics(output / "metrics.jsonl") if "loss" in line]
        weights[name] = load_file(output / "model.safetensors")
    assert losses["sharded"] == pytest.approx(losses["whole"], rel=1e-4)
    assert_close(weights["sharded"], weights["whole"], rtol=0, atol=2e-4)  # a fifth of a step of AdamW
    assert losses["whole"][0] != pytest.approx(losses["whole"][1], rel=1e-4)  # the control: steps differ by more


@pytest.mark.slow
def test_every_process_evaluates_the_whole_weights_at_the_end_of_a_sharded_run(tmp_path):
    """A run that resumes from its last checkpoint evaluates the model that it saves, which no process holds alone."""
    settings = {
        **{"image_size": 32, "eval_split": "test", "per_device_eval_batch_size": 1, "per_device_train_batch_size": 3},
        "model_name_or_path": write_tiny_classifier(tmp_path / "classifier"),
        "dataset_name": write_parquet(tmp_path / "parquet", {"train": 4, "test": 4}),
        **{"max_train_steps": 2, "checkpointing_steps": 2, "learning_rate": 3e-2, "resume_from_checkpoint": "latest"},
        **{"num_workers": 0, "with_tracking": False, "output_dir": tmp_path / "sharded"},
    }
    words = as_flags(settings)
    results = tmp_path / "sharded/all_results.json"
    found = []
    for _ in range(2):
        run(["tests/sharded_on_cpu.py", "training/finetune.py", *words], 2, tmp_path)
        found.append(json.loads(results.read_text())["eval_loss"])
        (tmp_path / "sharded/model.safetensors").unlink()
        results.unlink()
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("script", "fields"), [("detect", DETECT), ("segment", {**SEGMENT, "eval_window": 32})])
def test_weights_are_not_sharded_where_processes_make_different_numbers_of_passes(script, fields, tmp_path):
    images = WRITERS[script](tmp_path / "parquet", {"train": 2, "test": 1})
    settings = {**fields, "model_size": "atto", "dataset_name": images, "output_dir": tmp_path / "out"}
    words = as_flags(settings)
    with pytest.raises(AssertionError, match=r"error: `distributed_type` \(=FSDP\) must be another than FSDP"):
        run(["tests/sharded_on_cpu.py", f"training/{script}.py", *words], 2, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_an_evaluation_counts_every_image_once_whatever_the_number_of_processes(streaming, tmp_path):
    images = write_parquet(tmp_path / "parquet", {"train": 7, "test": 10})  # 30 images: the last batches are uneven
    model = write_tiny_classifier(tmp_path / "classifier")
    settings = {"model_name_or_path": model, "dataset_name": images, "eval_split": "test", "num_workers": 1}
    settings |= {"streaming": streaming, "per_device_eval_batch_size": 4, "image_size": 32}
    flags = [f"--{key}={value}" for key, value in settings.items()]
    flags += ["--protocols", "classifier", "knn", "linear_probe", "--knn_neighbors", "3"]
    results, tables = {}, {}
    for processes in (1, 2, 3):
        output = tmp_path / str(processes)
        run(["training/validate.py", *flags, f"--output_dir={output}"], processes, tmp_path)
        results[processes] = json.loads((output / "eval_results.json").read_text())
        assert results[processes]["eval_samples"] == 30 and results[processes]["train_samples"] == 21
        tables[processes] = (output / "eval_per_class.csv").read_text()
    for processes in (2, 3):
        assert_close(results[processes], results[1], rtol=1e-6, atol=0)
        assert tables[processes] == tables[1]
    assert [line.split(",")[2] for line in tables[1].splitlines()[1:]] == ["10"] * 3


DETECTING = """
    import json
    import sys

    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, Dataset, IterableDataset

    from tests.training.evaluation.test_detection import NAMES, random_pairs
    from training.evaluation.detection import DetectionEvaluator, collate_objects
    from training.evaluation.loop import prepare_lists
    from training.settings.evaluation import DetectEvaluationSettings

    class Samples(Dataset):
        def __init__(self, pairs):
            self.pairs = pairs

        def __len__(self):
            return len(self.pairs)

        def __getitem__(self, number):
            image = torch.full((3, 4 + number, 5), float(number))
            objects = self.pairs[number][0]
            return {"seed": number, "pixel_values": image, "size": (240, 300), "objects": objects}

    class Stream(IterableDataset):
        def __init__(self, pairs):
            self.samples = Samples(pairs)

        def __iter__(self):
            return map(self.samples.__getitem__, range(len(self.samples)))

    accelerator, kind, found = Accelerator(cpu=True), {"true": Stream, "false": Samples}[sys.argv[1]], []
    for count in range(1, 10):
        pairs = random_pairs(count, count=count)
        detect = lambda model, image, size: pairs[int(image[0, 0, 0])][1]
        evaluator = DetectionEvaluator(NAMES, detect, True, DetectEvaluationSettings())
        loader = prepare_lists(accelerator, DataLoader(kind(pairs), 2, collate_fn=collate_objects))
        found.append(evaluator(accelerator, torch.nn.Identity(), loader))
        assert found[-1]["eval_samples"] == count, (found[-1]["eval_samples"], count)
    if accelerator.is_main_process:
        print(json.dumps(found))
    accelerator.end_training()
"""


@pytest.mark.slow
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_an_evaluation_of_detections_is_the_same_in_one_two_and_three_processes(streaming, tmp_path):
    script = tmp_path / "detecting.py"
    script.write_text(textwrap.dedent(DETECTING))
    found = [json.loads(run([str(script), streaming], processes, tmp_path)) for processes in (1, 2, 3)]
    assert found[1] == found[0] and found[2] == found[0]
    assert max(results["eval_map"] for results in found[0]) > 0.1


FAILING = """
    import sys
    import torch
    import torch.distributed as dist
    from training.settings.config import check
    from training.console.errors import told_in_a_line

    dist.init_process_group("gloo")
    with told_in_a_line():
        check("image", "cats/7.png", str(dist.get_rank()) not in sys.argv[1], "be an image")
        dist.all_reduce(torch.ones(1))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["0", "1", "01"])
def test_the_error_of_any_process_is_told_once_without_our_traceback(ranks, tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(textwrap.dedent(FAILING))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script), ranks]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.count("failing.py: error: `image` (=cats/7.png) must be an image.") == 1
    assert "closed by peer" not in done.stderr and "[rank" not in done.stderr


SHARDED = """
    import os
    import sys

    import torch
    import torch.distributed as dist
    from accelerate.utils import set_seed
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.testing import assert_close

    from hf_convnextv2 import ConvMAEForPreTraining, ConvNextV2ForPreTraining

    def create():
        set_seed(0)
        model_class, num_blocks = {
            "convnextv2": (ConvNextV2ForPreTraining, 4), "convmae": (ConvMAEForPreTraining, 5)
        }[sys.argv[1]]
        model = model_class.from_pretrained(sys.argv[2])
        model.num_blocks = num_blocks
        for name, parameter in model.named_parameters():
            if "grn" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        return model

    def step(model, pixel_values, noise):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = model(pixel_values, noise=noise).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    assert world == 2
    torch.manual_seed(1)
    pixel_values, noise = torch.randn(4, 3, 32, 32), torch.rand(4, 16)
    whole = create()
    expected = step(whole, pixel_values, noise)
    sharded, mesh = create(), init_device_mesh("cpu", (world,))
    blocks = [module for module in sharded.modules() if type(module).__name__ in sharded._no_split_modules]
    assert len(blocks) == sharded.num_blocks  # of encoder and decoder
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    own = slice(2 * rank, 2 * rank + 2)
    loss = step(sharded, pixel_values[own], noise[own])
    dist.all_reduce(loss, dist.ReduceOp.AVG if dist.get_backend() == "nccl" else dist.ReduceOp.SUM)
    assert_close(loss / world, expected, rtol=1e-5, atol=0)
    gathered = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        assert_close(gathered, dict(whole.state_dict()), rtol=1e-4, atol=1e-5)
        loaded = create()
        assert not torch.equal(loaded.decoder.mask_token, gathered["decoder.mask_token"])
        loaded.load_state_dict(gathered)
        print("equal", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # a thread of PyTorch that wants the interpreter while it ends would abort the process, if rarely
"""


@pytest.mark.parametrize("family", ["convnextv2", pytest.param("convmae", marks=pytest.mark.slow)])
def test_blocks_sharded_over_two_processes_take_the_step_of_one(family, tmp_path):
    script, model = tmp_path / "sharded.py", WRITE_TINY[family](tmp_path / "model")
    script.write_text(textwrap.dedent(SHARDED))
    assert "equal" in run([str(script), family, str(model)], 2, tmp_path)
