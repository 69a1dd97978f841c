"""Draws of labels: stratified, anew for each seed, and refused where a class would have no image."""

import math

import numpy as np
import pytest

from training.comparison.drawing import check_shares, draw, finetuning_steps, missing_class

NAMES = ["common", "rare"]


def labels_of(*counts):
    """So many images of each class, in a fixed order without a pattern."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(0).permutation(labels)


def test_a_draw_has_the_same_share_of_each_class_and_no_image_twice():
    labels = labels_of(600, 300, 100)
    chosen = draw(labels, 0.1, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [60, 30, 10] and len(set(chosen.tolist())) == 100


def test_each_seed_draws_anew_and_the_same_seed_the_same_images():
    labels = labels_of(60, 40)
    draws = [frozenset(draw(labels, 0.2, seed).tolist()) for seed in (0, 1, 2, 0)]
    assert len(set(draws)) == 3 and draws[0] == draws[3]


def test_a_share_without_a_class_is_refused_with_the_class_and_the_least_share():
    labels = labels_of(197, 3)
    with pytest.raises(
        ValueError, match=r"class `rare` has none; with a share of 0\.335 or more, every class has some"
    ) as error:
        check_shares(labels, NAMES, [0.01, 1.0], [0, 1])
    assert "`label_shares` (=0.01)" in str(error.value) and "2 of 200 images" in str(error.value)
    check_shares(labels, NAMES, [0.335, 1.0], [0, 1, 2])


@pytest.mark.parametrize("counts", [(97, 3), (1000, 7), (333, 111, 5), (20, 20, 20), (49, 2)])
def test_the_least_share_draws_every_class_whatever_the_seed(counts):
    labels = labels_of(*counts)
    least = math.ceil(1e4 * math.ceil(len(labels) / min(counts)) / len(labels)) / 1e4
    check_shares(labels, [str(n) for n in range(len(counts))], [least], range(30))
    too_few = (len(counts) - 0.5) / len(labels)  # fewer images than classes
    assert missing_class(labels, len(counts), too_few, [0]) is not None


@pytest.mark.parametrize(
    ("counts", "share", "said"),
    [((99, 1), 0.5, "the class `rare` has one image"), ((50, 50), 0.995, "leave out at least 2 of the 100 images")],
)
def test_what_cannot_be_stratified_is_refused(counts, share, said):
    with pytest.raises(ValueError, match=said):
        check_shares(labels_of(*counts), NAMES, [share], [0])
    check_shares(labels_of(*counts), NAMES, [1.0], [0])


def test_the_steps_grow_with_the_images_up_to_492():
    assert [finetuning_steps(count) for count in (1, 25, 100, 1966, 10**6)] == [70, 110, 160, 492, 492]
