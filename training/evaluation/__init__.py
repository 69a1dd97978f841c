"""Metrics, figures of each class, frozen features, published figures and pictures."""
