"""The rollout actors as one thing that never loses an order.

An order that an actor took down with it is given to another, and comes out the same: tokens are a
function of the order, not of the actor.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.rollout import DrawReport, RolloutActor
from cluster.config import RunConfig
from policy.errors import UserError
from policy.records import Batch
from policy.weights import PublishedWeights
from policy.work import Work

log = logging.getLogger(__name__)
LOST = (RayActorError, GetTimeoutError, ObjectLostError)
"""The actor died, did not answer in time, or its node took its samples with it."""


@dataclass
class Drawing:
    """A batch that an actor draws; `samples` refers to one list[Sample] a group. It changes
    hands if the actor is lost; `draws` counts."""

    batch: Batch
    weights: PublishedWeights | None
    number: int
    actor: ActorHandle
    samples: list[ObjectRef]
    report: ObjectRef
    draws: int = 1


class Rollouts:
    def __init__(self, config: RunConfig, placement: PlacementGroup):
        """Starts the actors and waits until each holds the model. Raises UserError if one cannot."""
        self._config = config
        self._placement = placement
        self.actors = [self._start(number) for number in range(config.actors.count)]
        self.replaced = 0
        self._calls: dict[tuple[int, int], Any] = {}
        self.restore: Callable[[PublishedWeights], PublishedWeights] = lambda weights: weights
        """Makes a version that was broadcast one that can be pulled."""
        try:
            ray.get([actor.ready.remote() for actor in self.actors])
        except RayActorError as error:
            reason = str(error).strip().splitlines()[-1].removeprefix("policy.errors.UserError: ")
            raise UserError(f"a rollout actor does not start: {reason}") from error

    def __len__(self) -> int:
        return len(self.actors)

    def to_be_had(self, weights: PublishedWeights | None) -> PublishedWeights | None:
        """A version that all actors have or can pull. One that was broadcast, actors that have come
        since were not there for."""
        if self.replaced and weights is not None and weights.parts is None:
            return self.restore(weights)
        return weights

    def draw(
        self, batches: Sequence[Batch], work: ObjectRef, weights: PublishedWeights | None
    ) -> list[Drawing]:
        """Have the actors draw these batches, in turns, with these weights, which are to be had. `work`
        refers to the Work of both. Returns at once."""
        drawings = []
        for n, batch in enumerate(batches):
            number = n % len(self.actors)
            which = () if n == number else (n,)
            *samples, report = self._call(number, len(batch)).remote(work, *which)
            drawings.append(Drawing(batch, weights, number, self.actors[number], samples, report))
        return drawings

    def _call(self, number: int, groups: int):
        """An actor's `draw` with an object for each group and one for the report. Kept, for to make it
        takes the driver's time as well."""
        if (number, groups) not in self._calls:
            self._calls[number, groups] = self.actors[number].draw.options(num_returns=groups + 1)
        return self._calls[number, groups]

    def wait_for_all(self, drawings: Sequence[Drawing]) -> list[DrawReport]:
        """Their reports, as of `wait`, but all asked for at once. Each batch may take its time: an
        actor that has several has as much longer."""
        longest = max(Counter(drawing.number for drawing in drawings).values(), default=1)
        reports = [drawing.report for drawing in drawings]
        try:
            return ray.get(reports, timeout=longest * self._config.actors.timeout_s)
        except GetTimeoutError as error:
            done = set(ray.wait(reports, num_returns=len(reports), timeout=0)[0])
            for drawing, report in zip(drawings, reports, strict=True):
                if report not in done:
                    self.redraw(drawing, error)
        except LOST:
            pass  # `wait` finds out who
        return [self.wait(drawing) for drawing in drawings]

    def wait(self, drawing: Drawing) -> DrawReport:
        """Its report, when it is drawn; `drawing` has the samples of who drew it in the end.

        Raises the last error after `actors.max_redraws` actors were lost over it, and at once what an
        actor itself raised.
        """
        while True:
            try:
                return ray.get(drawing.report, timeout=self._config.actors.timeout_s)
            except LOST as error:
                self.redraw(drawing, error)

    def redraw(self, drawing: Drawing, why: Exception) -> None:
        """Give a drawing to the next actor, and replace the one that had it. Raises `why` after
        `actors.max_redraws` times."""
        if drawing.draws > self._config.actors.max_redraws:
            raise why
        self._replace(drawing.number, drawing.actor, why)
        other = (drawing.number + 1) % len(self.actors)
        drawing.number, drawing.actor = other, self.actors[other]
        work = Work.of((drawing.batch,), self.to_be_had(drawing.weights))
        *drawing.samples, drawing.report = self._call(other, len(drawing.batch)).remote(work, 0)
        drawing.draws += 1

    def _replace(self, number: int, lost: ActorHandle, why: Exception) -> None:
        if self.actors[number] is not lost:
            return  # another of its drawings told of it before
        kind = "hangs" if isinstance(why, GetTimeoutError) else "is lost"
        log.warning("rollout actor %d %s; its groups are drawn again, a new one starts", number, kind)
        ray.kill(lost)
        self._calls = {key: call for key, call in self._calls.items() if key[0] != number}
        self.actors[number] = self._start(number)
        self.replaced += 1

    def _start(self, number: int) -> ActorHandle:
        config = self._config.actors
        place = PlacementGroupSchedulingStrategy(self._placement, number)
        options = {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus}
        if config.resources:
            options["resources"] = config.resources
        actor = ray.remote(RolloutActor).options(**options, scheduling_strategy=place)
        return actor.remote(self._config.policy, config, self._config.seed, number)
