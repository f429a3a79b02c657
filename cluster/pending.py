"""Groups of samples under way: being generated, being scored, and their results."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from actors.rollout import RolloutStats
from policy.records import Group, GroupBatch, Prompt, PublishedWeights, Scores
from rewards.expert import Failure, GroupResults


@dataclass(frozen=True)
class GeneratedGroup:
    """A generated group.

    `index` is its number in the request. `attempts` counts how often it was generated: more than once
    if a worker was lost over it. `tokens` are those of all its samples, both CoTs together.
    """

    group: Group
    index: int
    weights_version: int
    attempts: int
    tokens: int

    @property
    def prompt(self) -> Prompt:
        return self.group.prompt


@dataclass(frozen=True)
class ScoredGroup(GeneratedGroup):
    """A generated and scored group."""

    scores: Scores


@dataclass(eq=False)
class PendingBatch:
    """Groups that one worker generates together, in one call.

    `samples` are references, one a group, to its list[Sample]; `stats` refers to the call's
    RolloutStats. All change when the batch is generated again, which `attempts` counts.
    """

    groups: GroupBatch
    worker: int
    handle: ActorHandle
    samples: list[ObjectRef]
    stats: ObjectRef
    attempts: int = 1


@dataclass(eq=False)
class PendingSamples:
    """Groups that are being generated. `samples` refers to a list of references, one a group in the
    request's order, to its list[Sample]."""

    weights: PublishedWeights | None
    batches: list[PendingBatch]
    samples: ObjectRef

    def batches_of(self, indices: Iterable[int]) -> list[PendingBatch]:
        """The batches that hold the groups at some indices, each once."""
        of_index = [batch for batch in self.batches for _ in batch.groups]
        return list({id(of_index[n]): of_index[n] for n in sorted(indices)}.values())

    def sample_refs(self) -> list[ObjectRef]:
        return [ref for batch in self.batches for ref in batch.samples]


@dataclass(eq=False)
class PendingRollout(PendingSamples):
    """Groups that are scored as well. `results` refers to a list of GroupResults, one a group, None
    where its samples were lost; `reward_worker` makes it."""

    results: ObjectRef
    reward_worker: ActorHandle


@dataclass
class RolloutBatch:
    """The results of a request, and their times.

    Times are seconds that the driver waited, except `generate_s` and `pull_s`: the busiest worker's
    generating and pulling of weights, which may overlap with the driver's other work.
    """

    pending: PendingRollout
    groups: list[ScoredGroup] = field(default_factory=list)
    stats: list[RolloutStats] = field(default_factory=list)
    dropped: list[tuple[GeneratedGroup, str]] = field(default_factory=list)
    """The groups without scores, each with the reason."""
    left_out: dict[str, Failure] = field(default_factory=dict)
    """The experts that are left out of all rewards, each with its first failure."""
    results: list[GroupResults] = field(default_factory=list)
    """Results of every group, also of those without scores."""
    generate_s: float = 0.0
    pull_s: float = 0.0
    waited_for_samples_s: float = 0.0
    waited_for_scores_s: float = 0.0
    replaced: int = 0
    """Rollout workers that were lost meanwhile."""
    resampled: int = 0
    """Groups that were requested because too few others had unequal rewards."""

    def add(self, more: "RolloutBatch") -> None:
        """Add further groups of the same step, which were requested later."""
        after = sum(len(batch.groups) for batch in self.pending.batches)
        self.pending.batches += more.pending.batches
        self.pending.samples = ray.put(self.pending.sample_refs())
        self.groups += [replace(group, index=after + group.index) for group in more.groups]
        self.dropped += [(replace(g, index=after + g.index), why) for g, why in more.dropped]
        self.stats += more.stats
        self.left_out = more.left_out | self.left_out
        self.results += more.results
        self.generate_s += more.generate_s
        self.pull_s += more.pull_s
        self.waited_for_samples_s += more.waited_for_samples_s
        self.waited_for_scores_s += more.waited_for_scores_s
        self.replaced += more.replaced
        self.resampled += sum(len(batch.groups) for batch in more.pending.batches)

    @property
    def failures(self) -> list[str]:
        """Messages on the groups that were dropped and why."""
        return [f"{group.prompt.text!r}: {why}" for group, why in self.dropped]


def turns(batches: Sequence[PendingBatch]) -> Iterator[list[PendingBatch]]:
    """The workers' first batches, then their second ones, and so on."""
    by_worker: dict[int, list[PendingBatch]] = {}
    for batch in batches:
        by_worker.setdefault(batch.worker, []).append(batch)
    for turn in range(max(map(len, by_worker.values()), default=0)):
        yield [theirs[turn] for theirs in by_worker.values() if turn < len(theirs)]
