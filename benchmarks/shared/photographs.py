"""Photographs that an installed package contains, so that nothing is downloaded."""

from PIL import Image
from skimage import data


def photographs() -> list[Image.Image]:
    """Three colour photographs of scikit-image, about 500 pixels wide."""
    return [Image.fromarray(picture()) for picture in (data.astronaut, data.chelsea, data.coffee)]
