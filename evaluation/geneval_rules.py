"""Decides from detections whether an image is right for a prompt of GenEval (arXiv 2310.11513, section
3): pure functions, in float32 as the published script computes.

- The detections of a class that count have a score above 0.3, above 0.9 in the task "counting"; at most
  the 16 best of them, best first. Of equal scores the later detection is the better one.
- A clause of `include` wants `count` detections of its class; the best `count` are looked at. So many
  of them must have its `color`. All must have the relation `position` to all detections of the clause
  that it points at; a clause that failed has none, and a clause that points at it fails as well.
- A clause of `exclude` fails if there are `count` detections of its class, or more.
- All clauses must hold. Two clauses on one class may be satisfied by the same detection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COLORS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
)
MOST = 16
"""How many detections of one class count at most."""
_THRESHOLD = 0.3
_COUNTING_THRESHOLD = 0.9
_DEAD_ZONE = 0.1  # share of the summed sizes within which an offset counts as none
_SAME_PLACE = 1e-3  # pixels


@dataclass(frozen=True)
class Detected:
    """An object that a detector found."""

    name: str
    box: tuple[float, float, float, float]
    """xyxy in pixels of the image; y grows downwards."""
    score: float
    color: str | None = None
    """One of COLORS; None: not determined."""


@dataclass(frozen=True)
class Verdict:
    """Whether an image is right; if not, a line on each clause that failed."""

    correct: bool
    reason: str = ""


def threshold(task: str) -> float:
    """A detection's score must be above it."""
    return _COUNTING_THRESHOLD if task == "counting" else _THRESHOLD


def kept(
    detections: Sequence[Detected], above: float, max_overlap: float = 1.0
) -> dict[str, list[Detected]]:
    """The detections that count, by class, best first. Below 1, `max_overlap` drops a detection whose
    IoU with a better one that is kept is as large."""
    found: dict[str, list[Detected]] = {}
    for detection in detections:
        if np.float32(detection.score) > np.float32(above):
            found.setdefault(detection.name, []).append(detection)
    return {name: _distinct(_best(some), max_overlap) for name, some in found.items()}


def ranked(scores: Sequence[float]) -> list[int]:
    """The indices of the scores, best first; of equal scores the later is the better one.

    That is the published order where NumPy's default sort keeps equals in theirs, as most do for a few.
    """
    return sorted(range(len(scores)), key=lambda n: (np.float32(scores[n]), n), reverse=True)


def _best(found: Sequence[Detected]) -> list[Detected]:
    return [found[n] for n in ranked([d.score for d in found])[:MOST]]


def _distinct(found: Sequence[Detected], max_overlap: float) -> list[Detected]:
    if max_overlap == 1:
        return list(found)
    chosen: list[Detected] = []
    for detection in found:
        if all(overlap(better.box, detection.box) < max_overlap for better in chosen):
            chosen.append(detection)
    return chosen


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """IoU of two boxes whose far edges belong to them, so that each is a pixel wider and higher."""
    first, second = np.array(a, np.float32), np.array(b, np.float32)
    shared = np.concatenate([np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])])
    intersection = _area(shared)
    union = _area(first) + _area(second) - intersection
    return float(intersection / union) if union else 0.0


def _area(box: np.ndarray) -> np.float32:
    width, height = np.maximum(box[2:] - box[:2] + np.float32(1), 0)
    return width * height


def relations(a: Sequence[float], b: Sequence[float]) -> tuple[str, ...]:
    """The relations of box a to box b: none, one, or on a diagonal two of left of, right of, above,
    below.

    The offset of the centers is shortened along each axis by a tenth of the summed sizes, and divided
    by its own length before that; a relation holds beyond one half.
    """
    boxes = np.array([a, b], np.float32).reshape(2, 2, 2)  # box, corner, axis
    centers = boxes.mean(axis=1)
    sizes = np.abs(boxes[:, 1] - boxes[:, 0])
    offset = centers[0] - centers[1]
    beyond = np.maximum(np.abs(offset) - _DEAD_ZONE * (sizes[0] + sizes[1]), 0) * np.sign(offset)
    if np.all(np.abs(beyond) < _SAME_PLACE):
        return ()
    dx, dy = beyond / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return tuple(name for name, is_so in holds.items() if is_so)


def decide(
    task: str,
    facts: Mapping[str, Any],
    detections: Sequence[Detected],
    max_overlap: float = 1.0,
) -> Verdict | None:
    """The verdict on one image. `facts`: the prompt's clauses, `include` and maybe `exclude`;
    `detections` in the detector's order. None: a color that decides is not known."""
    found = kept(detections, threshold(task), max_overlap)
    reasons: list[str] = []
    groups: list[list[Detected] | None] = []
    for clause in facts.get("include", ()):
        best = found.get(clause["class"], [])[: clause["count"]]
        if _color_unknown(clause, best):
            return None
        if reason := _wrong(clause, best, groups):
            reasons.append(reason)
        groups.append(None if reason else best)
    for clause in facts.get("exclude", ()):
        count = len(found.get(clause["class"], []))
        if count >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {count}")
    return Verdict(not reasons, "\n".join(reasons))


def _color_unknown(clause: Mapping[str, Any], best: Sequence[Detected]) -> bool:
    enough = len(best) == clause["count"]
    return "color" in clause and enough and any(d.color not in COLORS for d in best)


def _wrong(
    clause: Mapping[str, Any],
    best: Sequence[Detected],
    groups: Sequence[Sequence[Detected] | None],
) -> str:
    """Why the best detections of a clause's class fail it, in the published wording; "" if they do
    not."""
    name, count = clause["class"], clause["count"]
    if len(best) < count:
        return f"expected {name}>={count}, found {len(best)}"
    if color := clause.get("color"):
        seen = [d.color for d in best]
        if seen.count(color) < count:
            other = ", ".join(f"{seen.count(c)} {c}" for c in COLORS if c in seen)
            return f"expected {color} {name}>={count}, found {seen.count(color)} {color}; and {other}"
    if position := clause.get("position"):
        relation, target = position
        return _misplaced(name, relation, best, groups[target])
    return ""


def _misplaced(
    name: str, relation: str, best: Sequence[Detected], targets: Sequence[Detected] | None
) -> str:
    if targets is None:
        return f"no target for {name} to be {relation}"
    for detection in best:
        for target in targets:
            there = relations(detection.box, target.box)
            if relation not in there:
                return f"expected {name} {relation} target, found {' and '.join(there)} target"
    return ""
