"""Curves that need no chart: faults that never happened, and numbers that never changed."""

from dataclasses import dataclass, field

from cluster.watch.curves import Points

_FAULTS = {
    "groups/dropped": "groups dropped",
    "actors/replaced": "rollout workers lost",
    "learner/restarts": "learner restarts",
    "step/skipped": "steps skipped",
}
_OF_EXPERTS = {
    "retries": "experts asked again",
    "failures": "answers missing",
    "left_out": "experts left out",
    "constant": "constant scores",
    "not_finite": "scores that are no numbers",
}


@dataclass
class Folded:
    """`curves` are those to draw. `no_faults`: faults that were counted and never happened; `faults`:
    whether any other fault was counted. `unchanged`: the other flat curves by name, with their one
    value."""

    curves: dict[str, Points] = field(default_factory=dict)
    no_faults: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unchanged: dict[str, float] = field(default_factory=dict)


def fold(curves: dict[str, Points]) -> Folded:
    """Sort every curve into exactly one place. A curve of one point is drawn: whether it changes is not
    known."""
    folded, counted = Folded(), dict[str, bool]()
    for name, points in curves.items():
        fault, flat = _fault(name), len({value for _, value in points}) == 1
        if fault:
            happened = not flat or points[0][1] != 0
            counted[fault] = counted.get(fault, False) or happened
            if happened:
                folded.curves[name] = points
        elif flat and len(points) > 1 and not name.startswith(("reward/", "eval/", "bench/")):
            folded.unchanged[name] = points[0][1]
        else:
            folded.curves[name] = points
    folded.no_faults = [fault for fault, happened in counted.items() if not happened]
    folded.faults = [fault for fault, happened in counted.items() if happened]
    return folded


def _fault(name: str) -> str | None:
    """A description of the fault that a curve counts; None: it counts no fault."""
    if name.startswith("expert/"):
        return _OF_EXPERTS.get(name.rpartition("/")[2])
    return _FAULTS.get(name)
