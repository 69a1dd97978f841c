"""Training scripts, and what they are made of."""
