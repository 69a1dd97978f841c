"""Timing functions and workloads that several benchmarks share."""
