"""The images of a prompt as one 2 x 2 picture, row by row."""

from collections.abc import Sequence

import numpy as np


def two_by_two(images: Sequence[np.ndarray]) -> np.ndarray:
    """Four images of one size, uint8 [H, W, 3], or fewer with black in the place of the rest ->
    [2 H, 2 W, 3]."""
    height, width, _ = images[0].shape
    whole = np.zeros((2 * height, 2 * width, 3), np.uint8)
    for n, image in enumerate(images):
        y, x = height * (n // 2), width * (n % 2)
        whole[y : y + height, x : x + width] = image
    return whole


def quarters(whole: np.ndarray) -> list[np.ndarray]:
    """The four images again; a last odd row or column of pixels is left out."""
    height, width = whole.shape[0] // 2, whole.shape[1] // 2
    corners = [(0, 0), (0, width), (height, 0), (height, width)]
    return [whole[y : y + height, x : x + width].copy() for y, x in corners]
