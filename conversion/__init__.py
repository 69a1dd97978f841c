"""Converting and publishing checkpoints."""
