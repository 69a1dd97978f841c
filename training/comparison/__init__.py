"""Comparing starts of training on the same labels: draws of labels, runs, frozen features, figures and intervals."""
