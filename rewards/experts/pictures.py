"""Images as image processors take them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def pictures(images: Sequence[np.ndarray]) -> list[Image.Image]:
    """uint8 [H, W, 3] each -> RGB pictures."""
    return [Image.fromarray(np.ascontiguousarray(image)) for image in images]


def squared(image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    """The image in the middle of the smallest square that holds it, on a ground of one colour."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    ground = Image.new("RGB", (side, side), fill)
    ground.paste(image, ((side - width) // 2, (side - height) // 2))
    return ground
