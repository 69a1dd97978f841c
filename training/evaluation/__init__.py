"""Metrics, results for each class, frozen features, published accuracies and pictures."""
