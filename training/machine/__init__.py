"""What a run asks of its machine: memory, and a disk with room."""
