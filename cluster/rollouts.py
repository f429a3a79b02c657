"""Rollouts: generates and scores groups of samples, and repeats what is lost.

`request` has the rollout workers generate and the reward worker score, and returns at once; the driver
moves references only. The reward worker has experts score the first groups while others are still being
generated. `collect` waits, and computes rewards when all groups of a request have scores, so that they
are comparable. `draw` generates alone.

Generation is deterministic: a sample is a function of its request and the weights, not of the worker.
So `_generate_again` reproduces a batch that is late or lost: while the driver waits for it, or through
`ensure` when its samples are found missing later. That is bit for bit on CPUs, and while workers can
still get its weights; so groups that are learned from are scored again as well (`repeat`)."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError
from ray.util.placement_group import PlacementGroup

from actors.rollout import RolloutStats
from cluster.config import RunConfig
from cluster.pending import (
    GeneratedGroup,
    PendingBatch,
    PendingRollout,
    PendingSamples,
    RolloutBatch,
    ScoredGroup,
    turns,
)
from cluster.rollout_workers import RolloutWorkers, cut_in_batches
from policy.errors import UserError
from policy.records import Group, GroupBatch, PublishedWeights, Sample, Work
from rewards.client import RewardWorker
from rewards.expert import GroupResults
from rewards.rewards import RunningStats, compute_rewards, update_running_stats

log = logging.getLogger(__name__)

LOST = (RayActorError, GetTimeoutError, ObjectLostError)
"""The worker died, did not answer in time, or its node took its samples with it."""

_REWARD_WORKERS_TRIED = 3  # for one request
_START_LIMIT_S = 120.0  # of a reward worker, which loads no model


class PullableWeights(Protocol):
    """Source of the newest weights for a worker that missed a broadcast."""

    def pullable(self) -> PublishedWeights: ...


class RolloutManager:
    """The rollout workers and the reward worker, which together turn groups into scored groups.

    `running` are the statistics of experts with `normalize: running`; they are kept here alone.
    """

    def __init__(
        self,
        config: RunConfig,
        workers: RolloutWorkers,
        start_reward_worker: Callable[[], ActorHandle],
    ):
        """`start_reward_worker` is called again when the one that it started hangs."""
        self.config = config
        self.workers = workers
        self.running: dict[str, RunningStats] = {}
        self.weight_sync: PullableWeights | None = None
        self._start_reward_worker = start_reward_worker
        self._reward_worker = start_reward_worker()
        self._calls: dict[tuple[int, int], tuple[ActorHandle, Any]] = {}

    @classmethod
    def start(cls, config: RunConfig, placement: PlacementGroup) -> "RolloutManager":
        """Start the workers and wait until each holds the model. The experts must be running."""
        workers = RolloutWorkers.placed(config, placement)
        scorer = ray.remote(RewardWorker).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
        return cls(config, workers, lambda: scorer.remote(config.rewards))

    # --- request ---

    def request(self, groups: Sequence[Group], weights: PublishedWeights | None) -> PendingRollout:
        """Have groups generated with these weights (None: as loaded) and scored. Returns at once."""
        generating, work = self._begin(groups, weights)
        results = self._reward_worker.score_groups.remote(generating.samples, work)
        return PendingRollout(**vars(generating), results=results, reward_worker=self._reward_worker)

    def draw(self, groups: Sequence[Group], weights: PublishedWeights | None) -> list[list[Sample]]:
        """Generate samples without scoring, and wait for all. Raises as `collect` does."""
        pending, _ = self._begin(groups, weights)
        self._wait(pending)
        return self.samples(pending, range(len(groups)))

    def _begin(
        self, groups: Sequence[Group], weights: PublishedWeights | None
    ) -> tuple[PendingSamples, ObjectRef]:
        """Have groups generated. The reference is to the workers' Work."""
        # Batches are cut for all workers, ready or not: a log-probability's last bits depend on its
        # batch.
        batches = cut_in_batches(groups, len(self.workers), self.config.actors.batch_size)
        if self.workers.replaced:
            weights = self._pullable(weights)
        work = ray.put(Work.of(batches, weights))
        ready = self.workers.ready()
        pending = [
            self._generate(batch, ready[n % len(ready)], work, n) for n, batch in enumerate(batches)
        ]
        samples = ray.put([ref for batch in pending for ref in batch.samples])
        return PendingSamples(weights, pending, samples), work

    def _generate(self, groups: GroupBatch, worker: int, work: ObjectRef, batch: int) -> PendingBatch:
        """Call a worker for a batch of `work`, both by their numbers."""
        handle = self.workers.handles[worker]
        key = worker, len(groups)
        if self._calls.get(key, (None,))[0] is not handle:  # making a call's options takes time, too
            self._calls[key] = handle, handle.generate.options(num_returns=len(groups) + 1)
        # A call without a second argument costs the driver a third less.
        arguments = (work,) if batch == worker else (work, batch)
        *samples, stats = self._calls[key][1].remote(*arguments)
        return PendingBatch(groups, worker, handle, samples, stats)

    def _pullable(self, weights: PublishedWeights | None) -> PublishedWeights | None:
        """Weights that any worker can get. Only workers that received a broadcast have its version,
        until they receive the next; others pull the newest, which is no staler."""
        if weights is None or weights.parts is not None:
            return weights
        assert self.weight_sync is not None
        return self.weight_sync.pullable()

    # --- collect ---

    def collect(self, pending: PendingRollout, *, learn: bool = True) -> RolloutBatch:
        """Wait for a request. A group without scores is dropped and reported.

        Every request that is learned from updates the statistics of experts with `normalize: running`.
        In other requests such experts count on their own scale, so that two evaluations can be
        compared.

        Raises a worker's own error, or the last one after `actors.max_redraws` workers were lost over a
        batch.
        """
        started, replaced = time.perf_counter(), self.workers.replaced
        stats = self._wait(pending)
        generated = time.perf_counter()
        results = self._results(pending)
        scored = time.perf_counter()
        if learn:
            self.running = update_running_stats(self.running, results, self.config.rewards)
        rollout = RolloutBatch(pending)
        self._fill(rollout, stats, results, self.running if learn else {})
        rollout.waited_for_samples_s = generated - started
        rollout.waited_for_scores_s = scored - generated
        rollout.replaced = self.workers.replaced - replaced
        busy, pulls = np.zeros(len(self.workers)), np.zeros(len(self.workers))
        for batch, each in zip(pending.batches, stats, strict=True):
            busy[batch.worker] += each.generate_s
            pulls[batch.worker] += each.pull_s
        rollout.generate_s, rollout.pull_s = float(busy.max()), float(pulls.max())
        return rollout

    def _fill(
        self,
        rollout: RolloutBatch,
        stats: Sequence[RolloutStats],
        results: Sequence[GroupResults],
        running: Mapping[str, RunningStats],
    ) -> None:
        """Put the groups into a rollout, with their rewards or the reason why there is none."""
        found = compute_rewards(results, self.config.rewards, running)
        rollout.stats, rollout.results, rollout.left_out = list(stats), list(results), found.left_out
        rollout.groups, rollout.dropped = [], []
        for group, scores in zip(_generated(rollout.pending, stats), found.scores, strict=True):
            if isinstance(scores, str):
                rollout.dropped.append((group, scores))
            else:
                rollout.groups.append(ScoredGroup(**vars(group), scores=scores))

    def _wait(self, pending: PendingSamples) -> list[RolloutStats]:
        """Wait for all batches; those that are late or lost are generated again elsewhere. Each may
        take `actors.timeout_s`; a worker with several batches has that time for each. Returns the stats
        of each batch."""
        limit_s = self.config.actors.timeout_s
        self.workers.wait_for_loading(batch.worker for batch in pending.batches)
        for turn in turns(pending.batches):
            refs = [batch.stats for batch in turn]
            _, late = ray.wait(refs, num_returns=len(refs), timeout=limit_s, fetch_local=False)
            for ref in late:  # a lost worker's later batches fail at once
                why = GetTimeoutError(f"not generated within {limit_s:g} s")
                self._generate_again(pending, turn[refs.index(ref)], why)
        try:
            return ray.get([batch.stats for batch in pending.batches], timeout=limit_s)
        except LOST:
            return [self._wait_for(pending, batch) for batch in pending.batches]

    def _wait_for(self, pending: PendingSamples, batch: PendingBatch) -> RolloutStats:
        while True:
            self.workers.wait_for_loading([batch.worker])
            try:
                return ray.get(batch.stats, timeout=self.config.actors.timeout_s)
            except LOST as error:
                self._generate_again(pending, batch, error)

    def _results(self, pending: PendingRollout) -> list[GroupResults]:
        """The results of all groups. Samples that were lost before they were scored are generated and
        scored again."""
        results = self._answer(pending, pending.batches)
        return self._without_losses(pending, results, _indices_of_none(results))

    def _without_losses(
        self, pending: PendingRollout, results: Sequence[GroupResults | None], lost: Sequence[int]
    ) -> list[GroupResults]:
        """Generate and score the groups at these indices again, until none is lost."""
        found: list[Any] = list(results)
        while lost:
            batches = self.ensure(pending, lost)
            self._score_again(pending, batches)
            again = iter(self._answer(pending, batches))
            first = 0
            for batch in pending.batches:
                if batch in batches:
                    found[first : first + len(batch.groups)] = islice(again, len(batch.groups))
                first += len(batch.groups)
            lost = _indices_of_none(found)
        return found

    def _score_again(self, pending: PendingRollout, batches: Sequence[PendingBatch]) -> None:
        work = ray.put(Work.of([batch.groups for batch in batches], pending.weights))
        samples = ray.put([ref for batch in batches for ref in batch.samples])
        pending.reward_worker = self._reward_worker
        pending.results = self._reward_worker.score_groups.remote(samples, work)

    def _answer(
        self, pending: PendingRollout, batches: Sequence[PendingBatch]
    ) -> list[GroupResults | None]:
        """The results of these batches, whose samples are there. A reward worker that takes longer than
        all tries of all experts has hung: a new one replaces it."""
        limit_s = self.config.rewards.longest_answer_s
        for _ in range(_REWARD_WORKERS_TRIED):
            try:
                return ray.get(pending.results, timeout=limit_s)
            except (GetTimeoutError, RayActorError):
                if pending.reward_worker is self._reward_worker:
                    log.warning("the reward worker hangs; a new one scores its groups again")
                    ray.kill(self._reward_worker)
                    self._reward_worker = self._start_reward_worker()
                    ray.wait([self._reward_worker.__ray_ready__.remote()], timeout=_START_LIMIT_S)
                self._score_again(pending, batches)
        raise UserError(
            f"no scores within {limit_s:g} s, the longest that rewards.timeout_s and rewards.retries"
            f" allow, {_REWARD_WORKERS_TRIED} times: is this machine overloaded?"
        )

    # --- lost samples ---

    def repeat(self, rollout: RolloutBatch, lost: Sequence[int]) -> None:
        """Generate and score again the groups at these indices, whose samples are lost, before they are
        learned from. They are the same where arithmetic is exact; from newer weights, or on GPUs, they
        may be others, with scores of their own. Raises as `collect` does."""
        results = self._without_losses(rollout.pending, rollout.results, lost)
        self._fill(rollout, self._wait(rollout.pending), results, self.running)

    def ensure(self, pending: PendingSamples, lost: Iterable[int]) -> list[PendingBatch]:
        """Generate again the groups at these indices, whose samples are lost, and wait for them. Whole
        batches are generated: a log-probability's last bits depend on its batch. Returns the batches;
        `pending` holds their new samples. Raises as `collect` does."""
        batches, limit_s = pending.batches_of(lost), self.config.actors.timeout_s
        for batch in batches:
            # The driver may still hold samples that are lost elsewhere.
            why = _fetch_error(batch.samples, limit_s) or ObjectLostError(
                batch.samples[0].hex(), b"", ""
            )
            self._generate_again(pending, batch, why)
        for batch in batches:
            self._wait_for(pending, batch)
        pending.samples = ray.put(pending.sample_refs())
        return batches

    def samples(self, pending: PendingSamples, indices: Sequence[int]) -> list[list[Sample]]:
        """The samples of the groups at some indices. Raises as `collect` does."""
        limit_s = self.config.actors.timeout_s
        try:
            refs = pending.sample_refs()
            return ray.get([refs[n] for n in indices], timeout=limit_s)
        except LOST:
            return [self._samples_at(pending, n) for n in indices]

    def _samples_at(self, pending: PendingSamples, index: int) -> list[Sample]:
        while True:
            try:
                return ray.get(pending.sample_refs()[index], timeout=self.config.actors.timeout_s)
            except LOST:
                self.ensure(pending, [index])

    def _generate_again(self, pending: PendingSamples, batch: PendingBatch, why: Exception) -> None:
        """Give a batch to the next worker that is ready, and replace the one that had it, unless only
        the samples were lost. Raises `why` after `actors.max_redraws` times."""
        if batch.attempts > self.config.actors.max_redraws:
            raise why
        if not isinstance(why, ObjectLostError):
            self.workers.replace(batch.worker, batch.handle, why)
        ready = [n for n in self.workers.ready() if n != batch.worker] or [batch.worker]
        worker = min(ready, key=lambda n: (n - batch.worker) % len(self.workers))
        pending.weights = self._pullable(pending.weights)
        work = ray.put(Work.of((batch.groups,), pending.weights))
        again = self._generate(batch.groups, worker, work, 0)
        batch.worker, batch.handle = again.worker, again.handle
        batch.samples, batch.stats = again.samples, again.stats
        batch.attempts += 1


def _generated(pending: PendingRollout, stats: Sequence[RolloutStats]) -> Iterator[GeneratedGroup]:
    index = 0
    for batch, each in zip(pending.batches, stats, strict=True):
        for group, tokens in zip(batch.groups, each.group_tokens, strict=True):
            yield GeneratedGroup(group, index, each.weights_version, batch.attempts, tokens)
            index += 1


def _indices_of_none(results: Sequence[object]) -> list[int]:
    return [n for n, found in enumerate(results) if found is None]


def _fetch_error(refs: Sequence[ObjectRef], limit_s: float) -> Exception | None:
    """Why samples that were generated cannot be fetched; None if they can."""
    try:
        ray.get(list(refs), timeout=limit_s)
    except LOST as error:
        return error
    return None
