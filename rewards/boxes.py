"""Detections and their boxes: how far boxes overlap, and which of many say the same thing twice.

Two ways to write a box: xyxy (left, top, right, bottom) and cxcywh (centre, width, height).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

XYXY: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """An object that was found in an image."""

    phrase: str
    score: float
    """0..1: how sure the detector is."""
    box: tuple[float, float, float, float]
    """cxcywh, in 0..1 of the image's width and height."""


def to_xyxy(cxcywh: Sequence[float]) -> XYXY:
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
