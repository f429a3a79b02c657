"""Scores detections against a prompt: the relation of two objects, counts, existence. Pure functions.

Each score has two variants. "paper" is the object-detector reward of T2I-R1 (arXiv 2505.00703, section
3.3):

    spatial    0.6 * relation + 0.4 * mean(existence of the two objects)
    count      mean over the objects of [found == wanted]
    existence  mean over the nouns of [found]

"released" is what the published code computes instead, faults and all (rewards/detection_released.py),
for comparisons. docs/detection.md lists where the two differ.

Detections, SpatialInfo and ObjectCount may also come as mappings of their fields, or as plain tuples
in the order of the fields.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from policy.errors import UserError
from policy.records import ObjectCount, SpatialInfo
from rewards import detection_released as released
from rewards.matching import (
    XYXY,
    Detection,
    Variant,
    center,
    gap,
    iou,
    nms,
    phrase_spans,
    plain_noun,
    same_noun,
    to_xyxy,
)

__all__ = [
    "Detection",
    "count_score",
    "existence_score",
    "knows_relation",
    "phrase_spans",
    "relation_score",
    "spatial_score",
]

T = TypeVar("T")
_SAME_OBJECT_IOU = 0.5  # boxes of one noun that overlap more are one object seen twice

# Which way the first object lies from the second; "near" is no direction.
_WAYS = {
    "left": ("left of", "on the left of", "to the left of"),
    "right": ("right of", "on the right of", "to the right of"),
    "above": ("above", "top of", "on top of", "on the top of"),
    "below": ("below", "bottom of", "on bottom of", "on the bottom of"),
    "near": ("near", "next to", "on side of", "on the side of"),
}
_WAY_OF = {relation: way for way, relations in _WAYS.items() for relation in relations}


def knows_relation(relation: str) -> bool:
    """Whether `relation_score` can score it."""
    return plain_noun(relation) in _WAY_OF


def relation_score(
    box1: Sequence[float],
    box2: Sequence[float],
    relation: str,
    *,
    variant: Variant = "paper",
    iou_threshold: float = 0.1,
    distance_threshold: float | None = None,
) -> float:
    """How well box 1 stands in a relation ("left of", "on top of", "near" ...) to box 2, 0..1.

    Boxes are xyxy in any one unit. A direction: 0 unless the larger component of the offset between
    the centres points that way; then 1 if the boxes' IoU is below `iou_threshold`, else the IoU.
    "near" and its like: 1 if the gap between the boxes is at most `distance_threshold` (1.0) times
    their mean size, the side of a square of the same area; else the IoU, which is 0. So the unit, the
    place and mirroring make no difference.

    "released": `distance_threshold` is in the boxes' unit (150). The arithmetic is that of the numbers
    given, and where their union is 0 it matters: Python's floats raise (0), tensors and NumPy's do not.

    Raises UserError for a relation that is not known; "released" gives 0.
    """
    if variant == "released":
        threshold = 150 if distance_threshold is None else distance_threshold
        return released.relation_score(box1, box2, relation, iou_threshold, threshold)
    way = _way_of(relation)
    overlap = iou(box1, box2)
    if way == "near":
        reach = 1.0 if distance_threshold is None else distance_threshold
        return 1.0 if gap(box1, box2) <= reach * (_size(box1) + _size(box2)) / 2 else overlap
    if _way(box1, box2) != way:
        return 0.0
    return 1.0 if overlap < iou_threshold else overlap


def spatial_score(
    detections: Iterable[Detection], spatial_info: SpatialInfo, *, variant: Variant = "paper"
) -> float:
    """0.6 * the relation of the most confident detection of each object + 0.4 * the share of the two
    that were found at all; 0..1. Two objects of one noun are its two best detections, either way round.

    Raises UserError for a relation that is not known; "released" gives such a relation 0.
    """
    found, info = _detections(detections), _record(SpatialInfo, spatial_info)
    if variant == "released":
        return released.spatial_score(found, info)
    _way_of(info.locality)  # an unknown relation is an error even where nothing was found
    if same_noun(info.obj1, info.obj2):
        best = _objects(found, info.obj1)[:2]
        pairs = [best, best[::-1]] if len(best) == 2 else []
        existence = len(best) / 2
    else:
        firsts, seconds = _objects(found, info.obj1)[:1], _objects(found, info.obj2)[:1]
        pairs = [firsts + seconds] if firsts and seconds else []
        existence = (len(firsts) + len(seconds)) / 2
    relation = max((relation_score(one, two, info.locality) for one, two in pairs), default=0.0)
    return 0.6 * relation + 0.4 * existence


def count_score(
    detections: Iterable[Detection],
    numeracy_info: Iterable[ObjectCount],
    *,
    variant: Variant = "paper",
) -> float:
    """The share of the objects that were found exactly as often as wanted, 0..1. Detections of one
    noun whose IoU is above 0.5 are one object.

    Raises UserError if nothing is to be counted; "released" gives 0.
    """
    found = _detections(detections)
    wanted = [_record(ObjectCount, count) for count in numeracy_info]
    if variant == "released":
        return released.count_score(found, wanted, _SAME_OBJECT_IOU)
    if not wanted:
        raise UserError("nothing to count: numeracy_info is empty")
    return sum(len(_objects(found, c.obj_name)) == c.num for c in wanted) / len(wanted)


def existence_score(
    detections: Iterable[Detection], nouns: Sequence[str], *, variant: Variant = "paper"
) -> float:
    """The share of the nouns that were found, 0..1.

    Raises UserError if there are no nouns; "released" gives 0.
    """
    found = _detections(detections)
    if variant == "released":
        return released.existence_score(found, nouns)
    if not nouns:
        raise UserError("nothing to look for: there are no nouns")
    return sum(any(same_noun(d.phrase, noun) for d in found) for noun in nouns) / len(nouns)


def _objects(detections: Sequence[Detection], noun: str) -> list[XYXY]:
    """Each object of a noun once, as xyxy, best first; whatever order the detections have."""
    chosen = [d for d in detections if same_noun(d.phrase, noun)]
    chosen.sort(key=lambda d: (-d.score, d.box))
    boxes = [to_xyxy(d.box) for d in chosen]
    scores = np.array([d.score for d in chosen])
    return [boxes[n] for n in nms(np.array(boxes).reshape(-1, 4), scores, _SAME_OBJECT_IOU)]


def _way_of(relation: str) -> str:
    way = _WAY_OF.get(plain_noun(relation))
    if way is None:
        raise UserError(f"relation {relation!r} is not known; known are {', '.join(_WAY_OF)}")
    return way


def _way(box1: Sequence[float], box2: Sequence[float]) -> str | None:
    """Where box 1 lies from box 2; None: on the diagonal."""
    (x1, y1), (x2, y2) = center(box1), center(box2)
    dx, dy = x2 - x1, y2 - y1
    if abs(dx) == abs(dy):
        return None
    if abs(dx) > abs(dy):
        return "left" if dx > 0 else "right"
    return "above" if dy > 0 else "below"


def _size(box: Sequence[float]) -> float:
    return float(max(0, box[2] - box[0]) * max(0, box[3] - box[1])) ** 0.5


def _detections(detections: Iterable[Detection]) -> list[Detection]:
    return [_record(Detection, d) for d in detections]


def _record(kind: type[T], value: Any) -> T:
    if isinstance(value, kind):
        return value
    return kind(**value) if isinstance(value, Mapping) else kind(*value)
