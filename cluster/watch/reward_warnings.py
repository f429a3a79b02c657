"""Warns once when an expert begins to fail or to give constant scores; metrics count it while it
lasts."""

from collections.abc import Mapping

ALARMS = {
    "constant": "gave every image of the step the same score: it teaches nothing",
    "not_finite": "gave NaN or infinity instead of a score",
    "left_out": "gave no answer, and is left out of all rewards of the step",
}


class RewardWarnings:
    """Remembers which faults go on. A step in which an expert applies to nothing does not end its
    constant scores."""

    def __init__(self):
        self._going_on: set[tuple[str, str]] = set()

    def new(self, metrics: Mapping[str, float]) -> list[str]:
        """The warnings that begin with a step of these metrics (`expert/NAME/...`)."""
        lines = []
        for key, value in metrics.items():
            part, _, rest = key.partition("/")
            expert, _, alarm = rest.rpartition("/")
            if part != "expert" or alarm not in ALARMS:
                continue
            if value and (expert, alarm) not in self._going_on:
                lines.append(f"expert {expert} {ALARMS[alarm]}")
                self._going_on.add((expert, alarm))
            elif not value and (alarm != "constant" or f"expert/{expert}/std" in metrics):
                self._going_on.discard((expert, alarm))
        return lines
