"""Teachers: what they say of an image, and runs that learn from them."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from transformers import AutoImageProcessor

from hf_convnextv2 import (
    ConvMAEForPreTraining,
    ConvMAEModel,
    ConvNextV2FCMAEConfig,
    ConvNextV2ForPreTraining,
    create_image_processor,
)
from tests.photographs import cut, forget_accelerate
from tests.small_models import assert_close, awake, difference, small_convmae_config, small_fcmae_config
from training.models.teachers import AverageTeacher, FrozenTeacher, Targets
from training.run.plan import Plan
from training.settings.scripts import PretrainSettings

PLAN = Plan(num_samples=8, total_batch_size=4, steps_per_epoch=2, max_steps=10, warmup_steps=0, learning_rate=1e-3)
SMALL_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
# name: model, and whether it takes images of one size only
BACKBONES = {
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**SMALL_VIT, image_size=48, patch_size=16)),
    "clip": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config={**SMALL_VIT, "image_size": 32, "patch_size": 8},
            text_config={**SMALL_VIT, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2},
        )
    ),
    "registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**SMALL_VIT, image_size=64, patch_size=32, num_register_tokens=4)
    ),
    "swin": lambda: transformers.SwinModel(
        transformers.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[2, 2], image_size=64, window_size=4)
    ),
    "convnext": lambda: transformers.ConvNextModel(
        transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
    ),
}


def settings(**fields):
    fields = {"dataset_name": "images", "output_dir": "out", "target_type": "pixel+feature", **fields}
    return PretrainSettings(**fields).targets


@pytest.fixture
def accelerator():
    forget_accelerate()
    yield Accelerator()
    forget_accelerate()


@pytest.fixture(params=BACKBONES)
def teacher(request, tmp_path):
    """A folder with a randomly initialised backbone and its image processor."""
    model = BACKBONES[request.param]()
    model.save_pretrained(tmp_path)
    size = getattr(getattr(model, "vision_model", model).config, "image_size", None)
    square = {"height": size or 64, "width": size or 64}
    statistics = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    transformers.ViTImageProcessor(size=square, **statistics).save_pretrained(tmp_path)
    return tmp_path


def test_the_decay_of_a_moving_average_ends_at_its_last_value():
    config = small_fcmae_config(target_type="pixel+feature")
    teacher = AverageTeacher(ConvNextV2ForPreTraining(config), settings(teacher_decay=[0.9, 0.99]), 4)
    assert [teacher.decay(step) for step in (0, 2, 4, 5, 100)] == pytest.approx([0.9, 0.945, 0.99, 0.99, 0.99])


def test_a_frozen_teacher_sees_the_images_as_its_own_processor_makes_them(teacher, accelerator):
    student, frozen = create_image_processor(ConvNextV2FCMAEConfig(image_size=64)), FrozenTeacher(str(teacher), 1)
    photographs = [photograph.resize((64, 64)) for photograph in cut("coffee", 2)]
    pixels = torch.stack([torch.from_numpy(np.array(photograph)).permute(2, 0, 1) / 255 for photograph in photographs])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (student.image_mean, student.image_std))
    model_config = small_fcmae_config(target_type="pixel+feature", feature_target_dim=frozen.num_channels(64))
    targets = Targets(frozen, accelerator, model_config, settings(feature_target_norm="none"), student)
    actual = targets.of((pixels - mean) / std)
    assert actual.shape == (2, model_config.feature_target_dim, 2, 2)

    inputs = AutoImageProcessor.from_pretrained(teacher)(photographs, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = frozen.model(inputs).last_hidden_state
    if expected.ndim == 3:  # tokens: the last ones are the picture's
        side = {10: 3, 17: 4, 9: 2, 64: 8}[expected.shape[1]]
        expected = expected[:, -side * side :].transpose(1, 2).reshape(2, -1, side, side)
    expected = F.adaptive_avg_pool2d(expected, 2)
    # Where it resizes, the processor rounds to 8 bits.
    assert difference(actual, expected) <= (0.02 if inputs.shape[-1] != 64 else 1e-4)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_teacher_gets_images_of_its_processors_size_and_as_it_normalises_them(tmp_path):
    config = transformers.Dinov2Config(**SMALL_VIT, image_size=518, patch_size=14)
    transformers.Dinov2Model(config).to(torch.bfloat16).save_pretrained(tmp_path)
    sizes = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
    transformers.BitImageProcessor(**sizes, do_normalize=False).save_pretrained(tmp_path)
    frozen, x = FrozenTeacher(str(tmp_path), 1), torch.randn(2, 3, 64, 64)
    mean, std = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25)
    assert frozen.prepare(x, mean, std).shape == (2, 3, 56, 56)
    assert_close(frozen.prepare(x[..., :56, :56], mean, std), x[..., :56, :56] * 0.25 + 0.5)
    assert frozen.features(frozen.prepare(x, mean, std)).shape == (2, 16, 4, 4)
    assert next(frozen.parameters()).dtype == torch.float32


def test_a_frozen_teacher_of_the_hub_is_of_the_revision_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository, biases = tmp_path / "models--me--vit", {"main": 1.0, "v2": 2.0}
    for revision, bias in biases.items():
        model, commit = BACKBONES["vit"](), f"{bias:.0f}" * 40
        model.layernorm.bias.data.fill_(bias)
        model.save_pretrained(repository / "snapshots" / commit)
        transformers.ViTImageProcessor().save_pretrained(repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    found = {revision: FrozenTeacher("me/vit", 1, revision).model.layernorm.bias for revision in (None, "v2")}
    assert found[None].unique().tolist() == [1.0] and found["v2"].unique().tolist() == [2.0]
    with pytest.raises(ValueError, match=r"`teacher_name_or_path` \(=me/vit\) must be a vision model"):
        FrozenTeacher("me/vit", 1, "v3")


SMALL_MAE = {**SMALL_VIT, "image_size": 64, "patch_size": 8}


@pytest.mark.parametrize(
    ("model", "processor", "message"),
    [
        (
            lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**SMALL_MAE)),
            transformers.ViTImageProcessor(size={"height": 64, "width": 64}),
            "say the same of the same image|have a token for each patch",
        ),
        (
            lambda: transformers.YolosModel(transformers.YolosConfig(**{**SMALL_MAE, "image_size": [64, 64]})),
            transformers.ViTImageProcessor(size={"height": 64, "width": 64}),
            "have a token for each patch of an image, not 165 for 64 pixels",
        ),
        (
            BACKBONES["vit"],
            transformers.MobileViTImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
            "take images in RGB, not in BGR",
        ),
    ],
)
def test_what_cannot_be_a_teacher_is_refused_by_name(model, processor, message, tmp_path):
    model().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"`teacher_name_or_path` \(={tmp_path}\) must ({message})"):
        FrozenTeacher(str(tmp_path), 1).num_channels(64)


def test_more_layers_than_a_teacher_has_are_refused(tmp_path):
    BACKBONES["vit"]().save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`feature_target_layers` \(=3\) must be at most 2, the teacher's layers"):
        FrozenTeacher(str(tmp_path), 3).num_channels(64)
    with pytest.raises(ValueError, match=r"`teacher_name_or_path` \(=nowhere\) must be a vision model"):
        FrozenTeacher("nowhere", 1)


@pytest.mark.parametrize(("num_channels", "fits"), [(1, True), (4, False)])
def test_a_frozen_teacher_of_colours_takes_grey_images_too(num_channels, fits, tmp_path, accelerator):
    BACKBONES["convnext"]().save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    frozen = FrozenTeacher(str(tmp_path), 1)
    model_config = small_fcmae_config(target_type="pixel+feature", num_channels=num_channels, feature_target_dim=16)
    arguments = (accelerator, model_config, settings(), create_image_processor(model_config))
    if not fits:
        with pytest.raises(ValueError, match=r"`num_channels` \(=4\) must be 1 or 3 with `teacher_name_or_path`"):
            Targets(frozen, *arguments)
        return
    assert Targets(frozen, *arguments).of(torch.randn(2, 1, 64, 96)).shape == (2, 16, 2, 3)


def test_the_last_layers_of_a_frozen_teacher_are_averaged(tmp_path):
    model = BACKBONES["vit"]().eval()
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        states = model(x, output_hidden_states=True).hidden_states
        actual = FrozenTeacher(str(tmp_path), 2).features(x)
    expected = (states[-1] + states[-2])[:, 1:].mT.reshape(2, 16, 3, 3) / 2
    assert_close(actual, expected)


def test_features_are_normalised_over_their_channels(accelerator):
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config(target_type="pixel+feature")))
    processor = create_image_processor(model.config)
    teacher, x = AverageTeacher(model, settings(), PLAN.max_steps), torch.randn(2, 3, 64, 96)
    found = Targets(teacher, accelerator, model.config, settings(), processor).of(x)
    with torch.no_grad():
        features = model.convnextv2(x).last_hidden_state
    assert_close(
        found, (features - features.mean(1, keepdim=True)) / features.var(1, keepdim=True, correction=0).sqrt()
    )
    assert found.shape == (2, 32, 2, 3)


def test_the_average_is_the_recursion_with_a_rising_decay():
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config(target_type="pixel+feature")))
    teacher = AverageTeacher(model, settings(teacher_decay=[0.5, 0.9]), PLAN.max_steps)
    expected = [parameter.detach().clone() for parameter in model.convnextv2.parameters()]
    for step in range(1, 4):
        awake(model)
        decay = 0.5 + 0.4 * step / 10
        expected = [decay * a + (1 - decay) * b for a, b in zip(expected, model.convnextv2.parameters(), strict=True)]
        teacher.update(model, step)
    for actual, wanted in zip(teacher.average.module.parameters(), expected, strict=True):
        assert_close(actual, wanted)
    again = AverageTeacher(copy.deepcopy(model), settings(), PLAN.max_steps)
    again.load_state_dict(teacher.state_dict())
    again.update(model, 4)
    assert again.average.n_averaged == 5


def test_the_average_drops_no_paths():
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config(target_type="pixel+feature", drop_path_rate=0.5)))
    teacher, x = AverageTeacher(model.train(), settings(), PLAN.max_steps), torch.randn(4, 3, 64, 64)
    assert torch.equal(teacher(x), teacher(x))


def test_the_last_blocks_of_the_average_are_averaged():
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config(target_type="pixel+feature", depths=[1, 1, 1, 2])))
    teacher, x = AverageTeacher(model, settings(feature_target_layers=2), PLAN.max_steps), torch.randn(2, 3, 64, 64)
    stage = model.convnextv2.encoder.stages[-1]
    with torch.no_grad():
        third = model.convnextv2(x, output_hidden_states=True).hidden_states[-2]
        first = stage.layers[0](stage.downsampling_layer[1](stage.downsampling_layer[0](third)))
        assert_close(teacher(x), (first + stage.layers[1](first)) / 2)
    with pytest.raises(ValueError, match=r"`feature_target_layers` \(=3\) must be at most 2"):
        AverageTeacher(model, settings(feature_target_layers=3), PLAN.max_steps)


def test_the_tokens_of_a_convmae_are_averaged_as_maps():
    """Of an image that is not square, by another route: a model of one block less."""
    config = small_convmae_config(target_type="pixel+feature")
    model, x = awake(ConvMAEForPreTraining(config)), torch.randn(3, 3, 64, 96)
    teacher = AverageTeacher(model, settings(feature_target_layers=2), PLAN.max_steps)
    shorter = ConvMAEModel(small_convmae_config(depths=[1, 2, 1]), add_pooling_layer=False, learned_positions=False)
    kept = {name: value for name, value in model.convmae.state_dict().items() if name in shorter.state_dict()}
    shorter.load_state_dict(kept)
    with torch.no_grad():
        first, second = (each.eval()(x).last_hidden_state for each in (shorter, model.convmae))
        assert_close(teacher(x), (first + second) / 2)
    assert difference(teacher(x), second) > 0.01
