"""Changed models: adapters on convolutions, and layers replaced or wrapped, compute what stock's do so changed.

ConvMAE has no stock: there, a hook on a layer changes what comes out of it as the module in its place does.
"""

import copy

import peft
import pytest
import torch
import transformers
from torch import nn

from hf_convnextv2 import (
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
)
from tests.small_models import (
    assert_close,
    awake,
    difference,
    small_config,
    small_convmae_config,
    small_fcmae_config,
)

TWO_STAGES = {"depths": [1, 2], "hidden_sizes": [8, 16]}  # cells of 8 pixels
STAGE = "convnextv2.encoder.stages.1"
BLOCK = f"{STAGE}.layers.0"
STEM = "convnextv2.embeddings"


@pytest.fixture(scope="module")
def originals():
    """Transformers' classifier and ours with the same weights."""
    config = small_config(**TWO_STAGES)
    ours = awake(ConvNextV2ForImageClassification(config))
    stock = transformers.ConvNextV2ForImageClassification(transformers.ConvNextV2Config.from_dict(config.to_dict()))
    stock.eval().load_state_dict(ours.state_dict())
    return stock, ours


def images():
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


class Wrapper(nn.Module):
    """Takes one map, as whoever writes for Transformers' layers would have it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).sin()


def replace(model, name, make):
    parent, _, child = name.rpartition(".")
    inner = model.get_submodule(name)
    if isinstance(model.get_submodule(parent), nn.ModuleList):
        model.get_submodule(parent)[int(child)] = make(inner)
    else:
        setattr(model.get_submodule(parent), child, make(inner))


WRAPPED = {
    "identity": lambda inner: nn.Identity(),
    "sequence": lambda inner: nn.Sequential(inner, nn.Dropout(0.0)),
    "wrapper": Wrapper,
    "weight norm": nn.utils.parametrizations.weight_norm,
}
PLACES = {
    "block": BLOCK,
    "stage": STAGE,
    "GRN": f"{BLOCK}.grn",
    "dwconv": f"{BLOCK}.dwconv",
    "drop path": f"{BLOCK}.drop_path",
    "layernorm": f"{BLOCK}.layernorm",
    "act": f"{BLOCK}.act",
    "pwconv1": f"{BLOCK}.pwconv1",
    "pwconv2": f"{BLOCK}.pwconv2",
    "downsampling": f"{STAGE}.downsampling_layer.1",
    "norm between stages": f"{STAGE}.downsampling_layer.0",
    "stem": f"{STEM}.patch_embeddings",
    "norm of the stem": f"{STEM}.layernorm",
    "embeddings": STEM,
    "encoder": "convnextv2.encoder",
    "final norm": "convnextv2.layernorm",
    "classifier": "classifier",
}
# An identity in these places changes the shape of the map, of which nothing fits what follows.
FIXED_SHAPE = ("stage", "pwconv1", "pwconv2", "downsampling", "stem", "embeddings", "encoder")
PARAMETRISED = ("dwconv", "pwconv1", "pwconv2", "downsampling", "stem", "classifier")
# Transformers' encoder returns an object, which these would have to know.
OPAQUE = ("sequence", "wrapper")
CASES = [
    (place, kind)
    for place in PLACES
    for kind in WRAPPED
    if not (kind == "identity" and place in FIXED_SHAPE)
    and (kind == "weight norm") <= (place in PARAMETRISED)
    and not (place == "encoder" and kind in OPAQUE)
]


def check_same(models):
    """Logits and gradients by the input are equal, and not what they were."""
    results = []
    for model in models:
        x = images().requires_grad_()
        logits = model(x).logits
        results.append((logits.detach(), *torch.autograd.grad(logits.square().sum(), x)))
        with torch.no_grad():
            assert_close(model(x).logits, logits.detach())
    for found, expected in zip(results[1], results[0], strict=True):
        assert_close(found, expected, 2e-5)
    return results[1][0]


@pytest.mark.parametrize("place", ["convnextv2", "convnextv2.encoder"])
def test_a_base_model_or_encoder_alone_in_a_sequence_computes_what_it_does_in_stock(originals, place):
    models = [copy.deepcopy(model) for model in originals]
    for model in models:
        replace(model, place, nn.Sequential)
    assert_close(check_same(models), originals[1](images()).logits.detach())


def test_the_modules_have_the_names_of_stocks(originals):
    stock, ours = (dict(model.named_modules()) for model in originals)
    assert ours.keys() == stock.keys()


@pytest.mark.parametrize(("place", "kind"), CASES)
def test_a_replaced_layer_computes_what_it_does_in_stock(originals, place, kind):
    models = [copy.deepcopy(model) for model in originals]
    for model in models:
        replace(model, PLACES[place], WRAPPED[kind])
    logits = check_same(models)
    if kind in ("identity", "wrapper") and place != "classifier" and (place, kind) != ("drop path", "identity"):
        assert difference(logits, originals[1](images()).logits.detach()) > 1e-4  # the change does something


def more_between_stages(model):
    model.get_submodule(STAGE).downsampling_layer.append(nn.Tanh())


def one_sequence(model):
    stage = model.get_submodule(STAGE)
    stage.downsampling_layer = nn.Sequential(*stage.downsampling_layer)
    stage.layers = nn.Sequential(*stage.layers)


def fewer_blocks(model):
    del model.get_submodule(STAGE).layers[1]


def other_stem(model):
    model.get_submodule(STEM).patch_embeddings = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 8, 2, 2))
    )


def seeded(make):
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize(
    "edit", [more_between_stages, one_sequence, fewer_blocks, other_stem], ids=lambda f: f.__name__
)
def test_an_edited_model_computes_what_stocks_does(originals, edit):
    models = [copy.deepcopy(model) for model in originals]
    for model in models:
        edit(model)
    check_same(models)


ADAPTERS = {
    # The rank of a depthwise convolution's is a multiple of its channels.
    "lora": lambda t: peft.LoraConfig(target_modules=t, r=16, init_lora_weights=False),
    "dora": lambda t: peft.LoraConfig(target_modules=t, r=16, init_lora_weights=False, use_dora=True),
    "loha": lambda t: peft.LoHaConfig(target_modules=t, r=2, init_weights=False),
    "lokr": lambda t: peft.LoKrConfig(target_modules=t, r=2, init_weights=False),
    "oft": lambda t: peft.OFTConfig(target_modules=t, r=1, oft_block_size=0, init_weights=False),
    "ia3": lambda t: peft.IA3Config(target_modules=t, feedforward_modules=[], init_ia3_weights=False),
}
CONVOLUTIONS = {"stem": "patch_embeddings", "dwconv": "dwconv", "downsampling": "downsampling_layer.1"}


@pytest.fixture(scope="module")
def pretraining():
    return awake(ConvNextV2ForPreTraining(small_fcmae_config(**TWO_STAGES)))


def adapt(model, method, target):
    torch.manual_seed(0)
    return peft.get_peft_model(copy.deepcopy(model), ADAPTERS[method]([target])).eval()


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's own, about what an adapter cannot be
@pytest.mark.parametrize(
    ("method", "target"),
    [(m, t) for m in ADAPTERS for t in CONVOLUTIONS.values() if (m, t) != ("oft", "dwconv")],  # of which peft has none
)
def test_an_adapter_on_a_convolution_computes_what_it_does_in_stock(originals, pretraining, method, target):
    stock, ours = (adapt(model, method, target) for model in originals)
    weights = {name: p for name, p in stock.state_dict().items()}
    assert weights.keys() == ours.state_dict().keys()
    ours.load_state_dict(weights)
    logits = check_same([stock, ours])
    assert difference(logits, originals[1](images()).logits.detach()) > 1e-5
    packed, noise = adapt(pretraining, method, target), torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    output = packed(images(), noise=noise)
    assert difference(output.logits.detach(), pretraining(images(), noise=noise).logits.detach()) > 1e-6
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in packed.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def families(pretraining):
    """Pre-training models by family; both see six cells of the images."""
    return {
        "convnextv2": pretraining,
        "convmae": awake(ConvMAEForPreTraining(small_convmae_config(patch_sizes=[2, 2, 2], num_visible_sets=4))),
    }


TOKENS = "convmae.encoder.stages.2"
TRANSFORMER = {
    "block of the transformer": f"{TOKENS}.layers.1",
    "attention": f"{TOKENS}.layers.1.attn",
    "MLP": f"{TOKENS}.layers.1.mlp",
}
IN_CONVMAE = {
    **TRANSFORMER,
    "block of convolutions": "convmae.encoder.stages.1.layers.0",
    "stage": TOKENS,
    "convolution": "convmae.encoder.stages.1.layers.0.attn",
    "embeddings between stages": f"{TOKENS}.patch_embed",
    "block of the decoder": "decoder.layers.0",
}
SEQUENCES = [
    *(("convnextv2", PLACES[place]) for place in ("block", "GRN", "dwconv", "act", "downsampling", "stem")),
    *(("convmae", place) for place in IN_CONVMAE.values()),
]


@pytest.mark.parametrize(("family", "place"), SEQUENCES)
def test_a_sequence_around_a_layer_leaves_packed_cells_as_they_are(families, family, place):
    model, noise = copy.deepcopy(families[family]), torch.rand(2, 6)
    replace(model, place, lambda inner: nn.Sequential(inner, nn.Identity()))
    found, expected = (m(images(), noise=noise).logits for m in (model, families[family]))
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("family", "blocks"),
    [
        ("convnextv2", f"{STAGE}.layers"),
        ("convmae", f"{TOKENS}.layers"),
        ("convmae", "convmae.encoder.stages.1.layers"),
    ],
)
def test_an_identity_in_place_of_a_layer_takes_packed_cells(families, family, blocks):
    model, noise = copy.deepcopy(families[family]), torch.rand(2, 6)
    replace(model, f"{blocks}.1", WRAPPED["identity"])
    fewer = copy.deepcopy(families[family])
    del fewer.get_submodule(blocks)[1]
    assert torch.equal(model(images(), noise=noise).logits, fewer(images(), noise=noise).logits)


def check_wrapped(model, place, inputs):
    """A wrapper that takes one tensor does what a hook does, and not nothing; what it was given comes back."""
    hooked, wrapped = copy.deepcopy(model), copy.deepcopy(model)
    hooked.get_submodule(place).register_forward_hook(lambda _, args, output: output.sin())
    replace(wrapped, place, Wrapper)
    seen = []
    wrapped.get_submodule(place).register_forward_pre_hook(lambda _, args: seen.append([each.shape for each in args]))
    found, expected = wrapped(**inputs).logits, hooked(**inputs).logits
    assert_close(found, expected)
    assert difference(found.detach(), model(**inputs).logits.detach()) > 1e-4
    found.square().sum().backward()
    return seen


WINDOWS = {"window_size": 1, "window_block_indices": [1]}  # which fit into images of any size


@pytest.mark.parametrize("settings", [{}, WINDOWS], ids=["images", "windows"])
@pytest.mark.parametrize("place", [place for place in IN_CONVMAE if "decoder" not in place])
def test_a_layer_of_convmae_is_replaced_by_one_that_takes_one_tensor(place, settings):
    model = awake(ConvMAEForImageClassification(small_convmae_config(patch_sizes=[2, 2, 2], **settings)))
    seen = check_wrapped(model, IN_CONVMAE[place], {"pixel_values": images()})
    if place in TRANSFORMER:
        assert seen == [[(12, 1, 16) if settings else (2, 6, 16)]]  # views, tokens of each, channels


@pytest.mark.parametrize("place", ["decoder.layers.0", "decoder.layers.0.attn"])
def test_a_layer_of_the_decoder_is_replaced_by_one_that_takes_one_tensor(families, place):
    seen = check_wrapped(families["convmae"], place, {"pixel_values": images(), "noise": torch.rand(2, 6)})
    assert seen == [[(8, 6, 16)]]


def test_channels_of_a_stem_that_is_no_convolution_cannot_be_adapted(originals):
    model = copy.deepcopy(originals[1])
    replace(model, PLACES["stem"], Wrapper)
    with pytest.raises(ValueError, match=r"`patch_embeddings` \(a Wrapper\) must be an nn.Conv2d"):
        model.set_num_channels(4)
