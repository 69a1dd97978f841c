"""Derivatives of derivatives and `torch.func`: everything that stock allows gives what stock gives."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import func

from hf_convnextv2 import ConvNextV2ForImageClassification, ConvNextV2ForPreTraining
from tests import masked_dense
from tests.small_models import assert_close, awake, difference, small_config, small_fcmae_config

# PyTorch's own decompositions for forward mode are scripted.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")

TOLERANCE = 1e-9  # in float64, through two derivatives of six blocks
# Second derivatives of depthwise convolutions are slow: maps of 4 x 4 and 2 x 2 positions, cells of 16 pixels.
TWO_STAGES = {"depths": [1, 1], "hidden_sizes": [8, 16], "patch_size": 8}
LABELS = torch.tensor([0, 4, 2])
CLASSIFIER = "ForImageClassification"


BLOCKS = {"ConvNextV2": {}, "ConvNext": {"use_grn": False, "layer_scale_init_value": 0.5}}


@pytest.fixture(scope="module", params=BLOCKS)
def classifiers(request):
    """Transformers' classifier and ours in float64 with the same weights."""
    config = small_config(**TWO_STAGES, **BLOCKS[request.param])
    ours = awake(ConvNextV2ForImageClassification(config)).double()
    config_class, model_class = (getattr(transformers, f"{request.param}{end}") for end in ("Config", CLASSIFIER))
    stock = model_class(config_class.from_dict(config.to_dict())).double().eval()
    stock.load_state_dict(
        {n.replace("convnextv2.", f"{stock.base_model_prefix}."): t for n, t in weights_of(ours).items()}
    )
    return stock, ours


def images():
    return torch.randn(3, 3, 32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(0))


def loss_of(model, pixel_values, labels=LABELS):
    return F.cross_entropy(model(pixel_values).logits, labels)


def largest_difference(found, expected):
    """As a share of the largest expected value of all tensors: some are nearly zero, all of it rounding."""
    found, expected = list(found), list(expected)
    largest = max(reference.abs().max() for reference in expected)
    assert largest > 0
    return max((actual - reference).abs().max() for actual, reference in zip(found, expected, strict=True)) / largest


def functional_loss(model, parameters, pixel_values, labels=LABELS):
    return F.cross_entropy(func.functional_call(model, parameters, (pixel_values,)).logits, labels)


def weights_of(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def gradient_penalty(model):
    x = images().requires_grad_()
    (grad,) = torch.autograd.grad(loss_of(model, x), x, create_graph=True)
    penalty = grad.flatten(1).norm(dim=1).square().sum()
    return [penalty, *torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True, materialize_grads=True)]


def hessian_vector_product(model):
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss_of(model, images()), parameters, create_graph=True)
    return torch.autograd.grad(
        sum((g * p.detach().cos()).sum() for g, p in zip(grads, parameters, strict=True)), parameters
    )


def step_of_maml(model):
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(functional_loss(model, parameters, images()), parameters.values(), create_graph=True)
    moved = {name: p - 0.1 * g for (name, p), g in zip(parameters.items(), grads, strict=True)}
    return torch.autograd.grad(functional_loss(model, moved, images().flip(0)), parameters.values())


def third_derivative(model):
    x = images()[:1].requires_grad_()
    result = loss_of(model, x, LABELS[:1])
    for _ in range(2):
        (grad,) = torch.autograd.grad(result, x, create_graph=True)
        result = (grad * x.detach().cos()).sum()
    return torch.autograd.grad(result, x)


def backward_that_creates_a_graph(model):
    x = images().requires_grad_()
    loss_of(model, x).backward(create_graph=True, inputs=[x])
    (x.grad * x.detach().cos()).sum().backward(inputs=[x])
    found, x.grad = x.grad.detach(), None  # a graph that holds its own leaf would live on
    return [found]


def penalty_through_a_frozen_model(model):
    model.requires_grad_(False)
    x = images().requires_grad_()
    (grad,) = torch.autograd.grad(loss_of(model, x), x, create_graph=True)
    found = torch.autograd.grad(grad.square().sum(), x)
    model.requires_grad_(True)
    return found


def gradient_by_func(model):
    return func.grad(lambda weights: functional_loss(model, weights, images()))(weights_of(model)).values()


def gradient_for_each_image(model):
    def loss(weights, image, label):
        return functional_loss(model, weights, image[None], label[None])

    return func.vmap(func.grad(loss), (None, 0, 0))(weights_of(model), images(), LABELS).values()


def ensemble_by_vmap(model):
    stacked = {name: torch.stack([value, value * 1.1]) for name, value in weights_of(model).items()}
    logits = func.vmap(lambda weights, x: func.functional_call(model, weights, (x,)).logits, (0, None))(
        stacked, images()
    )
    return [logits]


def jacobian_vector_product(model):
    return func.jvp(lambda x: model(x).logits, (images(),), (images().cos(),))


def forward_over_reverse(model):
    return func.jvp(func.grad(lambda x: loss_of(model, x)), (images(),), (images().cos(),))


def dual_numbers_without_gradients(model):
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(images(), images().cos())
        return torch.autograd.forward_ad.unpack_dual(model(dual).logits)


def many_gradients_at_a_time(model):
    return [torch.autograd.functional.jacobian(lambda x: model(x).logits, images()[:1], vectorize=True)]


CASES = [
    gradient_penalty,
    hessian_vector_product,
    step_of_maml,
    third_derivative,
    backward_that_creates_a_graph,
    penalty_through_a_frozen_model,
    gradient_by_func,
    gradient_for_each_image,
    ensemble_by_vmap,
    jacobian_vector_product,
    forward_over_reverse,
    dual_numbers_without_gradients,
    many_gradients_at_a_time,
]


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_derivatives_are_those_of_stock(classifiers, case):
    expected, found = ([tensor.detach() for tensor in case(model)] for model in classifiers)
    assert largest_difference(found, expected) <= TOLERANCE


def test_drop_path_is_drawn_for_each_image_of_a_vmap():
    model = awake(ConvNextV2ForImageClassification(small_config(**TWO_STAGES, drop_path_rate=0.5))).train()
    x = images()[:1].float().expand(8, -1, -1, -1)
    logits = func.vmap(lambda image: model(image[None]).logits[0], randomness="different")(x)
    assert logits.shape == (8, 5)
    assert len({tuple(row.tolist()) for row in logits}) > 1


# --- FCMAE: packed against masked-dense -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=BLOCKS)
def pretraining(request):
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config(**TWO_STAGES, **BLOCKS[request.param]))).double()
    x = torch.randn(2, 3, 32, 48, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    return model, x, torch.tensor([[True, False, True, True, False, True], [False, True, True, False, True, True]])


def both_losses(model, masked):
    return [
        lambda x: model(x, bool_masked_pos=masked).loss,
        lambda x: masked_dense.step(model, x, masked),
    ]


@pytest.mark.parametrize("least_side", [1, 99], ids=["halo", "canvas"])
def test_second_derivatives_of_packed_cells_are_those_of_masked_maps(pretraining, least_side, monkeypatch):
    monkeypatch.setattr("hf_convnextv2.packing.MIN_HALO_SIDE", least_side)
    model, x, masked = pretraining
    parameters, results = [p for n, p in model.named_parameters()], []
    for loss in both_losses(model, masked):
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        results.append((grad.detach(), *torch.autograd.grad(grad.square().sum(), [leaf, *parameters])))
    for part in (slice(0, 1), slice(1, 2), slice(2, None)):  # the gradient, and the penalty's, by image and parameters
        assert largest_difference(results[0][part], results[1][part]) <= TOLERANCE


@pytest.mark.parametrize("num_visible_sets", [1, 4])
def test_func_transforms_of_packed_cells_are_autograds(num_visible_sets):
    model = awake(
        ConvNextV2ForPreTraining(small_fcmae_config(**TWO_STAGES, num_visible_sets=num_visible_sets))
    ).double()
    x, noise = torch.randn(2, 3, 32, 48, dtype=torch.double), torch.rand(2, 6)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf, noise=noise).loss, leaf, create_graph=True)
    assert_close(func.grad(lambda y: model(y, noise=noise).loss)(x), expected.detach(), TOLERANCE)
    _, tangent = func.jvp(lambda y: model(y, noise=noise).loss, (x,), (x.cos(),))
    assert_close(tangent, (expected.detach() * x.cos()).sum(), TOLERANCE)
    assert difference(tangent, expected.detach().sum()) > 1e-6
