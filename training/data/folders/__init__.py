"""Folders of images: what they hold, and the splits and classes that their names give."""
