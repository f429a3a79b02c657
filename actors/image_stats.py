"""Statistics of images, and how alike those of one group are: they show a policy that games an expert
(flat posters, noise, one picture over and over) before people see it.

Pure functions on uint8 [N, H, W, 3]. They look at every k-th pixel in both directions, so that an image
of any size costs what one of about 128 x 128 does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

LOOKED_AT = 128  # pixels of the longer side, about
EDGE = 16  # grey levels of 255 between neighbours
LEVELS = 8  # of each colour channel
THUMBNAIL = 8  # blocks on a side
ALIKE = 5  # levels of 255 between two thumbnails, on average
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class ImageSums:
    """Sums over images and, for near duplicates, over pairs of a group. Sums of several workers add up,
    and `means` is right whatever share of the images each had."""

    images: int = 0
    edge_density: float = 0.0
    color_entropy: float = 0.0
    brightness: float = 0.0
    saturation: float = 0.0
    pairs: int = 0
    near_duplicates: int = 0

    @classmethod
    def of(cls, groups: Sequence[np.ndarray]) -> "ImageSums":
        """The sums of groups of images, each uint8 [G, H, W, 3]."""
        return sum((_of_group(thinned(group)) for group in groups if len(group)), cls())

    def __add__(self, other: "ImageSums") -> "ImageSums":
        return ImageSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def means(self) -> dict[str, float]:
        """Means by name, as in the functions below; absent where there was no image, or no pair."""
        found = {}
        if self.images:
            names = ("edge_density", "color_entropy", "brightness", "saturation")
            found = {name: getattr(self, name) / self.images for name in names}
        if self.pairs:
            found["near_duplicates"] = self.near_duplicates / self.pairs
        return found


def thinned(images: np.ndarray) -> np.ndarray:
    """Every k-th row and column, the longer side at most 128 or so."""
    k = max(1, max(images.shape[1:3]) // LOOKED_AT)
    return np.ascontiguousarray(images[:, ::k, ::k])


def edge_density(images: np.ndarray) -> np.ndarray:
    """float64 [N], 0..1: the share of neighbouring pixels whose grey values are 16 of 255 apart or
    more."""
    grey = images @ _GREY
    across = np.abs(np.diff(grey, axis=2)) >= EDGE
    down = np.abs(np.diff(grey, axis=1)) >= EDGE
    neighbours = across[0].size + down[0].size
    return (across.sum((1, 2)) + down.sum((1, 2))) / max(1, neighbours)


def color_entropy(images: np.ndarray) -> np.ndarray:
    """float64 [N], bits, 0..9: Shannon's entropy of an image's colours, at 8 levels of each channel."""
    levels = images // (256 // LEVELS)
    codes = (levels[..., 0].astype(np.int64) * LEVELS + levels[..., 1]) * LEVELS + levels[..., 2]
    number = np.arange(len(images))[:, None, None]
    counts = np.bincount((codes + number * LEVELS**3).ravel(), minlength=len(images) * LEVELS**3)
    shares = counts.reshape(len(images), -1) / codes[0].size
    return np.abs((shares * np.log2(np.where(shares > 0, shares, 1))).sum(1))


def brightness(images: np.ndarray) -> np.ndarray:
    """float64 [N], 0 (black) .. 1 (white): the mean grey value."""
    return (images @ _GREY).mean((1, 2), dtype=np.float64) / 255


def saturation(images: np.ndarray) -> np.ndarray:
    """float64 [N], 0 (grey) .. 1: the mean of HSV's saturation."""
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    high = np.maximum(np.maximum(red, green), blue)
    spread = high - np.minimum(np.minimum(red, green), blue)
    return (spread / np.maximum(high, 1)).mean((1, 2))


def near_duplicates(images: np.ndarray) -> int:
    """How many of the N (N - 1) / 2 pairs are almost the same picture: thumbnails of 8 x 8 blocks
    differ by less than 5 of 255 on average."""
    thumbnails = _blocks(_blocks(images.astype(np.float32), 1), 2).reshape(len(images), -1)
    one, other = np.triu_indices(len(images), 1)
    return int((np.abs(thumbnails[one] - thumbnails[other]).mean(1) < ALIKE).sum())


def _blocks(values: np.ndarray, axis: int) -> np.ndarray:
    """Means over 8 stretches of an axis, or as they are where it is shorter."""
    size = values.shape[axis]
    if size < THUMBNAIL:
        return values
    edges = np.arange(THUMBNAIL + 1) * size // THUMBNAIL
    shape = [1] * values.ndim
    shape[axis] = THUMBNAIL
    return np.add.reduceat(values, edges[:-1], axis) / np.diff(edges).reshape(shape)


def _of_group(images: np.ndarray) -> ImageSums:
    count = len(images)
    return ImageSums(
        images=count,
        edge_density=float(edge_density(images).sum()),
        color_entropy=float(color_entropy(images).sum()),
        brightness=float(brightness(images).sum()),
        saturation=float(saturation(images).sum()),
        pairs=count * (count - 1) // 2,
        near_duplicates=near_duplicates(images),
    )
