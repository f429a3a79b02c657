"""T2I-CompBench's formulas on judges' replies about an image (Huang et al., arXiv 2307.06350;
Karine-Huang/T2I-CompBench at 1b70949): pure functions of a prompt's reading and of replies.

`published_rules` follows the scripts exactly. By default three faults are corrected: "on top of" is a
relation, two boxes without an area do not overlap, and two things of one name are two boxes. A prompt
that cannot be read has no score then, where the scripts end or give 0.

Boxes are xyxy, in pixels of the resized picture that a detector of the benchmark sees; numbers are
float32, as it gives them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evaluation.compbench_text import Count, Relation
from policy.errors import UserError
from rewards.matching import XYXY, center, iou, overlap

Kind = Literal["spatial", "action", "all three"]

_NEAR = ("next to", "on side of", "near")
_NEAR_PIXELS = 150
_LITTLE_OVERLAP = 0.1
_MUCH_OVERLAP = 0.5  # of two things, one of which hides the other
_LEAST_SCORE = 0.5
_SAME_OBJECT = 0.9


@dataclass(frozen=True)
class Found:
    """A thing that a detector found."""

    label: str
    box: XYXY
    score: float


def found_of(detections: Sequence[Any]) -> list[Found]:
    """Detections as a reply has them, [label, box, score] each, best first."""
    found = []
    for label, box, score in detections:
        x0, y0, x1, y1, sure = np.array([*box, score], np.float32).tolist()
        found.append(Found(label, (x0, y0, x1, y1), sure))
    return found


def attribute_score(yes: Iterable[float]) -> float:
    """The product of the probabilities of yes, in float32. Each factor, and the product, is rounded to
    the 4 digits that the scripts print."""
    product = np.float32(1)
    for p in yes:
        product *= np.float32(f"{p:.4f}")
    return float(f"{product:.4f}")


def position(
    relation: str | None, first: XYXY, second: XYXY, *, published_rules: bool = False
) -> float:
    """How well two boxes stand in a relation, 0..1."""
    (x1, y1), (x2, y2) = center(first), center(second)
    dx, dy = x2 - x1, y2 - y1
    if published_rules and not overlap(first, second)[1]:
        raise UserError(
            f"the boxes {first} and {second} have no area: there the published script ends with"
            " ZeroDivisionError"
        )
    if relation in _NEAR:
        near = min(abs(dx), abs(dy)) < _NEAR_PIXELS
        return 1.0 if near else _NEAR_PIXELS / max(abs(dx), abs(dy))
    along_across = {
        "on the left of": (dx, dy),
        "on the right of": (-dx, dy),
        "on the top of": (dy, dx),
        "on the bottom of": (-dy, dx),
    }
    along, across = along_across.get(relation or "", (0.0, 0.0))
    if along <= abs(across):
        return 0.0
    shared = iou(first, second)
    return 1.0 if shared < _LITTLE_OVERLAP else _LITTLE_OVERLAP / shared


def spatial_score(
    relation: Relation, found: Sequence[Found], *, published_rules: bool = False
) -> float | None:
    """A quarter of each object's detection score and half of their position's; 0 for less than 0.5, as
    it always is where one of them was not found. None: the prompt cannot be read."""
    if not published_rules and None in (relation.first, relation.second, relation.name):
        return None
    scores = [
        _sure(first, second)
        + position(relation.name, first.box, second.box, published_rules=published_rules) / 2
        for first, second in _pairs(relation, found, published_rules)
    ]
    return _if_enough(scores)


def depth_score(relation: Relation, found: Sequence[Found], nearness: Sequence[float]) -> float | None:
    """As `spatial_score`, for things in front of and behind each other; `nearness` is that of each
    thing found, higher for nearer. A pair in the right order counts in full if the boxes overlap by
    half, with less in proportion."""
    if None in (relation.first, relation.second, relation.name):
        return None
    near = dict(zip(map(id, found), nearness, strict=True))
    scores = []
    for first, second in _pairs(relation, found, published_rules=False):
        ahead = near[id(first)] - near[id(second)]
        right = ahead > 0 if relation.name == "in front of" else ahead < 0
        shared = min(1.0, iou(first.box, second.box) / _MUCH_OVERLAP)
        scores.append(_sure(first, second) + (shared if right else 0.0) / 2)
    return _if_enough(scores)


def _pairs(
    relation: Relation, found: Sequence[Found], published_rules: bool
) -> list[tuple[Found, Found]]:
    """The best box of either object; of two things of one name the two best in both orders; by the
    published rules the best one and itself."""
    firsts = [thing for thing in found if thing.label == relation.first]
    seconds = [thing for thing in found if thing.label == relation.second]
    if relation.first == relation.second and not published_rules:
        return [(a, b) for a in firsts[:2] for b in seconds[:2] if a is not b]
    return list(zip(firsts[:1], seconds[:1], strict=False))


def _sure(first: Found, second: Found) -> float:
    return 0.25 * first.score + 0.25 * second.score


def _if_enough(scores: Sequence[float]) -> float:
    best = max(scores, default=0.0)
    return best if best >= _LEAST_SCORE else 0.0


def count_score(
    wanted: Sequence[Count], found: Sequence[Found], *, published_rules: bool = False
) -> float | None:
    """The mean over the things of half a point for one that was found, and half for the right number.
    None: the prompt cannot be read."""
    if not wanted:
        if published_rules:
            raise UserError(
                "a prompt without a number and a known thing: there the published script ends with"
                " ZeroDivisionError"
            )
        return None
    labels = [thing.label for thing in _once(found)]
    score, weight = 0.0, 1.0 / len(wanted)
    for thing in wanted:
        if thing.label not in labels:
            labels = [thing.label if thing.label in label else label for label in labels]
        if thing.label in labels:
            score += 0.5 * weight
            if thing.number is None:
                raise UserError(
                    f'"a {thing.noun}s" leaves the published script a number short: it ends with'
                    " IndexError"
                )
            if labels.count(thing.label) == thing.number:
                score += 0.5 * weight
    return score


def _once(found: Sequence[Found]) -> list[Found]:
    """Drop detections of the same object as an earlier one with their label."""
    kept: list[Found] = []
    for thing in found:
        if not any(other.label == thing.label and _same(thing.box, other.box) for other in kept):
            kept.append(thing)
    return kept


def _same(one: XYXY, other: XYXY) -> bool:
    """Whether two boxes overlap by 0.9, or either lies in the other by 0.9. Sides are counted in
    pixels, both ends included."""
    wide, tall = ((*box[:2], box[2] + 1, box[3] + 1) for box in (one, other))
    shared, union = overlap(wide, tall)
    parts = (union, overlap(wide, wide)[0], overlap(tall, tall)[0])
    return any(shared / part > _SAME_OBJECT for part in parts)


def kind_of(prompt: str, spatial: Iterable[str], action: Iterable[str]) -> Kind:
    """Which scores enter that of a complex prompt, by two lists of prompts. Prompts are compared
    without case, up to the first full stop."""
    text = _beginning(prompt)
    if text in set(map(_beginning, spatial)):
        return "spatial"
    return "action" if text in set(map(_beginning, action)) else "all three"


def _beginning(prompt: str) -> str:
    return prompt.split(".")[0].lower()


def three_in_one(
    kind: Kind, attribute: float | None, spatial: float | None, action: float | None
) -> float | None:
    """The mean of those scores that belong to a kind of prompt. None if one of them is missing."""
    parts = {
        "spatial": (spatial, attribute),
        "action": (action, attribute),
        "all three": (attribute, spatial, action),
    }[kind]
    total = 0.0
    for part in parts:
        if part is None:
            return None
        total += part
    return total / len(parts)


def mean_of_images(scores: Iterable[float]) -> float | None:
    """A category's score, added up one by one: Python's `sum` rounds otherwise from 3.12 on. None for
    no images."""
    total, count = 0.0, 0
    for score in scores:
        total, count = total + score, count + 1
    return total / count if count else None
