"""Warns once when images begin to look unlike those that the run began with.

Before a gamed reward falls, the pictures get flat, noisy, grey, or all the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

FIRST = 20  # steps that define the usual value
RECENT = 10  # steps whose mean is compared with that
SPREADS = 3.0  # standard deviations of the first steps
SHARE = 0.25  # of the first steps' mean


@dataclass(frozen=True)
class _Watched:
    """A metric `image/...`, and what its rise and its fall mean. `least` is the smallest change that
    counts, beside `SPREADS` and `SHARE`; "" means no warning."""

    label: str
    falls: str
    rises: str
    least: float = 0.0


WATCHED = {
    "image/edge_density": _Watched("edge density", "flatter", "busier, with more texture or noise"),
    "image/color_entropy": _Watched("entropy of colours", "fewer in colours", "richer in colours"),
    "image/brightness": _Watched("brightness", "darker", "brighter"),
    "image/saturation": _Watched("saturation", "greyer", "more saturated", 0.05),
    "image/near_duplicates": _Watched(
        "near duplicates within a group", "", "more alike within a group", 0.1
    ),
}


@dataclass
class ImageDrift:
    """Remembers the first and the recent steps. A warning can come again once the number is halfway
    back."""

    _first: dict[str, list[float]] = field(default_factory=dict)
    _recent: dict[str, list[float]] = field(default_factory=dict)
    _going_on: set[str] = field(default_factory=set)

    @classmethod
    def after(cls, steps: Iterable[Mapping[str, Any]]) -> Self:
        """The state after these steps, whose warnings are not repeated."""
        drift = cls()
        for metrics in steps:
            drift.new(metrics)
        return drift

    def new(self, metrics: Mapping[str, Any]) -> list[str]:
        """The warnings that begin with a step of these metrics."""
        lines = (self._look(name, metrics[name]) for name in WATCHED if metrics.get(name) is not None)
        return [line for line in lines if line]

    def _look(self, name: str, value: float) -> str:
        first = self._first.setdefault(name, [])
        if len(first) < FIRST:
            first.append(value)
            return ""
        recent = self._recent.setdefault(name, [])
        recent.append(value)
        del recent[:-RECENT]
        if len(recent) < RECENT:
            return ""
        watched, began, now = WATCHED[name], float(np.mean(first)), float(np.mean(recent))
        limit = max(SPREADS * float(np.std(first)), SHARE * began, watched.least)
        change = now - began
        if abs(change) <= limit / 2:
            self._going_on.discard(name)
        what = watched.rises if change > 0 else watched.falls
        if abs(change) <= limit or not what or name in self._going_on:
            return ""
        self._going_on.add(name)
        return (
            f"the images get {what}: {watched.label} {began:.2f} -> {now:.2f} (the first {FIRST} steps,"
            f" the last {RECENT}); look at samples/, for the reward may be gamed"
        )
