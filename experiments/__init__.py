"""The demo and the studies: their data, comparisons and plots."""
