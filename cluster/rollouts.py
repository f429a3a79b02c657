"""The rollout actors as one thing that never loses an order.

An order that an actor took down with it is given to another, and comes out the same: tokens are a
function of the order, not of the actor.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.rollout import DrawReport, RolloutActor
from cluster.config import RunConfig
from cluster.prompt_stream import Group
from policy.errors import UserError
from policy.weights import PublishedWeights

log = logging.getLogger(__name__)
LOST = (RayActorError, GetTimeoutError, ObjectLostError)
"""The actor died, did not answer in time, or its node took its samples with it."""


@dataclass
class Drawing:
    """Groups that an actor draws in one batch; `samples` refers to one list[Sample] a group. It changes
    hands if the actor is lost; `draws` counts."""

    groups: Sequence[Group]
    weights: PublishedWeights | None
    number: int
    actor: ActorHandle
    samples: list[ObjectRef]
    report: ObjectRef
    opinions: list[ObjectRef] = field(default_factory=list)
    """One a group, of who judges them."""
    draws: int = 1


class Rollouts:
    def __init__(self, config: RunConfig, placement: PlacementGroup):
        """Starts the actors and waits until each holds the model. Raises UserError if one cannot."""
        self._config = config
        self._placement = placement
        self.actors = [self._start(number) for number in range(config.actors.count)]
        self.replaced = 0
        self.restore: Callable[[PublishedWeights], PublishedWeights] = lambda weights: weights
        """Makes a version that was broadcast one that can be pulled."""
        try:
            ray.get([actor.ready.remote() for actor in self.actors])
        except RayActorError as error:
            reason = str(error).strip().splitlines()[-1].removeprefix("policy.errors.UserError: ")
            raise UserError(f"a rollout actor does not start: {reason}") from error

    def __len__(self) -> int:
        return len(self.actors)

    def draw(self, number: int, groups: Sequence[Group], weights: PublishedWeights | None) -> Drawing:
        """Have one actor draw these groups with these weights. Returns at once."""
        actor = self.actors[number]
        if self.replaced and weights is not None and weights.manifest is None:
            weights = self.restore(weights)
        *samples, report = actor.draw.options(num_returns=len(groups) + 1).remote(groups, weights)
        return Drawing(groups, weights, number, actor, samples, report)

    def wait(self, drawing: Drawing) -> DrawReport:
        """Its report, when it is drawn; `drawing` has the samples of who drew it in the end.

        Raises the last error after `actors.max_redraws` actors were lost over it, and at once what an
        actor itself raised.
        """
        while True:
            try:
                return ray.get(drawing.report, timeout=self._config.actors.timeout_s)
            except LOST as error:
                if drawing.draws > self._config.actors.max_redraws:
                    raise
                self.redraw(drawing, error)

    def redraw(self, drawing: Drawing, why: Exception) -> None:
        """Give a drawing to the next actor, and replace the one that had it."""
        self._replace(drawing.number, drawing.actor, why)
        again = self.draw((drawing.number + 1) % len(self.actors), drawing.groups, drawing.weights)
        drawing.number, drawing.actor = again.number, again.actor
        drawing.samples, drawing.report = again.samples, again.report
        drawing.draws += 1

    def _replace(self, number: int, lost: ActorHandle, why: Exception) -> None:
        if self.actors[number] is not lost:
            return  # another of its drawings told of it before
        kind = "hangs" if isinstance(why, GetTimeoutError) else "is lost"
        log.warning("rollout actor %d %s; its groups are drawn again, a new one starts", number, kind)
        ray.kill(lost)
        self.actors[number] = self._start(number)
        self.replaced += 1

    def _start(self, number: int) -> ActorHandle:
        config = self._config.actors
        place = PlacementGroupSchedulingStrategy(self._placement, number)
        options = {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus}
        if config.resources:
            options["resources"] = config.resources
        actor = ray.remote(RolloutActor).options(**options, scheduling_strategy=place)
        return actor.remote(self._config.policy, config, self._config.seed)
