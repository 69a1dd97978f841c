"""Answers of a stored model for images: which images, what the model says of them, and the files that hold it."""
