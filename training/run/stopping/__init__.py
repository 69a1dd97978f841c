"""Stopping a run by a signal, after the same step in all training processes."""
