"""k nearest neighbours and the linear probe, against scikit-learn and by hand."""

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch.testing import assert_close

from hf_convnextv2 import ConvNextV2Model
from tests.photographs import forget_accelerate, message_of
from tests.small_models import awake, small_config
from training.evaluation.features import QUERIES, extract_features, knn_scores, linear_probe_scores, top_accuracies
from training.evaluation.whitening import Whitening, whitened
from training.prediction.pooling import PooledMaps
from training.settings.pooling import PoolingSettings


def clouds(count, seed):
    """Three overlapping clouds of points in five dimensions."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    points = random.normal(size=(count, 5)) + 1.5 * np.eye(5)[labels]
    return torch.tensor(points, dtype=torch.float32), torch.tensor(labels)


def test_neighbours_vote_as_in_scikit_learn():
    (train, labels), (queries, _) = clouds(90, 0), clouds(QUERIES + 7, 1)
    expected = KNeighborsClassifier(15, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)).fit(
        train.numpy(), labels.numpy()
    )
    scores = knn_scores(train, labels, queries, 3, k=15, temperature=0.07)
    assert_close(
        scores / scores.sum(1, keepdim=True),
        torch.tensor(expected.predict_proba(queries.numpy()), dtype=torch.float32),
        rtol=1e-3,
        atol=1e-5,
    )


def test_more_neighbours_than_images_are_all_images():
    train, labels = clouds(6, 0)
    everybody = knn_scores(train, labels, train, 3, k=100, temperature=1e6)
    assert_close(everybody, torch.full((6, 3), 2.0), rtol=1e-4, atol=0)


def test_the_probe_is_a_logistic_regression_on_standardised_features():
    (train, labels), (queries, _) = clouds(90, 0), clouds(40, 1)
    shifted, scaled = train * torch.tensor([1, 10, 100, 1, 1]) + 5, queries * torch.tensor([1, 10, 100, 1, 1]) + 5
    mean, deviation = train.mean(0), train.std(0, correction=0)
    expected = LogisticRegression(C=0.5, max_iter=2000).fit(((train - mean) / deviation).numpy(), labels.numpy())
    scores = linear_probe_scores(shifted, labels, scaled, 3, strength=0.5, seed=0)
    probabilities = expected.predict_proba(((queries - mean) / deviation).numpy())
    assert_close(scores.exp(), torch.tensor(probabilities, dtype=torch.float32), rtol=1e-2, atol=1e-3)


def test_a_class_without_a_training_image_gets_nothing():
    train, labels = clouds(30, 0)
    known = labels != 1
    scores = linear_probe_scores(train[known], labels[known], train, 4, strength=1.0, seed=0)
    assert torch.isinf(scores[:, [1, 3]]).all() and scores[:, [0, 2]].isfinite().all()


def test_features_are_the_mean_of_the_last_map_before_any_norm():
    """In the order of the images, of unequal batches, with their labels."""
    forget_accelerate()
    model = awake(ConvNextV2Model(small_config())).train()
    images, labels = torch.randn(5, 3, 64, 96), torch.tensor([3, 1, 4, 1, 5])
    loader = [{"pixel_values": images[part], "labels": labels[part]} for part in (slice(3), slice(3, 5))]
    read = PooledMaps(PoolingSettings(), 4)
    features, found = extract_features(Accelerator(cpu=True), model, loader, read)  # type: ignore[arg-type]
    forget_accelerate()
    last = model(images, output_hidden_states=True).hidden_states[-1]  # (5, C, 2, 3)
    expected = sum(last[:, :, row, column] for row in range(2) for column in range(3)) / 6
    assert_close(features, expected.detach(), rtol=1e-4, atol=1e-5)
    assert not model.training and torch.equal(found, labels)


def test_features_of_several_stages_and_poolings_stand_one_after_the_other():
    model, images = awake(ConvNextV2Model(small_config())), torch.randn(2, 3, 64, 64)
    found = PooledMaps(PoolingSettings(stages=[4, 2], pooling=["max", "mean"]), 4)(model, images)
    maps = model(images, output_hidden_states=True).hidden_states
    expected = [pooled for stage in (4, 2) for pooled in (maps[stage].amax((2, 3)), maps[stage].mean((2, 3)))]
    assert torch.equal(found, torch.cat(expected, dim=1)) and found.shape == (2, 2 * (32 + 16))
    assert message_of(lambda: PooledMaps(PoolingSettings(stages=[5]), 4)).startswith("`stages` (=[5]) must be between")


def correlated(count, seed):
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(count, 4)) @ np.random.default_rng(9).normal(size=(4, 6)) + 3  # of rank 4 in 6
    return torch.tensor(mixed, dtype=torch.float32)


def test_whitening_is_that_of_the_covariance_of_the_training_images_alone():
    train, queries = correlated(50, 0), correlated(20, 1)
    values, vectors = np.linalg.eigh(np.cov(train.double().numpy().T))
    largest = np.argsort(-values)[:3]
    expected = (
        (queries.double().numpy() - train.double().numpy().mean(0)) @ vectors[:, largest] / np.sqrt(values[largest])
    )
    whiten = Whitening(train, 3)
    found = whiten(queries).numpy()
    signs = np.sign((found * expected).sum(0))  # a direction has no sign of its own
    np.testing.assert_allclose(found * signs, expected, rtol=1e-4, atol=1e-4)
    assert_close(torch.cov(whiten(train).T), torch.eye(3), rtol=0, atol=1e-4)
    # The control: with the queries in it, the projection would be another one.
    other = np.abs(Whitening(torch.cat([train, queries]), 3)(queries).numpy())
    assert not np.allclose(other, np.abs(found), atol=1e-2)


def test_every_split_is_whitened_as_the_training_images_alone_say():
    train, queries, labels = correlated(50, 0), 2 * correlated(20, 1), torch.arange(50)
    found = whitened({"train": (train, labels), "test": (queries, labels[:20])}, 3)
    whiten = PCA(3, whiten=True).fit(train.double().numpy())
    for split, features in (("train", train), ("test", queries)):
        expected = whiten.transform(features.double().numpy())  # a direction has no sign of its own
        np.testing.assert_allclose(found[split][0].abs(), np.abs(expected), rtol=1e-3, atol=1e-4)
        assert torch.equal(found[split][1], labels[: len(features)])


def test_more_components_than_the_features_vary_in_are_refused():
    labels = torch.zeros(50, dtype=torch.long)
    splits = {"train": (correlated(50, 0), labels), "test": (correlated(9, 1), labels[:9])}
    assert whitened(splits, None) is splits
    shapes = {split: tuple(features.shape) for split, (features, _) in whitened(splits, 4).items()}
    assert shapes == {"train": (50, 4), "test": (9, 4)}
    message = message_of(lambda: whitened(splits, 5))
    assert message.startswith("`whitened_components` (=5) must be at most 4, the directions in which")


def test_top_accuracies_of_known_ranks():
    scores = torch.eye(8)[torch.arange(8)] - torch.arange(8) / 100  # the right class first
    assert top_accuracies(scores, torch.arange(8)) == {"accuracy": 1.0, "accuracy_top5": 1.0}
    ranked = torch.arange(8.0, 0, -1).expand(8, 8)  # always the order 0, 1, 2, ...
    assert top_accuracies(ranked, torch.arange(8)) == {"accuracy": 1 / 8, "accuracy_top5": 5 / 8}


def test_a_small_temperature_leaves_the_vote_to_the_nearest():
    train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
    labels, queries = torch.tensor([0, 1, 1, 1]), torch.tensor([[1.0, 0.01]])
    scores = {t: knn_scores(train, labels, queries, 2, 3, t) for t in (0.07, 1e-3)}
    assert scores[0.07].argmax() == 1 and scores[1e-3].argmax() == 0
    assert all(score.isfinite().all() for score in scores.values())
