"""The terminal: one-line errors, progress bars and signals."""
