"""Speed and memory, measured against the peers."""
