"""The ranks of one learner as a whole, for the driver."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from learner.batch import balance
from learner.config import LearnerConfig
from learner.deepspeed_engine import Resume
from learner.schedules import Coefficients, StepSettings
from learner.worker import LearnerWorker
from policy.errors import UserError, in_one_line
from policy.model import PolicyConfig
from policy.records import PublishedWeights
from policy.starting import wait_for
from policy.weights import BroadcastRendezvous


@dataclass(frozen=True)
class TrainingGroups:
    """Groups to learn from. `samples` refers to a list of references to a list[Sample], one a generated
    group; `indices` are those in it of the groups to learn from. `advantages`, float32 [groups, G], are
    those of their samples, or [groups, G, 2], one for each of their CoTs."""

    samples: ObjectRef
    indices: Sequence[int]
    advantages: np.ndarray
    tokens: Sequence[int] = ()
    """Tokens of each of these groups, so that ranks get equal work; empty: each counts the same."""
    prepared: Sequence[ObjectRef] = ()
    """What `LearnerGroup.prepare` returned for `samples`."""

    def by_rank(self, ranks: int, minibatches: int = 1) -> list[list[list[int]]]:
        """Deals the groups to mini-batches, by their numbers alone, and to ranks, so that all get about
        as many tokens: for each rank, for each mini-batch, positions in `indices`."""
        tokens = self.tokens or [1] * len(self.indices)
        dealt: list[list[list[int]]] = [[] for _ in range(ranks)]
        for first in range(minibatches):
            minibatch = range(first, len(tokens), minibatches)
            by_rank = balance([tokens[n] for n in minibatch], ranks)
            for rank, positions in enumerate(by_rank):
                dealt[rank].append([minibatch[n] for n in positions])
        return dealt

    @classmethod
    def of(cls, samples: Sequence[ObjectRef], advantages: np.ndarray) -> "TrainingGroups":
        """All of these groups: `samples` is a reference to a list[Sample] for each."""
        return cls(ray.put(list(samples)), range(len(samples)), advantages)


class LearnerGroup:
    """The workers of one learner as a whole: the driver calls this class alone."""

    def __init__(self, config: LearnerConfig, ranks: Sequence[ActorHandle]):
        """`ranks`: the workers, set up already."""
        self.config = config
        self.ranks = list(ranks)
        self.trained_parameters = 0

    @classmethod
    def start(
        cls,
        policy: PolicyConfig,
        config: LearnerConfig,
        *,
        temperature: float,
        guidance: float,
        placement: PlacementGroup | None = None,
        first_bundle: int = 0,
        resume: Resume | None = None,
    ) -> "LearnerGroup":
        """Start the workers and wait until all hold the model, or with `resume` a checkpoint's.

        Raises UserError with a worker's own message if it does not start; and GetTimeoutError or
        RayActorError if one hangs or dies meanwhile.
        """
        actor = ray.remote(LearnerWorker)
        ranks = []
        for rank in range(config.ranks):
            strategy = "DEFAULT"
            if placement is not None:
                strategy = PlacementGroupSchedulingStrategy(placement, first_bundle + rank)
            options = {
                "num_cpus": config.num_cpus,
                "num_gpus": config.num_gpus,
                "scheduling_strategy": strategy,
            }
            ranks.append(actor.options(**options).remote(rank, config.ranks))
        limit_s = config.load_timeout_s
        where = ray.get(ranks[0].rendezvous.remote(_one_machine()), timeout=limit_s)
        setups = [r.setup.remote(policy, config, temperature, guidance, where, resume) for r in ranks]
        group = cls(config, ranks)
        try:
            wait_for({f"rank {n}": s for n, s in enumerate(setups)}, ray.wait, ray.get, limit_s)
            group.trained_parameters = ray.get(setups[0], timeout=limit_s)
        except RayTaskError as error:
            raise UserError(f"the learner does not start: {in_one_line(error)}") from error
        return group

    def prepare(self, samples: ObjectRef) -> list[ObjectRef]:
        """Begin to compute what a step on these groups needs and their scores do not change: the
        reference's log-probabilities. `samples` is as in TrainingGroups, and may still be under way;
        some groups may get lost, or be left out of the step. Pass the result to TrainingGroups as it
        is. The step raises the error of a rank that fails or hangs here."""
        if self.config.reference_kind == "none":
            return []
        return [rank.prepare.remote([samples]) for rank in self.ranks]

    def fetch(self, groups: TrainingGroups) -> list[int]:
        """Have every worker fetch its share of the samples for the step that follows. Returns the
        indices of lost groups, for the caller to generate them again: nothing was learned yet."""
        fetching = [
            rank.fetch.remote(groups.samples, [groups.indices[n] for part in dealt for n in part])
            for rank, dealt in zip(self.ranks, self._by_rank(groups), strict=True)
        ]
        lost = ray.get(fetching, timeout=self.config.timeout_s)
        return sorted(index for indices in lost for index in indices)

    def step(
        self,
        groups: TrainingGroups,
        micro_batches: int | None = None,
        settings: StepSettings | None = None,
    ) -> list[ObjectRef]:
        """Begin the updates of one step, with the groups dealt to the workers. Returns one reference a
        worker: the step is done when all are, and each holds the metrics of the whole step. `settings`
        None: as configured for the first step."""
        settings = settings or StepSettings(Coefficients.at_start(self.config))
        steps = []
        for rank, dealt in zip(self.ranks, self._by_rank(groups), strict=True):
            minibatches = [
                ([groups.indices[n] for n in part], groups.advantages[part]) for part in dealt
            ]
            work = groups.samples, minibatches, settings, micro_batches, groups.prepared
            steps.append(rank.step.remote(*work))
        return steps

    def _by_rank(self, groups: TrainingGroups) -> list[list[list[int]]]:
        return groups.by_rank(len(self.ranks), self.config.minibatches)

    def measure(self, samples: Sequence[ObjectRef]) -> dict[str, float]:
        """The metrics of the loss on some groups, without an update. `samples`: a reference to a
        list[Sample] each."""
        shares = [samples[n :: len(self.ranks)] for n in range(len(self.ranks))]
        measuring = [rank.measure.remote(share) for rank, share in zip(self.ranks, shares, strict=True)]
        return ray.get(measuring, timeout=self.config.timeout_s)[0]

    def publish(self, version: int, incarnation: int = 0) -> PublishedWeights:
        """Put the current weights into the object store, bucket by bucket, and wait for the last.

        The references are this process's, so the weights outlive the ranks that made them. Raises
        GetTimeoutError after `timeout_s`, and a rank's error."""
        streams = [rank.publish.options(num_returns="streaming").remote() for rank in self.ranks]
        ends = [stream.completed() for stream in streams]  # reading along would wait for every bucket
        ray.get(ends, timeout=self.config.timeout_s)
        manifest_and_buckets = list(streams[0])
        return PublishedWeights(version, ray.put(manifest_and_buckets), incarnation)

    def join_broadcast(self, receivers: Sequence[ActorHandle]) -> None:
        """Connect rank 0 with these rollout workers, as receivers of all later versions."""
        sender = self.ranks[0]
        asked = [sender.rendezvous.remote(_one_machine()), sender.manifest.remote()]
        where, manifest = ray.get(asked, timeout=self.config.timeout_s)
        limits = self.config.timeout_s, self.config.broadcast_timeout_s
        rendezvous = BroadcastRendezvous(where, 1 + len(receivers), *limits)
        joining = [a.join_broadcast.remote(rendezvous, n, manifest) for n, a in enumerate(receivers, 1)]
        joining.append(sender.join_broadcast.remote(rendezvous))
        ray.get(joining, timeout=self.config.timeout_s)

    def broadcast(self) -> list[ObjectRef]:
        """Begin to send the current weights; done when all references are."""
        return [rank.broadcast.remote() for rank in self.ranks]

    def begin_save(self, folder: str) -> None:
        """Have all ranks copy their state to memory, and begin to write it into `folder`."""
        ray.get([rank.begin_save.remote(folder) for rank in self.ranks], timeout=self.config.timeout_s)

    def saved(self) -> float | None:
        """The seconds that the slowest rank took to write the checkpoint; None: it is not written yet.
        Raises a rank's error."""
        took = ray.get([rank.saved.remote() for rank in self.ranks], timeout=self.config.timeout_s)
        return None if None in took else max(took)

    def stop(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)


def _one_machine() -> bool:
    """Whether the whole cluster is one machine: then no other machine must reach the learner."""
    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) == 1
