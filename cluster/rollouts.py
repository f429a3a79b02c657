"""The rollout actors as one thing that never loses an order.

An order that an actor took down with it is given to another, and comes out the same: tokens are a
function of the order, not of the actor.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, ObjectLostError, OwnerDiedError, RayActorError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from actors.foreman import CONCURRENCY, Foreman
from actors.report import DrawReport
from actors.rollout import RolloutActor
from cluster.config import RunConfig
from policy.errors import UserError
from policy.records import Batch, Sample
from policy.weights import PublishedWeights
from policy.work import Work

log = logging.getLogger(__name__)
LOST = (RayActorError, GetTimeoutError, ObjectLostError)
"""The actor died, did not answer in time, or its node took its samples with it."""


@dataclass
class Part:
    """A batch that was lost on its way and is drawn again; `samples` refers to one list[Sample] a
    group. It changes hands with every actor that is lost over it; `draws` counts."""

    batch: Batch
    weights: PublishedWeights | None
    number: int
    actor: ActorHandle
    samples: list[ObjectRef]
    report: ObjectRef
    draws: int = 1


@dataclass
class Drawing:
    """Batches that some actors draw in turns, called by the foreman: each actor, as it was then, with
    its number. `samples` refers to a list of references, one a group, to its list[Sample], and
    `reports` to one of references, one a batch, to a DrawReport. Batches that were lost, by their
    place, are `parts`."""

    batches: Sequence[Batch]
    weights: PublishedWeights | None
    actors: Sequence[tuple[int, ActorHandle]]
    samples: ObjectRef
    reports: ObjectRef
    parts: dict[int, Part] = field(default_factory=dict)

    def part(self, n: int) -> Part:
        if n not in self.parts:
            batch, (number, actor) = self.batches[n], self.actors[n % len(self.actors)]
            first = sum(map(len, self.batches[:n]))
            samples = ray.get(self.samples)[first : first + len(batch)]
            report = ray.get(self.reports)[n]
            self.parts[n] = Part(batch, self.weights, number, actor, samples, report)
        return self.parts[n]

    def drawn_by(self, n: int) -> int:
        """The number of the actor that drew a batch in the end."""
        return self.parts[n].number if n in self.parts else self.actors[n % len(self.actors)][0]

    def draws(self, n: int) -> int:
        """How often a batch was drawn."""
        return self.parts[n].draws if n in self.parts else 1

    def all_samples(self) -> ObjectRef:
        """`samples`, with those of the parts in their places."""
        if not self.parts:
            return self.samples
        drawn = iter(ray.get(self.samples))
        whole: list[ObjectRef] = []
        for n, batch in enumerate(self.batches):
            first = list(islice(drawn, len(batch)))
            whole += self.parts[n].samples if n in self.parts else first
        return ray.put(whole)


class Rollouts:
    def __init__(self, config: RunConfig, placement: PlacementGroup):
        """Starts the actors and waits until each holds the model. Raises UserError if one cannot."""
        self._config = config
        self._placement = placement
        self.actors = [self._start(number) for number in range(config.actors.count)]
        self._called: tuple[list[int], ObjectRef] | None = None
        self._foreman = start_foreman()
        self._latest: ObjectRef | None = None
        self._loading: dict[int, ObjectRef] = {}
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

    def at_work(self) -> list[int]:
        """The numbers of the actors that hold the model; of all, if none does."""
        if self._loading:
            loaded, _ = ray.wait([*self._loading.values()], num_returns=len(self._loading), timeout=0)
            self._loading = {n: ref for n, ref in self._loading.items() if ref not in loaded}
        everyone = range(len(self.actors))
        return [n for n in everyone if n not in self._loading] or list(everyone)

    def to_be_had(self, weights: PublishedWeights | None) -> PublishedWeights | None:
        """A version that all actors have or can pull. One that was broadcast, actors that have come
        since were not there for."""
        if self.replaced and weights is not None and weights.parts is None:
            return self.restore(weights)
        return weights

    def draw(
        self, batches: Sequence[Batch], work: ObjectRef, weights: PublishedWeights | None
    ) -> Drawing:
        """Have the actors that are at work draw these batches, in turns, with these weights, which are
        to be had. `work` refers to the Work of both. Returns at once."""
        numbers = self.at_work()
        actors = [(n, self.actors[n]) for n in numbers]
        if self._called is None or self._called[0] != numbers:
            self._called = numbers, ray.put(actors)
        samples, reports = self._foreman.draw.options(num_returns=2).remote(
            [work], list(map(len, batches)), [self._called[1]]
        )
        self._latest = samples
        return Drawing(batches, weights, actors, samples, reports)

    def wait(self, drawing: Drawing) -> list[DrawReport]:
        """The batches' reports, when all are drawn, by whomever in the end. Each may take
        `actors.timeout_s`; an actor that has several has as much longer.

        Raises the last error after `actors.max_redraws` actors were lost over a batch, and what an
        actor itself raised.
        """
        self._wait_for_loading(n for n, actor in drawing.actors if actor is self.actors[n])
        at_once, limit_s = len(drawing.actors), self._config.actors.timeout_s
        found = ray.get(self._foreman.wait.remote(drawing.reports, at_once, limit_s))
        late = [n for n, report in enumerate(found) if isinstance(report, ObjectRef)]
        missing = [n for n in late if not ray.wait([found[n]], timeout=0)[0]]
        for n in missing:
            # Of a later turn only what was with the same actors: others may still be drawing theirs.
            part = drawing.part(n)
            if n // at_once == missing[0] // at_once or self.actors[part.number] is not part.actor:
                self.redraw(part, GetTimeoutError(f"not drawn within {limit_s:g} s"))
        for n in late:
            found[n] = self.wait_for(drawing.part(n))
        # What was ordered since is with the actors before anything else is asked of them: weights that
        # are broadcast may not overtake the foreman.
        ray.wait([self._latest])
        return found

    def wait_for(self, part: Part) -> DrawReport:
        """Its report, when it is drawn; `part` has the samples of who drew it in the end. Raises as
        `wait` does."""
        while True:
            self._wait_for_loading([part.number])
            try:
                return ray.get(part.report, timeout=self._config.actors.timeout_s)
            except LOST as error:
                self.redraw(part, error)

    def samples(self, part: Part) -> list[list[Sample]]:
        """Of each group of a batch that was drawn; drawn again if they were lost. Raises as `wait`
        does."""
        while True:
            try:
                return ray.get(part.samples, timeout=self._config.actors.timeout_s)
            except LOST as error:
                self.redraw(part, error)
                self.wait_for(part)

    def redraw_lost(self, part: Part) -> None:
        """Redraw a batch that was drawn, and whose samples are gone."""
        why: Exception = RuntimeError("samples were lost before a judgement")
        try:
            ray.get(part.samples, timeout=self._config.actors.timeout_s)
        except LOST as error:
            why = error
        self.redraw(part, why)

    def redraw(self, part: Part, why: Exception) -> None:
        """Give a batch to the next actor that is at work, and replace the one that had it; if only the
        foreman was lost, with the references, to the same actor. Raises `why` after
        `actors.max_redraws` times."""
        if part.draws > self._config.actors.max_redraws:
            raise why
        if not isinstance(why, OwnerDiedError):
            self._replace(part.number, part.actor, why)
            others = [n for n in self.at_work() if n != part.number] or [part.number]
            part.number = min(others, key=lambda n: (n - part.number) % len(self.actors))
        part.actor = self.actors[part.number]
        work = Work.of((part.batch,), self.to_be_had(part.weights))
        draw = part.actor.draw.options(num_returns=len(part.batch) + 1)
        *part.samples, part.report = draw.remote(work, 0)
        part.draws += 1

    def _wait_for_loading(self, numbers: Iterable[int]) -> None:
        """Until these actors hold the model, where there were no others: that takes its time, which is
        not that of a drawing. One that cannot load it fails its drawing."""
        if loading := [self._loading.pop(n) for n in numbers if n in self._loading]:
            limit_s = self._config.ray.start_timeout_s
            ray.wait(loading, num_returns=len(loading), timeout=limit_s)

    def _replace(self, number: int, lost: ActorHandle, why: Exception) -> None:
        if self.actors[number] is not lost:
            return  # another of its drawings told of it before
        kind = "hangs" if isinstance(why, GetTimeoutError) else "is lost"
        log.warning("rollout actor %d %s; its groups are drawn again, a new one starts", number, kind)
        ray.kill(lost)
        self.actors[number] = self._start(number)
        self._loading[number] = self.actors[number].ready.remote()
        self._called = None
        self.replaced += 1

    def _start(self, number: int) -> ActorHandle:
        config = self._config.actors
        place = PlacementGroupSchedulingStrategy(self._placement, number)
        options = {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus}
        if config.resources:
            options["resources"] = config.resources
        actor = ray.remote(RolloutActor).options(**options, scheduling_strategy=place)
        return actor.remote(self._config.policy, config, self._config.seed, number)


def start_foreman() -> ActorHandle:
    """On this node: if that is lost, all is."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        concurrency_groups=CONCURRENCY,
        scheduling_strategy=here,
    )
    return actor(Foreman).remote()
