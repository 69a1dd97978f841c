"""Complementary visible sets: one pass over K sets is K passes, and no set sees another."""

import copy

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError

from hf_convnextv2 import ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining, modeling_fcmae
from hf_convnextv2.masking import complementary_set_sizes
from hf_convnextv2.packing import PackedCells
from tests import masked_dense
from tests.small_models import assert_close, awake, difference, small_fcmae_config

SETS = pytest.mark.parametrize("num_sets", [2, 3, 4])
GRIDS = pytest.mark.parametrize("grid", [(3, 3), (2, 4), (1, 5), (7, 7)])


def small_model(num_sets, **overrides):
    return awake(ConvNextV2ForPreTraining(small_fcmae_config(num_visible_sets=num_sets, **overrides)))


def images(grid, channels=3, batch=2):
    return torch.randn(batch, channels, 32 * grid[0], 32 * grid[1]), torch.rand(batch, grid[0] * grid[1])


def masks_of(noise, num_sets):
    """The mask `(B, L)` of each set, by sorting: of ascending noise, rank r belongs to set r * K // L."""
    num_cells = noise.shape[1]
    masks = torch.ones(num_sets, *noise.shape, dtype=torch.bool)
    for image, row in enumerate(noise.tolist()):
        for rank, cell in enumerate(sorted(range(num_cells), key=row.__getitem__)):
            masks[rank * num_sets // num_cells, image, cell] = False
    return masks


# --- One pass is K passes ---------------------------------------------------------------------------------------------


@SETS
@pytest.mark.parametrize(("grid", "channels"), [((3, 3), 3), ((2, 4), 1), ((1, 5), 3), ((7, 7), 1)])
def test_the_shared_pass_equals_masked_dense_passes_of_each_set(num_sets, grid, channels):
    model, (x, noise) = small_model(num_sets, num_channels=channels), images(grid, channels)
    oracle, masks = copy.deepcopy(model), masks_of(noise, num_sets)
    output = model(x, noise=noise, output_hidden_states=True)
    maps = [masked_dense.encode(oracle, x, masked) for masked in masks]
    logits = [masked_dense.decode(oracle, views[-1], masked) for views, masked in zip(maps, masks, strict=True)]
    assert torch.equal(output.mask, masks.flatten(0, 1).float())
    assert_close(output.logits, torch.cat(logits))
    for ours, views in zip(output.hidden_states, zip(*maps, strict=True), strict=True):
        assert_close(ours, sum(views))  # each is zero where another set lies
    losses = [masked_dense.loss(oracle, x, *pair) * pair[1].sum() for pair in zip(logits, masks, strict=True)]
    expected = sum(losses) / masks.sum()
    assert_close(output.loss, expected)
    output.loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(model.named_parameters(), oracle.parameters(), strict=True):
        assert ((ours.grad - theirs.grad).norm() / theirs.grad.norm()).item() <= 1e-5, name


@SETS
def test_the_shared_pass_equals_passes_of_the_single_view_model(num_sets):
    model, (x, noise) = small_model(num_sets), images((3, 5))
    single, masks = copy.deepcopy(model), masks_of(noise, num_sets)
    single.config.num_visible_sets = 1
    expected = torch.cat([single(x, bool_masked_pos=masked).logits for masked in masks])
    assert_close(model(x, noise=noise).logits, expected)


def test_one_set_is_the_original_fcmae():
    model, (x, noise) = small_model(1), images((3, 5))
    masked = noise.argsort(dim=1).argsort(dim=1) >= 6  # 40 % of 15 cells are visible
    output = model(x, noise=noise, output_hidden_states=True)
    assert torch.equal(output.mask, masked.float())
    assert_close(output.loss, masked_dense.step(model, x, masked))
    for ours, theirs in zip(output.hidden_states, masked_dense.encode(model, x, masked), strict=True):
        assert_close(ours, theirs)
    assert model.config.mask_ratio == 0.6


@pytest.mark.parametrize("changed", ["row_groups", "views"])
def test_the_comparison_fails_where_sets_are_mixed(changed, monkeypatch):
    model, (x, noise) = small_model(4), images((3, 3))
    expected = model(x, noise=noise).logits
    mix(changed, monkeypatch)
    assert difference(model(x, noise=noise).logits, expected) > 1e-3


def mix(changed, monkeypatch):
    """Let GRN (`row_groups`) or the convolution (`views`) see all cells of an image, as in an ordinary ConvNeXt V2."""
    if changed == "row_groups":
        one = property(lambda cells: ((1, sum(views * size for views, size in cells.groups) * cells.side**2),))
        monkeypatch.setattr(PackedCells, "row_groups", one)
        return
    locate = modeling_fcmae.locate_cells

    def locate_all(visible, grid, side, **options):
        if side == 1:  # the decoder's canvas stays
            return locate(visible, grid, side, **options)
        return locate(visible._replace(views=visible.images), grid, side, **options)

    monkeypatch.setattr(modeling_fcmae, "locate_cells", locate_all)


# --- Sets -------------------------------------------------------------------------------------------------------------


@SETS
@GRIDS
def test_sets_are_disjoint_and_leave_no_cell_out(num_sets, grid):
    _, noise = images(grid)
    masked, ids_restore = small_model(num_sets).random_masking(noise)
    visible = ~masked.view(num_sets, *noise.shape)
    assert visible.sum(dim=0).eq(1).all()
    sizes = visible.sum(dim=2)
    assert sizes[:, 0].tolist() == list(complementary_set_sizes(noise.shape[1], num_sets))
    assert sizes.eq(sizes[:, :1]).all()
    assert sizes.max() - sizes.min() <= 1
    assert torch.equal(ids_restore, noise.argsort(dim=1).argsort(dim=1))


@pytest.mark.parametrize(
    ("num_cells", "num_sets", "sizes"), [(49, 4, (13, 12, 12, 12)), (49, 3, (17, 16, 16)), (10, 4, (3, 2, 3, 2))]
)
def test_sizes_of_sets(num_cells, num_sets, sizes):
    assert complementary_set_sizes(num_cells, num_sets) == sizes


@SETS
@pytest.mark.parametrize("training", [False, True])
def test_no_set_sees_another(num_sets, training):
    model, (x, noise) = small_model(num_sets).train(training), images((3, 3))
    masks = masks_of(noise, num_sets)
    for index, masked in enumerate(masks):
        inside, outside = changes(model, x, noise, masked, index)
        assert outside == 0.0
        assert inside > 0.0


@pytest.mark.parametrize("changed", ["row_groups", "views"])
def test_mixed_sets_fail_the_leak_test(changed, monkeypatch):
    model, (x, noise) = small_model(4), images((3, 3))
    mix(changed, monkeypatch)
    assert all(changes(model, x, noise, masked, index)[1] > 0 for index, masked in enumerate(masks_of(noise, 4)))


def changes(model, x, noise, masked, index):
    """Largest change of what set `index` yields when its own pixels are drawn anew, and when all others are."""
    hidden = F.interpolate(masked.float().view(2, 1, 3, 3), scale_factor=32)
    before, found = model(x, noise=noise, output_hidden_states=True), []
    for where in (1 - hidden, hidden):
        after = model(torch.where(where.bool(), torch.randn_like(x), x), noise=noise, output_hidden_states=True)
        rows = slice(2 * index, 2 * index + 2)
        largest = (after.logits[rows] - before.logits[rows]).abs().max()
        for new, old in zip(after.hidden_states, before.hidden_states, strict=True):
            own = F.interpolate(1 - masked.float().view(2, 1, 3, 3), size=new.shape[2:])
            largest = max(largest, ((new - old).abs() * own).max())
        found.append(largest.item())
    return found


# --- With the rest ----------------------------------------------------------------------------------------------------


def test_checkpointing_gives_the_same_gradients():
    model, (x, noise) = small_model(4), images((3, 3))
    model(x, noise=noise).loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.train().activation_checkpointing_enable()
    model(x, noise=noise).loss.backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert_close(parameter.grad, gradient)


def test_hooks_and_drop_path_work_on_views():
    model, (x, noise), calls = small_model(4, drop_path_rate=0.3), images((3, 3)), []
    expected = model(x, noise=noise).logits
    model.convnextv2.encoder.stages[0].layers[0].pwconv2.register_forward_hook(lambda *_: calls.append(1))
    assert_close(model(x, noise=noise).logits, expected)
    assert calls == [1]
    model.train()(x, noise=noise).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_reconstructions_show_each_view():
    model, (x, noise) = small_model(2, norm_pix_loss=False), images((2, 3))
    output = model(x, noise=noise)
    pictures = model.reconstruct(x, output.logits, output.mask)
    assert pictures.shape == (4, 3, 64, 96)
    visible = F.interpolate(1 - output.mask.view(4, 1, 2, 3), scale_factor=32).bool().expand_as(pictures)
    assert torch.equal(pictures[visible], torch.cat([x, x])[visible])


@SETS
def test_mask_ratio_follows_from_the_number_of_sets(num_sets):
    config = ConvNextV2FCMAEConfig(num_visible_sets=num_sets)
    assert config.mask_ratio == pytest.approx(1 - 1 / num_sets)
    assert ConvNextV2FCMAEConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    with pytest.raises(ValueError, match=r"`mask_ratio` \(=0\.6\) must be 0\.\d+ with `num_visible_sets`"):
        ConvNextV2FCMAEConfig(num_visible_sets=num_sets, mask_ratio=0.6)


def test_a_stored_model_can_be_given_another_number_of_sets(tmp_path):
    small_model(1).save_pretrained(tmp_path)
    model = ConvNextV2ForPreTraining.from_pretrained(tmp_path, num_visible_sets=4)
    assert (model.config.num_visible_sets, model.config.mask_ratio) == (4, 0.75)
    model.save_pretrained(tmp_path / "four")
    model.config.mask_ratio = 0.6
    with pytest.raises(StrictDataclassError, match=r"`mask_ratio` \(=0\.6\) must be 0\.75"):
        model.save_pretrained(tmp_path / "never")
    model = ConvNextV2ForPreTraining.from_pretrained(tmp_path / "four", num_visible_sets=1)
    assert (model.config.num_visible_sets, model.config.mask_ratio) == (1, 0.6)
    assert ConvNextV2ForPreTraining.from_pretrained(tmp_path / "four").config.mask_ratio == 0.75


def test_what_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match=r"`num_visible_sets` \(=0\) must be at least 1"):
        ConvNextV2FCMAEConfig(num_visible_sets=0)
    model, (x, _) = small_model(4), images((1, 3))
    with pytest.raises(ValueError, match=r"`num_visible_sets` \(=4\) must leave each set a cell, but an image has 3"):
        model(x)
    with pytest.raises(ValueError, match=r"`bool_masked_pos` must be None with `num_visible_sets` \(=4\)"):
        model(images((2, 2))[0], bool_masked_pos=torch.ones(2, 4, dtype=torch.bool))
