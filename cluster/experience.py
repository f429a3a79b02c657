"""Samples on order: groups are drawn by rollout actors, and judged as soon as they are drawn.

The driver submits both at once and moves references only. The judge has experts work on the first
groups while others are still being drawn. Rewards are made of the opinions when all groups of an order
have theirs, so that they are comparable.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import ray
from ray import ObjectRef
from ray.util.placement_group import PlacementGroup

from actors.rollout import DrawReport
from cluster.config import RunConfig
from cluster.rollouts import Drawing, Rollouts
from policy.records import Batch, Group, Prompt, Scores
from policy.weights import PublishedWeights
from policy.work import Work
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
        return self.group.prompt


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


@dataclass
class Order:
    """Groups that are being drawn and judged; `opinions` refers to a list of Opinions, one a group,
    None where the samples were lost."""

    drawings: list[Drawing]
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
        drawings = self.rollouts.draw(batches, work, weights)
        samples = [samples for drawing in drawings for samples in drawing.samples]
        return Order(drawings, self._judge.judge_all.remote(samples, work))

    def _heard(self, order: Order) -> list[Opinions]:
        """What the experts said of all groups. Samples that were lost before they were judged are
        drawn and judged again."""
        said = iter(ray.get(order.opinions))
        heard: list[Opinions] = []
        for drawing in order.drawings:
            opinions, judged = list(islice(said, len(drawing.batch))), 1
            while None in opinions:
                if judged == drawing.draws:
                    self.rollouts.redraw(drawing, RuntimeError("samples were lost before a judgement"))
                    self.rollouts.wait(drawing)
                judged = drawing.draws
                work = Work.of((drawing.batch,), drawing.weights)
                opinions = ray.get(self._judge.judge_all.remote(drawing.samples, work))
            heard += opinions
        return heard

    def _batches(self, groups: Sequence[Group]) -> list[Batch]:
        """Cut into batches of whole groups, so that no actor idles while another draws two."""
        share = -(-sum(map(len, groups)) // len(self.rollouts))
        limit = min(self.config.actors.batch_size, share)
        batches: list[list[Group]] = []
        for group in groups:
            if batches and sum(map(len, batches[-1])) + len(group) <= limit:
                batches[-1].append(group)
            else:
                batches.append([group])
        return list(map(tuple, batches))

    def collect(self, order: Order, *, learn: bool = True) -> Harvest:
        """Wait for an order. A group without scores is left out, and told of.

        The statistics of experts with `normalize: running` grow with every order that is learned from.
        Elsewhere such experts count on their own scale, so that two evaluations can be compared.
        """
        harvest = Harvest()
        started = time.perf_counter()
        replaced = self.rollouts.replaced
        harvest.order = [group for drawing in order.drawings for group in drawing.batch]
        harvest.reports = self.rollouts.wait_for_all(order.drawings)
        drawn = time.perf_counter()
        rewards = self.config.rewards
        harvest.opinions = self._heard(order)
        heard = time.perf_counter()
        if learn:
            self.running = heard_so_far(self.running, harvest.opinions, rewards)
        settled = settle(harvest.opinions, rewards, self.running if learn else {})
        harvest.left_out = settled.left_out
        scores = iter(settled.scores)
        for drawing, report in zip(order.drawings, harvest.reports, strict=True):
            for group, samples in zip(drawing.batch, drawing.samples, strict=True):
                drawn_group = group, samples, report.weights_version, drawing.draws
                found = next(scores)
                if isinstance(found, str):
                    harvest.dropped.append((DrawnGroup(*drawn_group), found))
                else:
                    harvest.groups.append(JudgedGroup(*drawn_group, found))
        harvest.waited_for_draws_s = drawn - started
        harvest.waited_for_scores_s = heard - drawn
        busy, pulls = np.zeros(len(self.rollouts)), np.zeros(len(self.rollouts))
        for drawing, report in zip(order.drawings, harvest.reports, strict=True):
            busy[drawing.number] += report.draw_s
            pulls[drawing.number] += report.pull_s
        harvest.sample_s, harvest.pull_s = float(busy.max()), float(pulls.max())
        harvest.replaced = self.rollouts.replaced - replaced
        return harvest
