"""Loading data: sources, samples, transforms and batches."""
