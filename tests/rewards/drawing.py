"""Pictures of the shapes world, drawn by hand."""

import numpy as np
from PIL import Image, ImageDraw

from examples.shapes.experts import COLORS, GROUND


def draw(*shapes: tuple[str, str, int, int]) -> np.ndarray:
    """uint8 [32, 32, 3] with shapes of 9 x 9 pixels: (color, shape, x and y of the top left)."""
    image = Image.new("RGB", (32, 32), GROUND)
    pen = ImageDraw.Draw(image)
    for color, shape, x, y in shapes:
        fill = COLORS[color]
        if shape == "circle":
            pen.ellipse((x, y, x + 8, y + 8), fill)
        elif shape == "square":
            pen.rectangle((x, y, x + 8, y + 8), fill)
        else:
            pen.polygon([(x + 4, y), (x, y + 8), (x + 8, y + 8)], fill)
    return np.asarray(image)
