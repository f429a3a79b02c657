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
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.rollout import DrawReport, RolloutActor
from cluster.config import RunConfig
from cluster.prompt_stream import Group
from policy.records import Prompt, Scores
from policy.weights import PublishedWeights
from rewards.ensemble import settle
from rewards.opinions import Failure, Opinions
from rewards.panel import Judge
from rewards.scale import RunningStats, heard_so_far


@dataclass(frozen=True)
class JudgedGroup:
    """A group that was drawn and scored; `samples` refers to its list[Sample]."""

    prompt: Prompt
    samples: ObjectRef
    scores: Scores
    weights_version: int


@dataclass
class Harvest:
    """What came of an order, and what it took. Times in seconds of the driver's waiting, but `sample`:
    the busiest actor's drawing, which may have happened while the driver did something else."""

    groups: list[JudgedGroup] = field(default_factory=list)
    reports: list[DrawReport] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """The groups that have no scores, each with the reason."""
    left_out: dict[str, Failure] = field(default_factory=dict)
    """The experts that no group's scores hear, each with its first failure."""
    opinions: list[Opinions] = field(default_factory=list)
    """Of every group, also of those without scores."""
    sample_s: float = 0.0
    pull_s: float = 0.0
    waited_for_draws_s: float = 0.0
    waited_for_scores_s: float = 0.0


@dataclass(frozen=True)
class _Pending:
    prompt: Prompt
    samples: ObjectRef
    opinions: ObjectRef
    report: ObjectRef
    actor: int


Order = list[_Pending]


class Experience:
    """The rollout actors and the judge, as one thing that turns groups into judged groups."""

    def __init__(self, config: RunConfig, placement: PlacementGroup):
        """Starts the actors and waits until each holds the model. The experts must be running."""
        self.config = config
        actor = ray.remote(RolloutActor)
        self.actors = [
            actor.options(
                num_cpus=config.actors.num_cpus,
                num_gpus=config.actors.num_gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement, bundle),
            ).remote(config.policy, config.actors, config.seed)
            for bundle in range(config.actors.count)
        ]
        self.running: dict[str, RunningStats] = {}
        self.judge = ray.remote(Judge).options(num_cpus=0).remote(config.rewards)
        ray.get([a.ready.remote() for a in self.actors])

    def order(self, groups: Sequence[Group], weights: PublishedWeights | None) -> Order:
        """Have groups drawn with these weights and judged. Returns at once."""
        chunks = self._chunks(groups)
        pending: Order = []
        for chunk, number in zip(
            chunks, islice(cycle(range(len(self.actors))), len(chunks)), strict=True
        ):
            draw = self.actors[number].draw.options(num_returns=len(chunk) + 1)
            *drawn, report = draw.remote(chunk, weights)
            for group, samples in zip(chunk, drawn, strict=True):
                prompts = [order.prompt for order in group]
                opinions = self.judge.judge.remote([samples], prompts)
                pending.append(_Pending(prompts[0], samples, opinions, report, number))
        return pending

    def _chunks(self, groups: Sequence[Group]) -> list[list[Group]]:
        """Cut into batches of whole groups, so that no actor idles while another draws two."""
        share = -(-sum(map(len, groups)) // len(self.actors))
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
        first_of_chunk = {p.report: p.actor for p in order}
        reports = dict(zip(first_of_chunk, ray.get(list(first_of_chunk)), strict=True))
        drawn = time.perf_counter()
        rewards = self.config.rewards
        harvest.opinions = ray.get([pending.opinions for pending in order])
        if learn:
            self.running = heard_so_far(self.running, harvest.opinions, rewards)
        settled = settle(harvest.opinions, rewards, self.running if learn else {})
        harvest.left_out = settled.left_out
        for pending, scores in zip(order, settled.scores, strict=True):
            if isinstance(scores, str):
                harvest.failures.append(f"{pending.prompt.text!r}: {scores}")
                continue
            version = reports[pending.report].weights_version
            harvest.groups.append(JudgedGroup(pending.prompt, pending.samples, scores, version))
        harvest.waited_for_draws_s = drawn - started
        harvest.waited_for_scores_s = time.perf_counter() - drawn
        harvest.reports = list(reports.values())
        busy, pulls = np.zeros(len(self.actors)), np.zeros(len(self.actors))
        for report, actor in first_of_chunk.items():
            busy[actor] += reports[report].draw_s
            pulls[actor] += reports[report].pull_s
        harvest.sample_s, harvest.pull_s = float(busy.max()), float(pulls.max())
        return harvest
