"""The object-detector reward as the published T2I-R1 code computes it, faults and all.

For comparing numbers with it, never for training. The published caller counts an exception as 0, and so
do these functions. A comment marks each known fault; docs/detection.md lists them.
"""

from collections.abc import Sequence

import numpy as np

from policy.records import ObjectCount, SpatialInfo
from rewards.matching import Detection, center, nms, overlap, to_xyxy

_NEAR = ("next to", "on side of", "near")
# "above" and "on top of" are missing: they always give 0.
_DIRECTIONS = {
    "right of": (0, -1),
    "on the right of": (0, -1),
    "left of": (0, 1),
    "on the left of": (0, 1),
    "below": (1, -1),
    "on the bottom of": (1, -1),
    "top of": (1, 1),
    "on the top of": (1, 1),
}


def relation_score(
    box1: Sequence[float],
    box2: Sequence[float],
    relation: str,
    iou_threshold: float = 0.1,
    distance_threshold: float = 150,
) -> float:
    """xyxy boxes, in pixels, as the threshold expects (the published caller passed 0..1, so "near" is
    always 1)."""
    intersection, union = overlap(box1, box2)
    try:
        with np.errstate(invalid="ignore"):
            iou = intersection / union  # float32: 0 / 0 is nan, below and above nothing
    except ZeroDivisionError:
        return 0.0
    distance = [b - a for a, b in zip(center(box1), center(box2), strict=True)]
    if relation in _NEAR:
        if min(abs(distance[0]), abs(distance[1])) < distance_threshold:  # close in one axis is enough
            return 1.0
        return float(distance_threshold / max(abs(distance[0]), abs(distance[1])))
    if relation not in _DIRECTIONS:
        return 0.0
    axis, sign = _DIRECTIONS[relation]
    along, across = distance[axis] * sign, distance[1 - axis]
    if not (along > 0 and along > abs(across)):
        return 0.0
    if iou < iou_threshold:
        return 1.0
    return float(iou_threshold / iou) if iou >= iou_threshold else 0.0


def spatial_score(detections: Sequence[Detection], info: SpatialInfo) -> float:
    """At most 0.9: 0.2 for each object, and half the relation."""
    of1 = [d for d in detections if d.phrase == info.obj1]
    of2 = [d for d in detections if d.phrase == info.obj2]
    if not (of1 and of2):
        return 0.2 * bool(of1) + 0.2 * bool(of2)
    if info.obj1 == info.obj2:
        return 0.0  # an exception: all detections went to the first object
    box1, box2 = (
        to_xyxy(np.array(max(of, key=lambda d: d.score).box, np.float32)) for of in (of1, of2)
    )
    return 0.4 + relation_score(box1, box2, info.locality) / 2


def count_score(
    detections: Sequence[Detection], wanted: Sequence[ObjectCount], iou_threshold: float
) -> float:
    """A wrong count earns 0.2 of a right one, unless nothing at all was found."""
    score = 0.0
    for count in wanted:
        found = [d for d in detections if d.phrase == count.obj_name]
        if found:
            cxcywh = np.array([d.box for d in found], np.float32)  # read as xyxy: duplicates stay
            scores = np.array([d.score for d in found], np.float32)
            right = len(nms(cxcywh, scores, iou_threshold)) == count.num
            score += (1 if right else 0.2) * (1 / len(wanted))
    return score


def existence_score(detections: Sequence[Detection], nouns: Sequence[str]) -> float:
    phrases = {d.phrase for d in detections}
    score = 0.0
    for noun in nouns:
        if noun in phrases:
            score += 1 / len(nouns)
    return score
