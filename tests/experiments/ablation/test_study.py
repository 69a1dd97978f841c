"""The study from pictures to rows with the real scripts, and that what was killed goes on and nothing is done twice.

The scripts run in this process, with the flags of their command lines.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pictures
from safetensors.torch import load_file
from sklearn.metrics import balanced_accuracy_score

from experiments import ablations
from experiments.ablation import cases as cases_module
from experiments.ablation import results as results_module
from experiments.ablation import script
from experiments.ablation import study as study_module
from experiments.ablation.arms import ARMS, Block
from experiments.ablation.cases import Case, Length
from experiments.ablation.collapse import dead_channels, figures_by_block
from experiments.ablation.study import Ablations
from experiments.ablation.surgery import add_grn, drop_grn, write_changed
from hf_convnextv2 import ConvNextV2ForImageClassification, ConvNextV2ForPreTraining
from tests.photographs import forget_accelerate, fresh_accelerate, quick_datasets
from tests.small_models import assert_close, awake, difference, small_fcmae_config
from training import finetune, pretrain
from training.comparison import runner
from training.comparison.runner import Runner
from training.evaluation.pictures import read_metrics
from training.run.monitor import feature_diversity
from training.run.training_run import TrainingRun
from training.settings.command_line import parse_settings
from training.settings.scripts import FinetuneSettings, PretrainSettings

__all__ = ["fresh_accelerate", "quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets", "fresh_accelerate")
SCRIPTS = {"pretrain": (pretrain, PretrainSettings), "finetune": (finetune, FinetuneSettings)}
TINY = {"per_device_train_batch_size": 4, "learning_rate": 1e-3}
RECIPES = {
    "pretrain": {**TINY, "num_stages": 2, "image_size": 32, "decoder_hidden_size": 16},
    "finetune": {**TINY, "eval_split": "test"},
}
GATE = ("v2_fcmae-0.001", "v2_fcmae-0.0005")
BLOCKS = {
    "G": Block("", GATE, (8,)),
    "E1": Block("", ("v2_fcmae", "batch_norm", "grn_dropped"), (0,)),
    "L": Block("", (), (0,)),
}


def write_squares(folder, test_share=0.5):
    """Noisy grey squares, of two classes by their brightness, as `write_solar_cells` writes photographs."""
    features = Features({"image": Image(), "label": ClassLabel(names=["functional", "defective"])})
    for part in ("labelled", "unlabelled"):
        (folder / part).mkdir(parents=True)
    for split, count in (("test", 10), ("train", 24)):
        pixels = np.random.default_rng(count).integers(0, 128, (count, 32, 32), dtype=np.uint8)
        images = [Pictures.fromarray(image + np.uint8(100 * (n % 2))) for n, image in enumerate(pixels)]
        rows = Dataset.from_dict({"image": images, "label": [n % 2 for n in range(count)]}, features=features)
        rows.to_parquet(folder / f"labelled/{split}.parquet")
    rows.remove_columns("label").to_parquet(folder / "unlabelled/train.parquet")


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """The folders of the runs that the scripts make in this process, one after the other, of tiny models."""
    found = []
    for task, recipe in RECIPES.items():
        (tmp_path / f"{task}.yaml").write_text(yaml.safe_dump(recipe))

    def launch(name, recipe, *flags, at_a_time, lock):
        forget_accelerate()
        arguments = ["--config", str(recipe), *flags]
        if isinstance(name, Path):
            script.main(arguments)
        else:
            module, kind = SCRIPTS[name]
            module.main(parse_settings(kind, arguments))
        forget_accelerate()
        folder = next(flag for flag in flags if flag.startswith("--output_dir=")).rpartition("study/")[2]
        found.append(("script" if isinstance(name, Path) else name, folder))

    monkeypatch.setattr(runner, "launch", launch)
    monkeypatch.setattr(Runner, "side_by_side", lambda self, tasks: [task() for task in tasks])
    for module in (cases_module, study_module, results_module):
        monkeypatch.setattr(module, "BLOCKS", BLOCKS)
    monkeypatch.setattr(study_module, "GATE_SEEDS", BLOCKS["G"].seeds)
    monkeypatch.setattr(study_module, "PRETRAINING", tmp_path / "pretrain.yaml")
    monkeypatch.setattr(study_module, "FINETUNING", tmp_path / "finetune.yaml")
    monkeypatch.setattr(ablations, "write_solar_cells", write_squares)
    return found


def run(tmp_path, *flags):
    given = ["--output_dir", str(tmp_path / "study"), "--results", str(tmp_path / "ablations.json")]
    given += ["--blocks", "E1", "--jobs", "1"]
    ablations.main([*given, "--pretrain_steps", "4", "--finetune_steps", "2", *flags])
    return json.loads((tmp_path / "ablations.json").read_text())


def test_a_killed_study_goes_on_and_its_rows_are_those_of_its_classifiers(launched, monkeypatch, tmp_path):
    whole, answers_of = runner.launch, Ablations.answers
    answered: dict = {}

    def answers(study, case, *given):
        answered[case] = answers_of(study, case, *given)
        return answered[case]

    def killed(*given, **options):
        if len(launched) == 6:
            raise KeyboardInterrupt
        whole(*given, **options)

    monkeypatch.setattr(Ablations, "answers", answers)
    monkeypatch.setattr(runner, "launch", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    before = json.loads((tmp_path / "ablations.json").read_text())
    assert [row["arm"] for row in before["rows"]] == [*GATE, "v2_fcmae"]  # the file is written after each row
    monkeypatch.setattr(runner, "launch", whole)
    found = run(tmp_path)

    pretrainings = [("pretrain", "pretrain/v2_fcmae-8"), ("pretrain", "pretrain/v2_fcmae-0")]
    classifiers = [("finetune", f"finetune/{name}") for name in (f"{GATE[0]}-8", f"{GATE[1]}-8", "v2_fcmae-0")]
    replaced = [("script", "pretrain/batch_norm-0"), ("script", "finetune/batch_norm-0")]
    expected = [*pretrainings, *classifiers, *replaced, ("finetune", "finetune/grn_dropped-0")]
    assert sorted(launched) == sorted(expected)
    cases = [(row["arm"], row["seed"]) for row in found["rows"]]
    assert cases == [(GATE[0], 8), (GATE[1], 8), ("v2_fcmae", 0), ("batch_norm", 0), ("grn_dropped", 0)]
    assert found["rows"][:3] == before["rows"]

    labels = [n % 2 for n in range(10)]
    for row in found["rows"][2:]:
        answers = answered[row["arm"], 0]
        assert row["answers"] == "".join(map(str, answers["fine-tuned"])) and set(answers) == {
            "fine-tuned",
            "linear probe",
            "20 nearest neighbours",
        }
        for method, classes in answers.items():
            assert row["figures"][method] == pytest.approx(balanced_accuracy_score(labels, classes))
        assert row["settings"]["replacement"] == ("batch_norm" if row["arm"] == "batch_norm" else None)
        assert "--max_train_steps=2" in row["settings"]["fine-tuning"]
    best = max(found["rows"][:2], key=lambda row: row["figures"]["fine-tuned"])
    assert {row["settings"]["learning_rate"] for row in found["rows"][2:]} == {best["settings"]["learning_rate"]}
    collapse = {row["arm"]: list(row["collapse"]) for row in found["rows"] if "collapse" in row}
    assert collapse == {name: ["0", "1", "2", "4"] for name in ("v2_fcmae", "batch_norm")}
    assert not list(tmp_path.glob("study/*/*/checkpoint-*"))

    monkeypatch.setattr(study_module, "predicted_classes", lambda *_: pytest.fail("a finished row was computed again"))
    assert run(tmp_path)["rows"] == found["rows"] and len(launched) == len(expected)  # all is there


def test_block_g_is_measured_on_training_images_without_a_label(launched, tmp_path):
    output = tmp_path / "study"
    write_squares(output / "data")
    photographs = {split: ablations.photographs_of(output, split) for split in ("train", "test")}
    study = Ablations(output, output / "ablations.json", photographs, Length(4, 2), Runner(output, None, 1))
    gate, other = Case(GATE[0], 8), Case("v2_fcmae", 3)
    pixels = {split: [np.asarray(image).tobytes() for image in part["image"]] for split, part in photographs.items()}
    for case, held_out in ((gate, pixels["train"]), (other, pixels["test"])):
        images = study.images_of(case)
        found = {split: {np.asarray(image).tobytes() for image in part["image"]} for split, part in images.items()}
        assert len(found["train"]) == 6 and found["train"] <= set(pixels["train"])
        assert not found["train"] & found["test"] and found["test"] <= set(held_out)
        assert len(found["test"]) == (18 if case == gate else 10)
        subset = Dataset.from_parquet(str(study.subset(case) / "test.parquet"))
        assert len(subset) == len(images["test"])
    with pytest.raises(ValueError, match="`blocks` must begin with G"):
        study.rate_of(other)


def test_the_same_time_is_the_median_of_the_rows_once_for_all(tmp_path):
    def study():
        return Ablations(tmp_path, tmp_path / "ablations.json", {}, Length(600, 308), Runner(tmp_path, None, 1))

    first = study()
    seconds = {"pre-training": 64 / 80, "fine-tuning": 32 / 32}
    for seed, slower in enumerate((1, 1, 3)):  # one was beside another process
        timed = {**seconds, "pre-training": slower * seconds["pre-training"]}
        first.rows[Case("v2_fcmae", seed)] = {"arm": "v2_fcmae", "seed": seed, "seconds of a step": timed}
    assert first.steps_of(ARMS["v2_random"]) == 308
    assert first.steps_of(ARMS["v2_random_same_time"]) == 308 + 600 * (64 / 80) / (32 / 32)
    later = study()
    later.rows.clear()
    assert later.steps_of(ARMS["v2_random_same_time"]) == 788  # kept


def test_the_speed_is_the_median_of_those_in_the_log(tmp_path):
    lines = [json.dumps({"step": step, "images_per_second": speed}) for step, speed in enumerate([1, 80, 90])]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert study_module.seconds_of_a_step(tmp_path, 64) == 64 / 80


@pytest.mark.parametrize("replacement", ["layer_norm", "dense"])
def test_two_steps_by_the_real_entry_killed_and_resumed_are_those_of_an_unbroken_run(
    replacement, launched, monkeypatch, tmp_path
):
    write_squares(tmp_path / "data")
    flags = ["--task=pretrain", f"--replacement={replacement}", "--config", str(tmp_path / "pretrain.yaml")]
    flags += [f"--dataset_name={tmp_path}/data/unlabelled", "--max_train_steps=2", "--warmup_steps=1"]
    flags += ["--logging_steps=1", "--checkpointing_steps=1", "--with_tracking=false"]
    flags += ["--resume_from_checkpoint=latest", "--num_workers=0"]
    script.main([*flags, f"--output_dir={tmp_path / 'whole'}"])
    update = TrainingRun.update

    def killed(self):
        if self.step == 2:
            raise RuntimeError("killed")
        update(self)

    monkeypatch.setattr(TrainingRun, "update", killed)
    forget_accelerate()
    with pytest.raises(RuntimeError, match="killed"):
        script.main([*flags, f"--output_dir={tmp_path / 'broken'}"])
    monkeypatch.setattr(TrainingRun, "update", update)
    forget_accelerate()
    script.main([*flags, f"--output_dir={tmp_path / 'broken'}"])
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "broken")]
    losses = [[(row["step"], row["loss"]) for row in found if "loss" in row] for found in rows]
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == [1, 2]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert json.loads((tmp_path / "whole/config.json").read_text())["architectures"] == ["ConvNextV2ForPreTraining"]


def test_grn_that_is_dropped_or_added_leaves_all_other_weights(tmp_path):
    v2 = awake(ConvNextV2ForPreTraining(small_fcmae_config()))
    v1 = awake(ConvNextV2ForPreTraining(small_fcmae_config(use_grn=False, layer_scale_init_value=1e-6)))
    pixel_values = torch.randn(1, 3, 64, 64)
    for model, change, name in ((v2, "drop", "dropped"), (v1, "add", "added")):
        model.save_pretrained(tmp_path / change)
        (tmp_path / change / "preprocessor_config.json").write_text("{}")
        folder = write_changed(tmp_path / change, change, tmp_path / name)
        assert (folder / "preprocessor_config.json").is_file()
        before, after = (load_file(path / "model.safetensors") for path in (tmp_path / change, folder))
        shared = {key: after[key] for key in after if key in before}
        assert all(torch.equal(value, before[key]) for key, value in shared.items())
        differing = {key.split(".")[-2] for key in before.keys() ^ after.keys()}
        assert differing == {"grn"}
        classifier = ConvNextV2ForImageClassification.from_pretrained(folder, num_labels=2).eval()
        assert classifier.config.use_grn == (change == "add")
        assert classifier.config.has_layer_scale == (change == "add")
        encoder = model.convnextv2
        maps = [each.encoder(each.embeddings(pixel_values))[-1] for each in (encoder, classifier.convnextv2)]
        if change == "add":  # the identity, at first
            assert_close(maps[1], maps[0])
        else:
            assert difference(maps[1], maps[0]) > 0.01


def test_surgery_reaches_every_block_and_the_configuration():
    model = ConvNextV2ForPreTraining(small_fcmae_config())
    drop_grn(model)
    assert not model.config.use_grn and not any(".grn." in name for name, _ in model.named_parameters())
    add_grn(model)
    assert model.config.use_grn and sum(".grn.weight" in name for name, _ in model.named_parameters()) == 6


def test_a_channel_is_dead_if_it_hardly_changes():
    features = torch.randn(2, 5, 5, 8)
    assert dead_channels(features) == 0
    features[..., 0], features[..., 1] = 0, 3  # dead, saturated
    features[..., 2] *= 0.005
    features[..., 3] *= 0.05
    assert dead_channels(features) == 3 / 8 and dead_channels(100 * features) == 3 / 8


def test_figures_by_block_are_those_of_all_blocks_and_the_monitors_in_the_last_ones():
    model, pixel_values = awake(ConvNextV2ForPreTraining(small_fcmae_config())), torch.randn(2, 3, 64, 64)
    block = model.convnextv2.encoder.stages[2].layers[0]
    with torch.no_grad():
        block.pwconv1.weight[:24] = 0
        block.pwconv1.bias[:24] = 0
    found = figures_by_block(model.convnextv2, pixel_values)
    assert len(found["diversity"]) == len(found["dead channels"]) == 5
    assert [found["diversity"][index] for index in (0, 1, 3, 4)] == pytest.approx(
        feature_diversity(model, pixel_values)
    )
    assert found["dead channels"][2] == 0.25 and found["dead channels"][0] == 0
