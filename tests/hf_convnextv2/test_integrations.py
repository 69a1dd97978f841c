"""The libraries around the models: pipelines, Trainer, torch.compile and export, detection heads, adapters, DDP."""

import copy

import peft
import pytest
import torch
import transformers
from PIL import Image
from torch.utils.data import Dataset

import hf_convnextv2
from hf_convnextv2 import (
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvNextV2Backbone,
    ConvNextV2FCMAEModel,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
    create_image_processor,
)
from tests.small_models import (
    assert_close,
    awake,
    difference,
    run_python,
    small_config,
    small_convmae_config,
    small_fcmae_config,
)


@pytest.fixture
def registered():
    hf_convnextv2.register()
    yield
    hf_convnextv2.unregister()


def save(model, folder):
    model.save_pretrained(folder)
    create_image_processor(model.config).save_pretrained(folder)
    return str(folder)


# --- Pipelines --------------------------------------------------------------------------------------------------------


def test_classification_pipeline_runs_our_classifier(registered, photographs, tmp_path):
    config = small_config(num_labels=2, id2label={0: "cat", 1: "coffee"}, label2id={"cat": 0, "coffee": 1})
    model = awake(ConvNextV2ForImageClassification(config))
    pipe = transformers.pipeline("image-classification", model=save(model, tmp_path), device="cpu")
    assert type(pipe.model) is ConvNextV2ForImageClassification
    images = [Image.fromarray(photographs[0]), Image.fromarray(photographs[7]).convert("L")]
    inputs = create_image_processor(config)(images, return_tensors="pt")
    for answer, probabilities in zip(pipe(images), model(**inputs).logits.softmax(-1), strict=True):
        scores = {entry["label"]: entry["score"] for entry in answer}
        assert scores == pytest.approx(dict(zip(("cat", "coffee"), probabilities.tolist(), strict=True)), abs=1e-5)


@pytest.mark.parametrize(
    ("model_class", "config", "loaded_class"),
    [
        (ConvNextV2Model, small_config(), ConvNextV2Model),
        (ConvNextV2ForPreTraining, small_fcmae_config(), ConvNextV2FCMAEModel),
    ],
    ids=["encoder", "fcmae"],
)
def test_feature_pipeline_runs_our_encoder(registered, photographs, tmp_path, model_class, config, loaded_class):
    folder = save(awake(model_class(config)), tmp_path)
    pipe = transformers.pipeline("image-feature-extraction", model=folder, device="cpu")
    assert type(pipe.model) is loaded_class
    image = Image.fromarray(photographs[0])
    features = torch.tensor(pipe(image))
    inputs = create_image_processor(config)(image, return_tensors="pt")
    assert_close(features, ConvNextV2Model.from_pretrained(folder)(**inputs).last_hidden_state)


# --- Trainer ----------------------------------------------------------------------------------------------------------


class Crops(Dataset):
    """Small crops of photographs; the label says which half of them an image comes from."""

    def __init__(self, crops, labelled):
        self.images, self.labelled = crops[:16, :, :64, :64], labelled

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        example = {"pixel_values": self.images[index]}
        return {**example, "labels": int(index % 8 < 4)} if self.labelled else example


@pytest.mark.parametrize("model_class", [ConvNextV2ForImageClassification, ConvNextV2ForPreTraining])
def test_trainer_lowers_the_loss(model_class, crops, tmp_path):
    labelled = model_class is ConvNextV2ForImageClassification
    config = small_config(num_labels=2) if labelled else small_fcmae_config(image_size=64)
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=60, learning_rate=3e-3, per_device_train_batch_size=8, logging_steps=10,
        warmup_steps=5, report_to="none", use_cpu=True, disable_tqdm=True, seed=0, dataloader_pin_memory=False,
        eval_strategy="steps", eval_steps=60, save_steps=60,
    )  # fmt: skip
    data = Crops(crops, labelled)
    trainer = transformers.Trainer(model_class(config), arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < (0.5 if labelled else 0.97) * losses[0]
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    again = model_class.from_pretrained(tmp_path / "checkpoint-60").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in trainer.model.state_dict().items())


def accuracy(prediction):
    hits = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": hits.mean(), "n": len(hits)}


@pytest.mark.parametrize("label_smoothing_factor", [0.0, 0.1])
def test_trainer_evaluates_loss_and_metrics_as_it_does_stock(crops, tmp_path, label_smoothing_factor):
    config = small_config(num_labels=2)
    ours = awake(ConvNextV2ForImageClassification(config))
    stock = transformers.ConvNextV2ForImageClassification(transformers.ConvNextV2Config.from_dict(config.to_dict()))
    stock.load_state_dict(ours.state_dict())
    data, results = torch.utils.data.Subset(Crops(crops, True), range(5)), []
    for model in (stock, ours):
        arguments = transformers.TrainingArguments(
            str(tmp_path), per_device_eval_batch_size=2, report_to="none", use_cpu=True, disable_tqdm=True,
            dataloader_pin_memory=False, label_smoothing_factor=label_smoothing_factor,
        )  # fmt: skip
        results.append(transformers.Trainer(model, arguments, eval_dataset=data, compute_metrics=accuracy).evaluate())
    for name in ("eval_loss", "eval_accuracy", "eval_n"):
        assert results[1][name] == pytest.approx(results[0][name], abs=1e-5)
    assert results[1]["eval_n"] == 5


class Noised(Crops):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "noise": torch.linspace(0, 1, 4).roll(index)}


def test_trainer_evaluates_the_loss_of_pretraining(crops, tmp_path):
    model, data = awake(ConvNextV2ForPreTraining(small_fcmae_config())), Noised(crops, False)
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=8, report_to="none", use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, eval_dataset=data)
    with torch.no_grad():
        expected = model(**torch.utils.data.default_collate([data[i] for i in range(16)]))
        assert model(data.images[:2], return_loss=False).loss is None
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    predictions = trainer.predict(data).predictions
    assert predictions[0].shape == expected.logits.shape
    assert (predictions[1] == expected.mask.numpy()).all()


@pytest.mark.parametrize(
    "model_class",
    [
        ConvNextV2Model,
        ConvNextV2Backbone,
        ConvNextV2ForImageClassification,
        ConvNextV2FCMAEModel,
        ConvNextV2ForPreTraining,
    ],
)
def test_the_labels_that_trainer_finds_are_those_of_stock(model_class):
    labels = ["labels"] if model_class is ConvNextV2ForImageClassification else []
    assert transformers.utils.generic.find_labels(model_class) == labels
    if hasattr(transformers, model_class.__name__):
        assert transformers.utils.generic.find_labels(getattr(transformers, model_class.__name__)) == labels
    assert transformers.utils.generic.can_return_loss(model_class) is (model_class is ConvNextV2ForPreTraining)


# --- torch.compile and export -----------------------------------------------------------------------------------------

COMPILED = pytest.mark.parametrize(
    ("model_class", "hidden_states"),
    [
        (ConvNextV2ForImageClassification, False),
        (ConvNextV2ForImageClassification, True),
        (ConvNextV2Backbone, False),
        (ConvNextV2ForPreTraining, False),
        (ConvNextV2ForPreTraining, True),
    ],
)


def check_compiled(model_class, hidden_states, backend, views=None):
    """Outputs and gradients of the model compiled without a break in its graph."""
    fcmae = model_class is ConvNextV2ForPreTraining
    stages = {"depths": [1, 1], "hidden_sizes": [8, 16], "patch_size": 8}  # cells of 16 pixels; a block takes seconds
    model = awake(
        model_class(small_fcmae_config(**stages, **(views or {})) if fcmae else small_config(**stages))
    ).train()
    inputs = {"pixel_values": torch.randn(2, 3, 32, 48), **({"noise": torch.rand(2, 6)} if fcmae else {})}
    if views:
        inputs["feature_targets"] = torch.randn(2, 16, 2, 3)
    twin, results = copy.deepcopy(model), []
    torch._dynamo.reset()
    for run in (model, torch.compile(twin, fullgraph=True, backend=backend)):
        output = run(**inputs, output_hidden_states=hidden_states)
        tensors = [t for v in output.values() for t in (v if isinstance(v, tuple) else (v,))]
        sum(t.square().mean() for t in tensors if t.is_floating_point() and t.requires_grad).backward()
        results.append(tensors)
        assert ("hidden_states" in output) is hidden_states
    for actual, expected in zip(*reversed(results), strict=True):
        assert_close(actual, expected)
    for actual, expected in zip(twin.parameters(), model.parameters(), strict=True):
        if expected.grad is not None:
            assert (actual.grad - expected.grad).abs().max() <= 1e-5 * max(1, expected.grad.abs().max())


@COMPILED
def test_compiled_without_a_graph_break(model_class, hidden_states):
    check_compiled(model_class, hidden_states, "eager")


VIEWS = {"num_visible_sets": 4, "fusion_stages": ["stage1"], "target_type": "pixel+feature"}  # of 2 and 1 cells


@pytest.mark.parametrize("hidden_states", [False, True])
def test_views_are_compiled_without_a_graph_break(hidden_states):
    check_compiled(ConvNextV2ForPreTraining, hidden_states, "eager", VIEWS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_class", "views"),
    [(ConvNextV2ForImageClassification, None), (ConvNextV2ForPreTraining, None), (ConvNextV2ForPreTraining, VIEWS)],
)
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_compiled_by_inductor(model_class, views):
    check_compiled(model_class, True, "inductor", views)


def test_classifier_exports():
    model, pixel_values = awake(ConvNextV2ForImageClassification(small_config())), torch.randn(2, 3, 64, 96)
    program = torch.export.export(model, (), {"pixel_values": pixel_values}, strict=False)
    assert_close(program.module()(pixel_values=pixel_values).logits, model(pixel_values).logits)


TWO_STAGES = {"depths": [1, 1], "hidden_sizes": [8, 16], "patch_size": 8}  # cells of 16 pixels


def dynamic_model(num_visible_sets, family="convnextv2"):
    """A small classifier, or for so many sets a pre-training model, and what makes inputs of a batch size and a height.

    The cells of both families are 16 pixels wide.
    """
    if num_visible_sets is None:
        model = {
            "convnextv2": lambda: ConvNextV2ForImageClassification(small_config(**TWO_STAGES)),
            "convmae": lambda: ConvMAEForImageClassification(small_convmae_config()),
        }[family]()
        return awake(model), lambda batch, height=32: {"pixel_values": torch.randn(batch, 3, height, 48)}
    sets = {"num_visible_sets": num_visible_sets}
    model = {
        "convnextv2": lambda: ConvNextV2ForPreTraining(small_fcmae_config(**TWO_STAGES, **sets)),
        "convmae": lambda: ConvMAEForPreTraining(small_convmae_config(**sets)),
    }[family]()

    def inputs(batch, height=32):
        noise = torch.rand(batch, 3 * height // 16)
        return {"pixel_values": torch.randn(batch, 3, height, 48), "noise": noise}

    return awake(model), inputs


FAMILY = pytest.mark.parametrize("family", ["convnextv2", "convmae"])


@pytest.mark.parametrize("num_visible_sets", [None, 1, 4])
@FAMILY
def test_an_exported_program_takes_other_batch_sizes(family, num_visible_sets):
    model, inputs = dynamic_model(num_visible_sets, family)
    batch, example = torch.export.Dim("batch"), inputs(2)
    shapes = {name: {0: batch} for name in example}
    program = torch.export.export(model, (), example, dynamic_shapes=shapes, strict=False).module()
    for size in (1, 2, 5):
        given = inputs(size)
        assert_close(program(**given).logits, model(**given).logits)


@FAMILY
def test_an_exported_classifier_takes_other_sizes_of_images(family):
    model, inputs = dynamic_model(None, family)
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (), inputs(2), dynamic_shapes={"pixel_values": sizes}, strict=False).module()
    for batch, height in ((3, 32), (5, 71), (2, 160)):
        given = inputs(batch, height)
        assert_close(program(**given).logits, model(**given).logits)


@pytest.mark.parametrize(
    ("num_visible_sets", "grad"),
    [(None, False), pytest.param(None, True, marks=pytest.mark.slow), pytest.param(4, True, marks=pytest.mark.slow)],
)
def test_batches_of_many_sizes_are_compiled_twice(num_visible_sets, grad):
    model, inputs = dynamic_model(num_visible_sets)
    graphs = []
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    with torch.set_grad_enabled(grad):
        for batch in (2, 5, 4, 9):  # PyTorch asks itself whether a convolution has fewer than 16 maps, here 4 an image
            given = inputs(batch)
            assert_close(compiled(**given).logits, model(**given).logits)
    assert len(graphs) == 2  # for the first size, and for all


@FAMILY
def test_views_of_images_of_many_sizes_compile_without_a_graph_break(family):
    model, inputs = dynamic_model(4, family)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for height in (32, 64, 80):  # 6, 12 and 15 cells: sets of two sizes, of one, and of two again
        given = inputs(2, height)
        assert_close(compiled(**given).loss, model(**given).loss)


# --- Detection and segmentation ---------------------------------------------------------------------------------------


def backward_reaches(model, loss):
    """The backbone is ours, and each of its parameters learns from the loss."""
    loss.backward()
    backbone = next(m for m in model.modules() if type(m).__name__ == "ConvNextV2Backbone")
    assert type(backbone) is ConvNextV2Backbone
    assert loss.isfinite()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_upernet_trains_on_our_backbone(registered):
    config = transformers.UperNetConfig(
        backbone_config=small_config(out_features=["stage1", "stage2", "stage3", "stage4"]), hidden_size=16,
        num_labels=3, auxiliary_in_channels=24, auxiliary_channels=8, pool_scales=[1, 2],
    )  # fmt: skip
    model = transformers.UperNetForSemanticSegmentation(config).train()
    output = model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 3, (2, 64, 64)))
    assert output.logits.shape == (2, 3, 64, 64)
    backward_reaches(model, output.loss)


def test_detr_trains_on_our_backbone(registered):
    config = transformers.DetrConfig(
        backbone_config=small_config(out_features=["stage4"]), use_timm_backbone=False, d_model=16, num_queries=4,
        encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
        decoder_attention_heads=2, num_labels=3,
    )  # fmt: skip
    model = transformers.DetrForObjectDetection(config).train()
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])} for _ in range(2)]
    output = model(torch.randn(2, 3, 64, 64), labels=labels)
    assert output.pred_boxes.shape == (2, 4, 4)
    backward_reaches(model, output.loss)


def test_mask2former_trains_on_our_backbone(registered):
    config = transformers.Mask2FormerConfig(
        backbone_config=small_config(out_features=["stage1", "stage2", "stage3", "stage4"]), feature_size=32,
        mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1,
        decoder_layers=2, num_attention_heads=2, num_queries=4, num_labels=3, train_num_points=64,
    )  # fmt: skip
    model = transformers.Mask2FormerForUniversalSegmentation(config).train()
    masks = [torch.zeros(1, 64, 64) for _ in range(2)]
    masks[0][:, :32], masks[1][:, :, 16:] = 1, 1
    output = model(torch.randn(2, 3, 64, 64), mask_labels=masks, class_labels=[torch.tensor([1]), torch.tensor([2])])
    backward_reaches(model, output.loss)


# --- Adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [ConvNextV2ForImageClassification, ConvNextV2ForPreTraining])
def test_lora_on_pwconv2_changes_the_output_and_is_all_that_learns(model_class, tmp_path):
    fcmae = model_class is ConvNextV2ForPreTraining
    model = awake(model_class(small_fcmae_config() if fcmae else small_config()))
    inputs = {"pixel_values": torch.randn(2, 3, 64, 96), **({"noise": torch.rand(2, 6)} if fcmae else {})}
    before = model(**inputs).logits.detach()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["pwconv2"], r=2, init_lora_weights=False))
    output = adapted.eval()(**inputs)
    assert difference(output.logits, before) > 1e-4
    output.logits.square().mean().backward()
    with_gradient = {name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.any()}
    assert with_gradient == {name for name, _ in adapted.named_parameters() if "lora_" in name}
    adapted.save_pretrained(tmp_path)
    merged = adapted.merge_and_unload()
    assert_close(merged(**inputs).logits, output.logits)


def test_lora_learns_under_activation_checkpointing():
    model = awake(ConvNextV2ForImageClassification(small_config()))
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["pwconv2"], r=2, init_lora_weights=False))
    pixel_values, gradients = torch.randn(2, 3, 64, 64), []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": True})
            model.enable_input_require_grads()
        adapted.zero_grad()
        adapted.train()(pixel_values, labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([p.grad.clone() for p in adapted.parameters() if p.requires_grad])
    assert all(g.any() for g in gradients[0])
    for actual, expected in zip(*reversed(gradients), strict=True):
        assert_close(actual, expected)


# --- Distributed data parallel ----------------------------------------------------------------------------------------


def test_two_processes_compute_the_gradients_of_one(tmp_path):
    code = """
import sys
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from hf_convnextv2 import ConvNextV2ForImageClassification, ConvNextV2ForPreTraining
from tests.small_models import awake, small_config, small_fcmae_config

def run(rank):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/rendezvous", rank=rank, world_size=2)
    for model_class, config, other in (
        (ConvNextV2ForImageClassification, small_config(), {"labels": torch.tensor([0, 1, 2, 3])}),
        (ConvNextV2ForPreTraining, small_fcmae_config(), {"noise": torch.rand(4, 6)}),
    ):
        torch.manual_seed(0)
        model, inputs = awake(model_class(config)).train(), {"pixel_values": torch.randn(4, 3, 64, 96), **other}
        inputs = {name: distributed_copy(value) for name, value in inputs.items()}
        model(**inputs).loss.backward()
        expected = [p.grad.clone() for p in model.parameters()]
        parallel = DistributedDataParallel(model)
        for _ in range(2):  # the second step fails if a parameter had no gradient in the first
            model.zero_grad()
            parallel(**{name: value[2 * rank : 2 * rank + 2] for name, value in inputs.items()}).loss.backward()
        for p, gradient in zip(model.parameters(), expected, strict=True):
            assert (p.grad - gradient).abs().max() <= 1e-5 * gradient.abs().max().clamp(min=1)
    distributed.destroy_process_group()

def distributed_copy(value):
    distributed.broadcast(value, 0)
    return value

torch.multiprocessing.start_processes(run, nprocs=2, start_method="fork")
print("equal")
"""
    assert run_python(code, tmp_path, cwd=tmp_path).strip() == "equal"
