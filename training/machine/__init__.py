"""The machine of a run: its memory and its disk."""
