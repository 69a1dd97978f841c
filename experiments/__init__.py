"""The demo and the studies: what they train on, how they compare, what they draw."""
