"""A run: its output folder, checkpoints, log, trackers and dry run."""
