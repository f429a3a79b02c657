"""OpenCV's bilinear resizing of uint8 images, bit for bit: MMDetection feeds its detectors with it.

It rounds weights to steps of 1/2048 and truncates intermediate values, which moves one value in eight
by 1; and it does not blur before it makes an image smaller, as Pillow does. Its method is resize(...,
INTER_LINEAR) of modules/imgproc/src/resize.cpp; opencv 5.0.0 agrees.
"""

import numpy as np

_STEPS = 2048


def resize_linear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [height, width, 3]."""
    left, right, of_left, of_right = _taps(image.shape[1], width)
    upper, lower, of_upper, of_lower = _taps(image.shape[0], height)
    values = image.astype(np.int32)
    columns = values[:, left] * of_left[:, None] + values[:, right] * of_right[:, None]
    columns >>= 4
    rows = (columns[upper] * of_upper[:, None, None]) >> 16
    rows += (columns[lower] * of_lower[:, None, None]) >> 16
    return ((rows + 2) >> 2).astype(np.uint8)


def _taps(old: int, new: int) -> tuple[np.ndarray, ...]:
    """Along one axis, for each new pixel the two old ones that it lies between, and their weights."""
    at = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    first = np.floor(at)
    part = at - first
    weights = (np.rint(share * _STEPS).astype(np.int32) for share in (1 - part, part))
    places = (np.clip(first + n, 0, old - 1).astype(np.intp) for n in (0, 1))
    return (*places, *weights)
