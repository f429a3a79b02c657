"""Samples on order: groups are drawn by rollout actors, and judged as soon as they are drawn.

The driver submits both at once and moves references only, one for all samples of an order. The judge
has experts work on the first groups while others are still being drawn. Rewards are made of the
opinions when all groups of an order have theirs, so that they are comparable.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import ray
from ray import ObjectRef
from ray.util.placement_group import PlacementGroup

from actors.report import DrawReport
from cluster.config import RunConfig
from cluster.rollouts import LOST, Drawing, Rollouts
from policy.records import Batch, Group, Prompt, Sample, Scores
from policy.weights import PublishedWeights
from policy.work import Work
from rewards.ensemble import settle
from rewards.opinions import Failure, Opinions
from rewards.panel import Judge
from rewards.scale import RunningStats, heard_so_far


@dataclass(frozen=True)
class DrawnGroup:
    """`place` is its place in the order. `draws` counts how often it was drawn: more than once if an
    actor was lost over it."""

    group: Group
    place: int
    weights_version: int
    draws: int
    tokens: int
    """Of all its samples, both CoTs together."""

    @property
    def prompt(self) -> Prompt:
        return self.group.prompt


@dataclass(frozen=True)
class JudgedGroup(DrawnGroup):
    """A group that was drawn and scored."""

    scores: Scores


@dataclass
class Harvest:
    """What came of an order, and what it took. Times in seconds of the driver's waiting, but `sample`:
    the busiest actor's drawing, which may have happened while the driver did something else."""

    drawing: Drawing
    groups: list[JudgedGroup] = field(default_factory=list)
    reports: list[DrawReport] = field(default_factory=list)
    dropped: list[tuple[DrawnGroup, str]] = field(default_factory=list)
    """The groups that have no scores, each with the reason."""
    left_out: dict[str, Failure] = field(default_factory=dict)
    """The experts that no group's scores hear, each with its first failure."""
    opinions: list[Opinions] = field(default_factory=list)
    """Of every group, also of those without scores."""
    sample_s: float = 0.0
    pull_s: float = 0.0
    waited_for_draws_s: float = 0.0
    waited_for_scores_s: float = 0.0
    replaced: int = 0
    """Rollout actors that were lost meanwhile."""

    @property
    def failures(self) -> list[str]:
        """The groups that were dropped and why, for people."""
        return [f"{group.prompt.text!r}: {why}" for group, why in self.dropped]


@dataclass
class Order:
    """Groups that are being drawn and judged; `opinions` refers to a list of Opinions, one a group,
    None where the samples were lost."""

    drawing: Drawing
    opinions: ObjectRef


class Experience:
    """The rollout actors and the judge, as one thing that turns groups into judged groups."""

    def __init__(self, config: RunConfig, placement: PlacementGroup):
        """Starts the actors and waits until each holds the model. The experts must be running."""
        self.config = config
        self.rollouts = Rollouts(config, placement)
        self.running: dict[str, RunningStats] = {}
        judge = ray.remote(Judge).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
        self._judge = judge.remote(config.rewards)

    def order(self, groups: Sequence[Group], weights: PublishedWeights | None) -> Order:
        """Have groups drawn with these weights and judged. Returns at once."""
        batches = self._batches(groups)
        weights = self.rollouts.to_be_had(weights)
        work = ray.put(Work.of(batches, weights))
        drawing = self.rollouts.draw(batches, work, weights)
        return Order(drawing, self._judge.judge_all.remote(drawing.samples, work))

    def _heard(self, order: Order) -> list[Opinions]:
        """What the experts said of all groups. Samples that were lost before they were judged are
        drawn and judged again."""
        drawing, heard = order.drawing, ray.get(order.opinions)
        if None not in heard:
            return heard
        whole = iter(heard)
        by_batch = [list(islice(whole, len(batch))) for batch in drawing.batches]
        judged = dict.fromkeys((n for n, said in enumerate(by_batch) if None in said), 1)  # its draws
        while judged:
            parts = {n: drawing.part(n) for n in judged}
            for n, part in parts.items():
                if part.draws == judged[n]:
                    self.rollouts.redraw_lost(part)
            for part in parts.values():
                self.rollouts.wait_for(part)
            work = Work.of([part.batch for part in parts.values()], drawing.weights)
            samples = [group for part in parts.values() for group in part.samples]
            again = iter(ray.get(self._judge.judge_all.remote(samples, work)))
            for n, part in parts.items():
                by_batch[n] = list(islice(again, len(part.batch)))
            judged = {n: part.draws for n, part in parts.items() if None in by_batch[n]}
        return [opinions for said in by_batch for opinions in said]

    def _batches(self, groups: Sequence[Group]) -> list[Batch]:
        """Cut for all actors, ready or not: a log-probability's last bits depend on its batch."""
        return cut_in_batches(groups, len(self.rollouts), self.config.actors.batch_size)

    def collect(self, order: Order, *, learn: bool = True) -> Harvest:
        """Wait for an order. A group without scores is left out, and told of.

        The statistics of experts with `normalize: running` grow with every order that is learned from.
        Elsewhere such experts count on their own scale, so that two evaluations can be compared.
        """
        drawing = order.drawing
        started = time.perf_counter()
        replaced = self.rollouts.replaced
        reports = self.rollouts.wait(drawing)
        drawn = time.perf_counter()
        rewards = self.config.rewards
        opinions = self._heard(order)
        heard = time.perf_counter()
        harvest = Harvest(drawing, reports=reports, opinions=opinions)
        if learn:
            self.running = heard_so_far(self.running, harvest.opinions, rewards)
        settled = settle(harvest.opinions, rewards, self.running if learn else {})
        harvest.left_out = settled.left_out
        scores = iter(enumerate(settled.scores))
        busy, pulls = np.zeros(len(self.rollouts)), np.zeros(len(self.rollouts))
        for n, (batch, report) in enumerate(zip(drawing.batches, reports, strict=True)):
            busy[drawing.drawn_by(n)] += report.draw_s
            pulls[drawing.drawn_by(n)] += report.pull_s
            for (group, tokens), (place, found) in zip(
                zip(batch, report.group_tokens, strict=True), scores, strict=False
            ):
                drawn_group = group, place, report.weights_version, drawing.draws(n), tokens
                if isinstance(found, str):
                    harvest.dropped.append((DrawnGroup(*drawn_group), found))
                else:
                    harvest.groups.append(JudgedGroup(*drawn_group, found))
        harvest.waited_for_draws_s = drawn - started
        harvest.waited_for_scores_s = heard - drawn
        harvest.sample_s, harvest.pull_s = float(busy.max()), float(pulls.max())
        harvest.replaced = self.rollouts.replaced - replaced
        return harvest

    def samples(self, harvest: Harvest, groups: Sequence[DrawnGroup]) -> list[list[Sample]]:
        """The samples of some groups of a harvest; drawn again if they were lost since."""
        drawing = harvest.drawing
        refs = ray.get(drawing.all_samples())
        try:
            return ray.get([refs[group.place] for group in groups])
        except LOST:
            parts = [drawing.part(n) for n in range(len(drawing.batches))]
            drawn = [samples for part in parts for samples in self.rollouts.samples(part)]
            return [drawn[group.place] for group in groups]


def cut_in_batches(groups: Sequence[Group], actors: int, batch_size: int) -> list[Batch]:
    """Cut groups, in their order, into batches of whole groups, at most `batch_size` samples each; a
    group that is larger is a batch of its own.

    The actors take the batches in turns, so a round costs as much as its largest batch. There are as
    few rounds as possible, and the batches of all rounds differ by one group at most.
    """
    if not groups:
        return []
    rounds = max(1, -(-sum(map(len, groups)) // (actors * batch_size)))
    while True:
        number = min(len(groups), rounds * actors)
        size, larger = divmod(len(groups), number)
        rest = iter(groups)
        batches = [tuple(islice(rest, size + (n < larger))) for n in range(number)]
        if all(len(batch) == 1 or sum(map(len, batch)) <= batch_size for batch in batches):
            return batches
        rounds += 1
