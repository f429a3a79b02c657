"""Samples on order: groups are drawn by rollout actors, and judged as soon as they are drawn.

The driver submits both at once and moves references only. Ray starts the judging of a group when its
samples exist, so experts work on the first groups while others are still being drawn. Rewards are made
of the opinions when all groups of an order have theirs, so that they are comparable.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import ObjectLostError, RayTaskError
from ray.util.placement_group import PlacementGroup

from actors.rollout import DrawReport
from cluster.config import RunConfig
from cluster.prompt_stream import Group
from cluster.rollouts import LOST, Drawing, Rollouts
from policy.records import Prompt, Scores
from policy.weights import PublishedWeights
from rewards.ensemble import settle
from rewards.opinions import Failure, Opinions
from rewards.panel import Judge
from rewards.scale import RunningStats, heard_so_far


@dataclass(frozen=True)
class DrawnGroup:
    """`samples` refers to its list[Sample]; `draws` counts how often it was drawn: more than once if an
    actor was lost over it."""

    group: Group
    samples: ObjectRef
    weights_version: int
    draws: int

    @property
    def prompt(self) -> Prompt:
        return self.group[0].prompt


@dataclass(frozen=True)
class JudgedGroup(DrawnGroup):
    """A group that was drawn and scored."""

    scores: Scores


@dataclass
class Harvest:
    """What came of an order, and what it took. Times in seconds of the driver's waiting, but `sample`:
    the busiest actor's drawing, which may have happened while the driver did something else."""

    order: list[Group] = field(default_factory=list)
    """All groups, as they were ordered."""
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


Order = list[Drawing]


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
        chunks = self._chunks(groups)
        numbers = islice(cycle(range(len(self.rollouts))), len(chunks))
        order = [
            self.rollouts.draw(number, chunk, weights)
            for chunk, number in zip(chunks, numbers, strict=True)
        ]
        for drawing in order:
            self._have_judged(drawing)
        return order

    def _have_judged(self, drawing: Drawing) -> None:
        drawing.opinions = [
            self._judge.judge.remote([samples], [draw.prompt for draw in group])
            for group, samples in zip(drawing.groups, drawing.samples, strict=True)
        ]

    def _wait(self, drawing: Drawing) -> DrawReport:
        draws = drawing.draws
        report = self.rollouts.wait(drawing)
        if drawing.draws > draws:
            self._have_judged(drawing)
        return report

    def _heard(self, drawing: Drawing) -> list[Opinions]:
        """What the experts said of a drawing's groups. Samples that were lost before they were judged
        are drawn again."""
        while True:
            try:
                return ray.get(drawing.opinions)
            except (ObjectLostError, RayTaskError) as error:
                lost = isinstance(getattr(error, "cause", error), LOST)
                if not lost or drawing.draws > self.config.actors.max_redraws:
                    raise
                self.rollouts.redraw(drawing, error)
                self._wait(drawing)
                self._have_judged(drawing)

    def _chunks(self, groups: Sequence[Group]) -> list[list[Group]]:
        """Cut into batches of whole groups, so that no actor idles while another draws two."""
        share = -(-sum(map(len, groups)) // len(self.rollouts))
        limit = min(self.config.actors.batch_size, share)
        chunks: list[list[Group]] = []
        for group in groups:
            if chunks and sum(map(len, chunks[-1])) + len(group) <= limit:
                chunks[-1].append(group)
            else:
                chunks.append([group])
        return chunks

    def collect(self, order: Order, *, learn: bool = True) -> Harvest:
        """Wait for an order. A group without scores is left out, and told of.

        The statistics of experts with `normalize: running` grow with every order that is learned from.
        Elsewhere such experts count on their own scale, so that two evaluations can be compared.
        """
        harvest = Harvest()
        started = time.perf_counter()
        replaced = self.rollouts.replaced
        harvest.order = [group for drawing in order for group in drawing.groups]
        harvest.reports = [self._wait(drawing) for drawing in order]
        drawn = time.perf_counter()
        rewards = self.config.rewards
        harvest.opinions = [said for drawing in order for said in self._heard(drawing)]
        if learn:
            self.running = heard_so_far(self.running, harvest.opinions, rewards)
        settled = settle(harvest.opinions, rewards, self.running if learn else {})
        harvest.left_out = settled.left_out
        scores = iter(settled.scores)
        for drawing, report in zip(order, harvest.reports, strict=True):
            for group, samples in zip(drawing.groups, drawing.samples, strict=True):
                drawn_group = DrawnGroup(group, samples, report.weights_version, drawing.draws)
                found = next(scores)
                if isinstance(found, str):
                    harvest.dropped.append((drawn_group, found))
                else:
                    harvest.groups.append(JudgedGroup(**vars(drawn_group), scores=found))
        harvest.waited_for_draws_s = drawn - started
        harvest.waited_for_scores_s = time.perf_counter() - drawn
        busy, pulls = np.zeros(len(self.rollouts)), np.zeros(len(self.rollouts))
        for drawing, report in zip(order, harvest.reports, strict=True):
            busy[drawing.number] += report.draw_s
            pulls[drawing.number] += report.pull_s
        harvest.sample_s, harvest.pull_s = float(busy.max()), float(pulls.max())
        harvest.replaced = self.rollouts.replaced - replaced
        return harvest
