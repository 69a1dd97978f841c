"""Parts of a batch are dealt to threads: what is computed stays the same, and so does the process around it."""

import multiprocessing
import os
import threading

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_convnextv2 import ConvNextV2ForImageClassification, ConvNextV2ForPreTraining, dealing, depthwise_parts
from hf_convnextv2.dealing import deal, num_workers
from tests.small_models import assert_close, awake, small_config, small_fcmae_config


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Two cores, and shares so small that the tests' models are dealt."""
    monkeypatch.setattr(dealing, "LEAST_SHARE", 1)
    monkeypatch.setattr(depthwise_parts, "CHUNK_SIZE", 1000)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def dealt(monkeypatch):
    """The numbers of shares that are dealt while a test runs."""
    numbers, real = [], dealing.deal

    def count(work, shares):
        numbers.append(len(shares))
        return real(work, shares)

    for module in ("fused_mlp", "fused_mlp_backward", "depthwise_parts"):
        monkeypatch.setattr(f"hf_convnextv2.{module}.deal", count)
    return numbers


def logits_and_gradients(model, images):
    model.zero_grad()
    logits = model(images).logits
    logits.square().sum().backward()
    return logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())


def loss_and_gradients(model, images):
    torch.manual_seed(1)  # of the mask
    model.zero_grad()
    loss = model(images).loss
    loss.backward()
    return loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)


CLASSIFIER = (lambda: ConvNextV2ForImageClassification(small_config()), logits_and_gradients)
FCMAE = (lambda: ConvNextV2ForPreTraining(small_fcmae_config()), loss_and_gradients)
VIEWS = (lambda: ConvNextV2ForPreTraining(small_fcmae_config(image_size=96, num_visible_sets=2)), loss_and_gradients)
CASES = pytest.mark.parametrize(
    ("create", "outcome", "size"), [(*CLASSIFIER, 64), (*FCMAE, 64), (*VIEWS, 96)], ids=["classifier", "FCMAE", "views"]
)


@CASES
def test_dealt_batch_gives_the_output_and_the_gradients_of_one_thread(create, outcome, size, dealt):
    torch.manual_seed(0)
    model, images = awake(create()), torch.randn(4, 3, size, size)
    actual = outcome(model, images)
    assert dealt.count(2) > len(dealt) / 2
    torch.set_num_threads(1)
    dealt.clear()
    expected = outcome(model, images)
    assert set(dealt) == {1}
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs)


@CASES
def test_dealt_batch_gives_the_same_bits_every_time(create, outcome, size):
    torch.manual_seed(0)
    model, images = awake(create()), torch.randn(8, 3, size, size)
    first = outcome(model, images)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(outcome(model, images), first, strict=True))


def test_dealt_inference_is_that_of_one_thread(dealt):
    torch.manual_seed(0)
    model, images = awake(ConvNextV2ForImageClassification(small_config())), torch.randn(4, 3, 64, 64)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            actual = model(images).logits
        assert actual.is_inference() == (mode is torch.inference_mode)
        assert 2 in dealt
        torch.set_num_threads(1)
        with mode():
            assert_close(actual, model(images).logits)
        torch.set_num_threads(2)


def test_shares_are_computed_at_the_same_time_by_threads_with_their_part_of_the_cores():
    both = threading.Barrier(2, timeout=30)

    def work(share):
        both.wait()  # ends only if another thread is here
        return share, threading.get_ident(), torch.get_num_threads()

    torch.set_num_threads(4)
    values, idents, cores = zip(*deal(work, [10, 20]), strict=True)
    assert values == (10, 20)
    assert len(set(idents)) == 2
    assert threading.get_ident() not in idents
    assert cores == (2, 2)
    assert torch.get_num_threads() == 4
    fresh = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert fresh == [4]


def test_error_in_a_share_is_raised():
    def work(share):
        raise ZeroDivisionError(share)

    with pytest.raises(ZeroDivisionError):
        deal(work, [1, 2])
    assert deal(abs, [-1, -2]) == [1, 2]


@pytest.mark.parametrize(
    ("threads", "parts", "expected"),
    [
        (1, 8, 1),  # one core
        (2, 1, 1),  # one image
        (2, 8, 2),
        (2, 3, 1),  # one of them would wait for half of the time
        (2, 9, 2),
        (4, 4, 4),
        (4, 6, 2),  # of two cores and three images each: of four threads, two would get a second image
        (16, 32, 4),  # of four cores each
        (6, 32, 3),
    ],
)
def test_parts_are_dealt_where_all_cores_are_busy_to_the_end(threads, parts, expected):
    torch.set_num_threads(threads)
    assert num_workers(parts, torch.empty(0), 10**9) == expected


def test_little_work_is_not_dealt(monkeypatch):
    monkeypatch.setattr(dealing, "LEAST_SHARE", 1000)
    assert num_workers(8, torch.empty(0), 1999) == 1
    assert num_workers(8, torch.empty(0), 2000) == 2


def test_mode_that_counts_operations_sees_all_of_them():
    torch.manual_seed(0)
    model, images = awake(ConvNextV2ForImageClassification(small_config())), torch.randn(4, 3, 64, 64)
    totals = []
    for number in (1, 2):
        torch.set_num_threads(number)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images)
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1] > 0


def forked_shares(connection):
    connection.send(deal(abs, [-1, -2]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_process_has_threads_of_its_own():
    deal(abs, [-1, -2])  # this process has its threads
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=forked_shares, args=(theirs,))
    process.start()
    assert ours.poll(30)
    assert ours.recv() == [1, 2]
    process.join()
