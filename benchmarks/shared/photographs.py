"""Photographs that are installed with a package, so that nothing is downloaded."""

from PIL import Image
from skimage import data


def photographs() -> list[Image.Image]:
    """Three of scikit-image's, in colour, about 500 pixels wide."""
    return [Image.fromarray(picture()) for picture in (data.astronaut, data.chelsea, data.coffee)]
