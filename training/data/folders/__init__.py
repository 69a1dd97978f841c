"""Folders of images: the files in them, and the splits and classes that the folder names define."""
