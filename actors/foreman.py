"""The foreman: makes the driver's calls of rollout actors, one a batch, and waits for them.

A process of its own, for the sake of hundreds of actors: a call takes its caller 50 to 100 µs, and the
driver has one loop to run. Who calls owns what comes back, so with the foreman all samples are lost
that were not learned from yet; they can be drawn again.
"""

from collections.abc import Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.report import DrawReport


class Foreman:
    """Make it an actor with the concurrency groups `CONCURRENCY`: what comes first is drawn first, and
    waiting holds nothing up."""

    def __init__(self):
        self._calls = Calls(None, ())

    @ray.method(concurrency_group="draw")
    def draw(
        self, work: list[ObjectRef], sizes: Sequence[int], actors: list[ObjectRef]
    ) -> tuple[list[ObjectRef], list[ObjectRef]]:
        """Have actors draw batches of so many groups each, in turns. Returns at once: a reference to a
        list[Sample] for each group, and one to a DrawReport for each batch.

        `work` and `actors` are lists of one, so that the references themselves travel: to the Work that
        holds the batches, and to a list of the actors, each with its number.
        """
        if self._calls.made_of != actors[0]:
            self._calls = Calls(actors[0], ray.get(actors[0]))
        samples, reports = [], []
        for n, groups in enumerate(sizes):
            *drawn, report = self._calls.draw(work[0], n, groups)
            samples += drawn
            reports.append(report)
        return samples, reports

    @ray.method(concurrency_group="wait")
    def wait(
        self, reports: list[ObjectRef], at_once: int, timeout_s: float
    ) -> list[DrawReport | ObjectRef]:
        """Wait for drawings, of which so many are made at once: no longer than `timeout_s` for each
        turn, and for none after one that was not whole by then. Of a drawing that failed or is not
        there the reference comes back: to get it tells why."""
        for first in range(0, len(reports), at_once):
            turn = reports[first : first + at_once]
            if ray.wait(turn, num_returns=len(turn), timeout=timeout_s, fetch_local=False)[1]:
                break
        try:
            return ray.get(reports, timeout=0)
        except RayError:
            return list(map(_report_or_reference, reports))


CONCURRENCY = {"draw": 1, "wait": 8}


class Calls:
    """The actors' `draw`, with an object for each group and one for the report. Each is made once, for
    that takes time as well."""

    def __init__(self, made_of: ObjectRef | None, actors: Sequence[tuple[int, ActorHandle]]):
        """`made_of` refers to the list of actors, each with its number."""
        self.made_of = made_of
        self._actors = actors
        self._calls: dict[tuple[int, int], Any] = {}

    def draw(self, work: ObjectRef, n: int, groups: int) -> list[ObjectRef]:
        number, actor = self._actors[n % len(self._actors)]
        if (number, groups) not in self._calls:
            self._calls[number, groups] = actor.draw.options(num_returns=groups + 1)
        which = () if n == number else (n,)
        return self._calls[number, groups].remote(work, *which)


def _report_or_reference(ref: ObjectRef) -> DrawReport | ObjectRef:
    try:
        return ray.get(ref, timeout=0)
    except RayError:
        return ref
