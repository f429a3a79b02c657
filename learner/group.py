"""The ranks of one learner as a whole: what the driver talks to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from learner.config import LearnerConfig
from learner.engine import Resume
from learner.micro_batches import deal
from learner.rank import LearnerRank
from policy.broadcast import Meeting
from policy.janus import PolicyConfig
from policy.weights import PublishedWeights


@dataclass(frozen=True)
class ScoredGroups:
    """Groups to learn from. `samples` refers to a list of references, one a group that was drawn, to
    its list[Sample]; `places` are the places in it of those to learn from, and `advantages`, float32
    [len(places), G], those of their samples."""

    samples: ObjectRef
    places: Sequence[int]
    advantages: np.ndarray
    tokens: Sequence[int] = ()
    """Of each of these groups, so that ranks get equal work; none: each counts the same."""
    ahead: Sequence[ObjectRef] = ()
    """What `LearnerGroup.prepare` gave for `samples`."""

    @classmethod
    def of(cls, samples: Sequence[ObjectRef], advantages: np.ndarray) -> "ScoredGroups":
        """Of all these groups: a reference to a list[Sample] for each."""
        return cls(ray.put(list(samples)), range(len(samples)), advantages)


class LearnerGroup:
    def __init__(
        self,
        policy: PolicyConfig,
        config: LearnerConfig,
        *,
        temperature: float,
        guidance: float,
        placement: PlacementGroup | None = None,
        first_bundle: int = 0,
        resume: Resume | None = None,
    ):
        """Starts the ranks and waits until all hold the model, or with `resume` a checkpoint's."""
        self.config = config
        actor = ray.remote(LearnerRank)
        self.ranks = []
        for rank in range(config.ranks):
            strategy = "DEFAULT"
            if placement is not None:
                strategy = PlacementGroupSchedulingStrategy(placement, first_bundle + rank)
            options = {
                "num_cpus": config.num_cpus,
                "num_gpus": config.num_gpus,
                "scheduling_strategy": strategy,
            }
            self.ranks.append(actor.options(**options).remote(rank, config.ranks))
        where = ray.get(self.ranks[0].rendezvous.remote())
        setups = [
            r.setup.remote(policy, config, temperature, guidance, where, resume) for r in self.ranks
        ]
        self.trained_parameters: int = ray.get(setups)[0]

    def prepare(self, samples: ObjectRef) -> list[ObjectRef]:
        """Begin with what a step on these groups will need and does not depend on their scores: the
        reference's log-probabilities. `samples` is as in ScoredGroups, and need not be there yet; of
        the groups some may be lost, or be left out of the step. Goes into ScoredGroups as it is. A
        rank that fails or hangs over it does so in the step."""
        if self.config.reference_kind == "none":
            return []
        return [rank.prepare.remote([samples]) for rank in self.ranks]

    def step(self, groups: ScoredGroups, micro_batches: int | None = None) -> list[ObjectRef]:
        """Begin one update, the groups dealt to the ranks. One reference a rank: the step is done when
        all are, and each gives the metrics of the whole step."""
        tokens = groups.tokens or [1] * len(groups.places)
        steps = []
        for rank, mine in zip(self.ranks, deal(tokens, len(self.ranks)), strict=True):
            places, advantages = [groups.places[n] for n in mine], groups.advantages[mine]
            work = groups.samples, places, advantages, micro_batches, groups.ahead
            steps.append(rank.step.remote(*work))
        return steps

    def publish(self, version: int, timeline: int = 0) -> PublishedWeights:
        """Put the current weights into the object store, bucket by bucket, and wait for the last.

        The references are this process's, so the weights outlive the ranks that made them. Raises
        GetTimeoutError after `timeout_s`, and what a rank raised."""
        streams = [rank.publish.options(num_returns="streaming").remote() for rank in self.ranks]
        ends = [stream.completed() for stream in streams]  # to read along is to wait for every bucket
        ray.get(ends, timeout=self.config.timeout_s)
        manifest_and_buckets = list(streams[0])
        return PublishedWeights(version, ray.put(manifest_and_buckets), timeline)

    def join_broadcast(self, actors: Sequence[ActorHandle]) -> None:
        """Connect rank 0 with these rollout actors, as receivers of all versions to come."""
        where, manifest = ray.get([self.ranks[0].rendezvous.remote(), self.ranks[0].manifest.remote()])
        limits = self.config.timeout_s, self.config.broadcast_timeout_s
        meeting = Meeting(where.host, where.port, 1 + len(actors), *limits)
        joining = [a.join_broadcast.remote(meeting, n, manifest) for n, a in enumerate(actors, 1)]
        joining.append(self.ranks[0].join_broadcast.remote(meeting))
        ray.get(joining, timeout=self.config.timeout_s)

    def broadcast(self) -> list[ObjectRef]:
        """Begin to send the current weights; done when all references are."""
        return [rank.broadcast.remote() for rank in self.ranks]

    def begin_save(self, folder: str) -> None:
        """Have all ranks copy their state to memory, and begin to write it into `folder`."""
        ray.get([rank.begin_save.remote(folder) for rank in self.ranks], timeout=self.config.timeout_s)

    def saved(self) -> float | None:
        """When the checkpoint that was begun is written, the seconds that the slowest rank took; else
        None. Raises what a rank's write raised."""
        took = ray.get([rank.saved.remote() for rank in self.ranks], timeout=self.config.timeout_s)
        return None if None in took else max(took)

    def stop(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)
