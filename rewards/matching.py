"""What counts as the same object: how far boxes overlap, and when two nouns are the same.

Two ways to write a box: xyxy (left, top, right, bottom) and cxcywh (centre, width, height).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np

from policy.errors import UserError

XYXY: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """An object that was found in an image."""

    phrase: str
    score: float
    """0..1: how sure the detector is."""
    box: tuple[float, float, float, float]
    """cxcywh, in 0..1 of the image's width and height."""


def to_xyxy(cxcywh: Sequence[float] | np.ndarray) -> XYXY:
    """A box by its corners, in the arithmetic of its numbers: float32 stays float32."""
    cx, cy, width, height = cxcywh
    left, top = cx - width / 2, cy - height / 2
    return left, top, left + width, top + height


def center(xyxy: Sequence[float]) -> tuple[float, float]:
    return (xyxy[0] + xyxy[2]) / 2, (xyxy[1] + xyxy[3]) / 2


def overlap(box1: Sequence[float], box2: Sequence[float]) -> tuple[float, float]:
    """Intersection and union of two xyxy boxes, as areas."""
    width = max(0, min(box1[2], box2[2]) - max(box1[0], box2[0]))
    height = max(0, min(box1[3], box2[3]) - max(box1[1], box2[1]))
    intersection = width * height
    return intersection, _area(box1) + _area(box2) - intersection


def iou(box1: Sequence[float], box2: Sequence[float]) -> float:
    """Intersection over union of two xyxy boxes, 0..1; boxes without an area overlap nothing."""
    intersection, union = overlap(box1, box2)
    return float(intersection / union) if union > 0 else 0.0


def gap(box1: Sequence[float], box2: Sequence[float]) -> float:
    """The distance between the nearest points of two xyxy boxes; 0 if they touch or overlap."""
    dx = max(0, max(box1[0], box2[0]) - min(box1[2], box2[2]))
    dy = max(0, max(box1[1], box2[1]) - min(box1[3], box2[3]))
    return float(np.hypot(dx, dy))


def nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression: from the highest score on, a box stays unless its IoU with one
    that stayed is above `threshold`. Boxes [N, 4] xyxy, scores [N]; returns the indices that stay,
    best first. Of equal scores, the earlier index goes first."""
    left, top, right, bottom = boxes.T
    areas = (right - left) * (bottom - top)
    waiting = np.argsort(-scores, kind="stable")
    stay = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        stay.append(best)
        width = np.minimum(right[best], right[waiting]) - np.maximum(left[best], left[waiting])
        height = np.minimum(bottom[best], bottom[waiting]) - np.maximum(top[best], top[waiting])
        intersection = np.maximum(width, 0) * np.maximum(height, 0)
        union = areas[best] + areas[waiting] - intersection
        same = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0) > threshold
        waiting = waiting[~same]
    return np.array(stay, np.int64)


def _area(xyxy: Sequence[float]) -> float:
    return (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1])


Variant = Literal["paper", "released"]
Spans = list[list[list[int]]]

_IRREGULAR = {
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "men": "man",
    "mice": "mouse",
    "oxen": "ox",
    "people": "person",
    "teeth": "tooth",
}
_STOPS = re.compile(r"[.?\s]+")  # a detector reads "." and "?" as the end of a phrase


def plain_noun(noun: str) -> str:
    """A noun as it is compared and looked for: lower case, single spaces, no full stops."""
    return _STOPS.sub(" ", noun).strip().lower()


@lru_cache(maxsize=4096)  # called for every detection, with the same few nouns
def same_noun(noun1: str, noun2: str) -> bool:
    """Whether two nouns of any number of words are one but for case, spaces and a plural."""
    one, two = plain_noun(noun1), plain_noun(noun2)
    if one == two:
        return True
    *first1, last1 = one.split(" ")
    *first2, last2 = two.split(" ")
    return first1 == first2 and not _singulars(last1).isdisjoint(_singulars(last2))


def _singulars(word: str) -> set[str]:
    """All words that a word could be the plural of, and itself: "leaves" gives "leave", "leav", "leaf"
    ...

    Some are no words, but two nouns share one only if they are forms of the same noun.
    """
    forms = {word}
    for ending, singular in (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe")):
        if word.endswith(ending) and len(word) > len(ending) + 1 and not word.endswith("ss"):
            forms.add(word.removesuffix(ending) + singular)
    stem = next((plural for plural in _IRREGULAR if word.endswith(plural)), None)
    if stem:
        forms.add(word.removesuffix(stem) + _IRREGULAR[stem])
    return forms


def phrase_spans(nouns: Sequence[str], *, variant: Variant = "paper") -> tuple[str, Spans]:
    """The caption that asks a grounding detector for all nouns at once, "hot dog . tv.", and where
    in it each noun's words are: spans[noun][word] = [begin, end) in characters.

    "paper" writes nouns as `plain_noun` does and marks every word; UserError for a noun without
    letters, or for none at all. "released" is the published code's: nouns as they come, and only the
    first and last word of each marked (or what its arithmetic takes for them, where a noun has spaces
    at its ends).
    """
    if variant == "released":
        return _released_spans(nouns)
    plain = [plain_noun(noun) for noun in nouns]
    if not all(plain) or not plain:
        raise UserError(f"nothing to look for: the nouns are {list(nouns)}, and each must name a thing")
    spans, begin = [], 0
    for noun in plain:
        spans.append([[begin + word.start(), begin + word.end()] for word in re.finditer(r"\S+", noun)])
        begin += len(noun) + len(" . ")
    return " . ".join(plain) + ".", spans


def _released_spans(nouns: Sequence[str]) -> tuple[str, Spans]:
    spans, begin = [], 0
    for noun in nouns:
        words = noun.strip().split(" ")
        length = len(words[0]) if len(words) == 1 else len(noun)
        first = [begin, begin + len(words[0])]
        last = [begin + length - len(words[-1]), begin + length]
        spans.append([first] if len(words) == 1 else [first, last])
        begin += length + len(" . ")
    return " . ".join(nouns) + ".", spans
