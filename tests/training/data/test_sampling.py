"""Which sample comes when: every one once an epoch, for any split into processes, from any position on."""

from collections import Counter
from itertools import islice

import pytest

from tests.photographs import message_of
from training.data.sampling import Shares, StepSampler
from training.settings.scripts import PretrainSettings


def steps_of(count, world=1, accumulation=1, batch=6, start=0, sizes=(10,), weights=(1,)):
    """(epoch, index) of each optimizer step, over all processes."""
    total = world * accumulation * batch
    each = [StepSampler(sizes, weights, batch, rank, world, 3, start * total) for rank in range(world)]
    taken = [list(islice(sampler, count * accumulation)) for sampler in each]
    return [
        [
            key
            for micro in range(s * accumulation, (s + 1) * accumulation)
            for rank in range(world)
            for key in taken[rank][micro]
        ]
        for s in range(count)
    ]


def test_every_epoch_has_every_sample_once_in_an_order_of_its_own():
    keys = [key for step in steps_of(5) for key in step]
    epochs = [[index for epoch, index in keys if epoch == e] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


MIXTURE = {"sizes": (10, 4), "weights": (3, 1)}


@pytest.mark.parametrize("mixture", [{}, MIXTURE])
@pytest.mark.parametrize(("world", "accumulation", "batch"), [(2, 1, 3), (1, 3, 2), (3, 2, 1)])
def test_a_step_has_the_same_images_however_it_is_split(world, accumulation, batch, mixture):
    assert steps_of(7, world, accumulation, batch, **mixture) == steps_of(7, **mixture)


@pytest.mark.parametrize("mixture", [{}, MIXTURE])
def test_starting_at_a_step_continues_the_chain(mixture):
    assert steps_of(4, start=3, **mixture) == steps_of(7, **mixture)[3:]
    assert steps_of(4, start=2, **mixture) != steps_of(7, **mixture)[3:]


def test_going_on_with_another_batch_size_loses_and_repeats_nothing():
    first = list(islice(StepSampler((10,), (1,), 6, 0, 1, 3, 0), 2))
    rest = list(islice(StepSampler((10,), (1,), 4, 0, 1, 3, 12), 2))
    keys = [key for batch in first + rest for key in batch]
    assert sorted(keys) == [(epoch, index) for epoch in (0, 1) for index in range(10)]


def test_mixed_sources_keep_their_epochs_and_their_share():
    keys = [key for step in steps_of(400, batch=10, **MIXTURE) for key in step]
    from_first = [key for key in keys if key[1] < 10]
    assert len(from_first) == 3000
    for size, lowest, taken in ((10, 0, from_first), (4, 10, [key for key in keys if key[1] >= 10])):
        whole = Counter(taken[: len(taken) // size * size])
        assert set(whole.values()) == {1}
        assert set(whole) == {(epoch, lowest + i) for epoch in range(len(taken) // size) for i in range(size)}


def test_sources_of_one_size_come_in_orders_of_their_own():
    keys = [key for step in steps_of(20, batch=10, sizes=(100, 100), weights=(1, 1)) for key in step]
    orders = [[index - lowest for _, index in keys if lowest <= index < lowest + 100] for lowest in (0, 100)]
    assert len(set(orders[0][:50])) == len(set(orders[1][:50])) == 50
    assert orders[0][:50] != orders[1][:50]


def test_shares_are_met_in_every_thousand_draws():
    shares = Shares([0.5, 0.3, 0.2], 1)
    drawn = [shares.source_of(draw) for draw in range(3000)]
    assert [Counter(source for source, _ in drawn[:1000])[k] for k in range(3)] == [500, 300, 200]
    orders = [[source for source, _ in drawn[start : start + 1000]] for start in (0, 1000, 2000)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    for source in range(3):
        assert [earlier for s, earlier in drawn if s == source] == list(range(3 * [500, 300, 200][source]))


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"mixed_dataset_names": ["b"], "mixture_weights": [1.0]}, "must be 2 positive numbers"),
        ({"mixed_dataset_names": ["b"], "mixture_weights": [1.0, 0.0]}, "must be 2 positive numbers"),
        ({"mixed_dataset_names": ["b"], "mixture_weights": [1.0, 1e-4]}, "no weight below a thousandth of their sum"),
        ({"mixed_dataset_names": ["b"], "streaming": True}, "be given to mix streams"),
    ],
)
def test_weights_that_do_not_fit_the_sources_are_refused(fields, rule):
    message = message_of(lambda: PretrainSettings(dataset_name="a", output_dir="out", **fields))
    assert message.startswith("`mixture_weights`") and rule in message
