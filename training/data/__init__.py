"""From a data set to batches: sources, samples, transforms, batches."""
