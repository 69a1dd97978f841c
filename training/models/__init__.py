"""Models before they are trained: created or loaded, with their teachers and optimizer."""
