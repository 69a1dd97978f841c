"""Checks of images and masks before training, whose results are kept for later runs."""
