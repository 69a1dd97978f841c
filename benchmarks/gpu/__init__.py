"""One command that shows on a GPU that the package is right and fast: `python -m benchmarks.gpu`."""
