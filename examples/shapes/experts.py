"""The experts of the shapes world, and the classical vision on pixels that they are built on.

An image holds up to nine flat-coloured shapes on a light ground. `detect` finds them by nearest palette
colour, connected components and overlap with each shape's outline, and finds blots in no colour of the
palette too, or a policy would learn to draw them unpunished; it does not know how an image was made.
The experts score the same detections in different ways, so that each can be a server of its own: are
the right objects there, are there as many as asked, are they in the right relation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from policy.records import Box, Prompt
from rewards.expert import Expert, ExpertScores

GROUND = (238, 236, 230)
COLORS = {
    "red": (214, 48, 49),
    "green": (39, 160, 80),
    "blue": (45, 90, 220),
    "yellow": (245, 200, 35),
    "purple": (145, 60, 185),
    "black": (30, 30, 34),
}
SHAPES = ("circle", "square", "triangle")
_PALETTE = np.array([GROUND, *COLORS.values()], np.float32)
_MAX_COLOR_DISTANCE = 85.0  # beyond this a pixel is no palette colour but ground or a blend
_GROUND_DISTANCE = 24.0  # up to this distance from the ground's colour a pixel is ground
_MIN_AREA = 10  # pixels; smaller blobs are specks
_SURE = 0.3  # confidence below which a blob is not counted as that shape


@dataclass(frozen=True)
class FoundObject:
    """One blob: its colour, its best shape with a confidence in 0..1, its centre in pixels."""

    color: str
    shape: str
    confidence: float
    x: float
    y: float
    edges: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Left, top, right, bottom, in pixels."""

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


def outline(shape: str, height: int, width: int) -> np.ndarray:
    """The pixels a shape fills in its bounding box: bool [height, width]."""
    v, u = np.mgrid[0:height, 0:width]
    u = (u + 0.5) / width * 2 - 1
    v = (v + 0.5) / height * 2 - 1
    if shape == "circle":
        return u * u + v * v <= 1
    if shape == "triangle":  # apex at the top, base at the bottom
        return np.abs(u) <= (v + 1) / 2 + 0.5 / width
    return np.ones((height, width), bool)


@lru_cache(maxsize=512)
def _outlines(height: int, width: int) -> np.ndarray:
    return np.stack([outline(shape, height, width) for shape in SHAPES])


def _clip01(x: float) -> float:
    return min(1.0, max(0.0, x))


def _shape_of(mask: np.ndarray) -> tuple[str, float]:
    """The best shape of a blob and its confidence: overlap 0.6 counts 0, 0.85 counts 1."""
    height, width = mask.shape
    outlines = _outlines(height, width)
    overlap = (outlines & mask).sum((1, 2)) / (outlines | mask).sum((1, 2))
    best = int(overlap.argmax())
    aspect = min(height, width) / max(height, width)
    sure = _clip01((overlap[best] - 0.6) / 0.25) * _clip01((aspect - 0.4) / 0.35)
    sensible = min(height, width) >= 4 and max(height, width) <= 10
    return SHAPES[best], float(sure if sensible else 0.3 * sure)


def _blobs(pixels: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[slice, slice]]]:
    """The connected regions of bool [H, W] that are no specks, each cut out, with its position."""
    labels, _ = ndimage.label(pixels)
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        mask = labels[box] == label
        if mask.sum() >= _MIN_AREA:
            yield mask, box


def _found(
    color: str, shape: str, sure: float, mask: np.ndarray, box: tuple[slice, slice]
) -> FoundObject:
    rows, columns = box
    ys, xs = np.nonzero(mask)
    edges = (columns.start, rows.start, columns.stop, rows.stop)
    return FoundObject(color, shape, sure, columns.start + xs.mean(), rows.start + ys.mean(), edges)


def detect(image: np.ndarray) -> list[FoundObject]:
    """All shapes in an image, uint8 [H, W, 3], from the top left on; a blot that has no colour of the
    palette is an "odd-coloured blot" with confidence 0."""
    distance = np.sqrt(((image[:, :, None].astype(np.float32) - _PALETTE) ** 2).sum(-1))
    nearest = distance.argmin(-1)
    nearest[distance.min(-1) > _MAX_COLOR_DISTANCE] = 0
    found = []
    left = distance[:, :, 0] > _GROUND_DISTANCE
    for index in np.unique(nearest[nearest > 0]):
        for mask, box in _blobs(nearest == index):
            found.append(_found(list(COLORS)[index - 1], *_shape_of(mask), mask, box))
            whole = np.zeros(left.shape, bool)
            whole[box] = mask
            left &= ~ndimage.binary_dilation(whole, np.ones((3, 3)))  # edges blend into the ground
    found.extend(_found("odd-coloured", "blot", 0.0, mask, box) for mask, box in _blobs(left))
    return sorted(found, key=lambda d: (d.y, d.x))


def _best(detections: Sequence[FoundObject], name: str) -> float:
    return max((d.confidence for d in detections if d.name == name), default=0.0)


def objects_score(detections: Sequence[FoundObject], names: Sequence[str]) -> float:
    """Mean over the named objects ("red circle") of the best matching blob's confidence."""
    return float(np.mean([_best(detections, name) for name in names]))


def count_score(detections: Sequence[FoundObject], prompt: Prompt) -> float:
    """Mean, over each named object and the picture as a whole, of 1 - |found - wanted| / wanted.

    The picture as a whole counts every blob, pale ones too, so extra clutter costs.
    """
    wanted = {c.obj_name: c.num for c in prompt.numeracy_info}
    sure = [d for d in detections if d.confidence > _SURE]
    pairs = [(sum(d.name == name for d in sure), num) for name, num in wanted.items()]
    pairs.append((len(detections), sum(wanted.values())))
    return float(np.mean([max(0.0, 1 - abs(found - num) / num) for found, num in pairs]))


_RIGHT_WAY = {
    "left of": lambda a, b: b.x - a.x,
    "right of": lambda a, b: a.x - b.x,
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
}


def relation_score(detections: Sequence[FoundObject], obj1: str, obj2: str, locality: str) -> float:
    """The best pair of the two objects: how clearly it has the relation (2 px counts 0, 6 px 1), times
    the weaker confidence."""
    distance = _RIGHT_WAY[locality]
    pairs = [
        _clip01((distance(a, b) - 2) / 4) * min(a.confidence, b.confidence)
        for a in detections
        if a.name == obj1
        for b in detections
        if b.name == obj2
    ]
    return float(max(pairs, default=0.0))


def _describe(detections: Sequence[FoundObject]) -> str:
    return ", ".join(f"{d.name} ({d.x:.0f},{d.y:.0f}) {d.confidence:.2f}" for d in detections)


def _boxes(detections: Sequence[FoundObject], image: np.ndarray) -> tuple[Box, ...]:
    sides = np.array([*image.shape[1::-1]] * 2)
    return tuple(
        Box(d.name, d.confidence, tuple((np.array(d.edges) / sides).tolist())) for d in detections
    )


class _ShapesExpert(Expert):
    """Detects objects in every image, then grades the detections."""

    def grade(self, detections: Sequence[FoundObject], prompt: Prompt) -> float:
        raise NotImplementedError

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        found = [detect(image) for image in images]
        values = [self.grade(d, p) for d, p in zip(found, prompts, strict=True)]
        boxes = [_boxes(d, image) for d, image in zip(found, images, strict=True)]
        return ExpertScores(
            np.array(values, np.float32), tuple(_describe(d) for d in found), tuple(boxes)
        )


class ObjectsExpert(_ShapesExpert):
    """Is every named object there, in its colour?"""

    pass_threshold = 0.75

    def applies(self, prompt: Prompt) -> bool:
        return bool(prompt.attr_nouns)

    def grade(self, detections: Sequence[FoundObject], prompt: Prompt) -> float:
        return objects_score(detections, prompt.attr_nouns)


class CountExpert(_ShapesExpert):
    """Are there as many as asked, and nothing else?"""

    pass_threshold = 0.999

    def applies(self, prompt: Prompt) -> bool:
        return bool(prompt.numeracy_info)

    def grade(self, detections: Sequence[FoundObject], prompt: Prompt) -> float:
        return count_score(detections, prompt)


class RelationExpert(_ShapesExpert):
    """Do the two objects have the relation that the prompt asks for?"""

    pass_threshold = 0.5

    def applies(self, prompt: Prompt) -> bool:
        return prompt.spatial_info is not None and prompt.spatial_info.locality in _RIGHT_WAY

    def grade(self, detections: Sequence[FoundObject], prompt: Prompt) -> float:
        where = prompt.spatial_info
        assert where is not None  # otherwise it does not apply
        return relation_score(detections, where.obj1, where.obj2, where.locality)
