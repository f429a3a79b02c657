"""The records that travel between rollout workers, experts and learner: frozen, numpy on the wire.

`Work` is a request on its way: one object for rollout workers and reward worker alike. It never leaves
the run's cluster, whose processes unpickle each other's objects in any case. Nothing here needs torch,
so a process that only passes records on starts without it.
"""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class SpatialInfo:
    """`obj1` stands in the relation `locality` ("left of", "above", ...) to `obj2`."""

    obj1: str
    obj2: str
    locality: str


@dataclass(frozen=True)
class ObjectCount:
    """The prompt asks for exactly `num` of `obj_name`."""

    obj_name: str
    num: int


@dataclass(frozen=True)
class Prompt:
    """One row of a prompt file; the fields are those of T2I-R1's published prompt set."""

    id: str
    text: str
    task_type: str
    nouns: tuple[str, ...] = ()
    attr_nouns: tuple[str, ...] = ()
    spatial_info: SpatialInfo | None = None
    numeracy_info: tuple[ObjectCount, ...] = ()


@dataclass(frozen=True)
class SampleRequest:
    """A request for one sample. `index` counts the samples of this prompt over the whole run, so a
    prompt that comes round again gets new samples, and a lost sample can be generated again
    anywhere."""

    prompt: Prompt
    index: int

    @property
    def sample_id(self) -> str:
        return f"{self.prompt.id}/{self.index}"


@dataclass(frozen=True)
class Group:
    """A request for `size` samples of one prompt, which are compared with each other; from index
    `first` on. `number` is its place in the run's stream of groups, if it is learned from. Iterates
    over their SampleRequests."""

    prompt: Prompt
    size: int
    first: int = 0
    number: int = -1

    def __iter__(self) -> Iterator[SampleRequest]:
        return (SampleRequest(self.prompt, self.first + n) for n in range(self.size))

    def __len__(self) -> int:
        return self.size


GroupBatch = tuple[Group, ...]
"""Groups that one rollout worker generates together."""


@dataclass(frozen=True)
class Sample:
    """A semantic CoT and the image made from it. Both id sequences travel, so that nobody re-tokenises.

    Lc is the CoT's length (with its end token, if it ended), Ti the image tokens of one image.
    """

    prompt_id: str
    index: int
    seed: int
    weights_version: int
    cot_prompt_ids: np.ndarray = field(repr=False)  # int64 [P1]
    cot_ids: np.ndarray = field(repr=False)  # int64 [Lc]
    cot_text: str
    image_prompt_ids: np.ndarray = field(repr=False)  # int64 [P2]
    image_ids: np.ndarray = field(repr=False)  # int64 [Ti]
    cot_logps: np.ndarray = field(repr=False)  # float32 [Lc]
    image_logps: np.ndarray = field(repr=False)  # float32 [Ti], the conditional distribution's
    image_guided_logps: np.ndarray = field(repr=False)  # float32 [Ti], the distribution sampled from
    image: np.ndarray = field(repr=False)  # uint8 [H, W, 3]
    finish_reason: str  # "stop": the CoT ended by itself; "length": it was cut; "none": there is none

    @property
    def id(self) -> str:
        return f"{self.prompt_id}/{self.index}"


@dataclass(frozen=True)
class Box:
    """Something that an expert found in an image, for people to look at."""

    label: str
    score: float
    xyxy: tuple[float, float, float, float]
    """Left, top, right, bottom, each 0..1 of the image's width or height."""


@dataclass(frozen=True)
class Scores:
    """The experts' scores of N samples: one column an expert.

    `values` is float32 [N, E] in the experts' own scale, NaN where an expert does not apply to the
    prompt. `rewards` is float32 [N], the ensemble's weighted mean of what applies. `passed` is bool
    [N]: every expert that applies reached its pass threshold. For people to look at:
    `explanation[n][e]` is a line (counts, answers), "" where there is nothing, and `boxes[n][e]` what
    the expert found where. `rewards_by_cot`, float32 [N, 2], is the reward of the semantic CoT and
    that of the image, NaN where there is none; None: both get `rewards`.
    """

    sample_ids: tuple[str, ...]
    experts: tuple[str, ...]
    values: np.ndarray = field(repr=False)
    rewards: np.ndarray = field(repr=False)
    passed: np.ndarray = field(repr=False)
    explanation: tuple[tuple[str, ...], ...] = field(repr=False, default=())
    boxes: tuple[tuple[tuple[Box, ...], ...], ...] = field(repr=False, default=())
    rewards_by_cot: np.ndarray | None = field(repr=False, default=None)

    def part(self, begin: int, end: int) -> "Scores":
        """The scores of samples `begin` to `end`."""
        rows = slice(begin, end)
        return Scores(
            self.sample_ids[rows],
            self.experts,
            self.values[rows],
            self.rewards[rows],
            self.passed[rows],
            self.explanation[rows],
            self.boxes[rows],
            None if self.rewards_by_cot is None else self.rewards_by_cot[rows],
        )


@dataclass(frozen=True)
class PublishedWeights:
    """One version of the trained parameters. `parts` is a reference to a list of references: to a
    Manifest, and to a bucket each. Small, so it travels with every request for samples; whoever lacks
    the version pulls. Without parts: the version was broadcast, and cannot be pulled."""

    version: int
    parts: object | None = None
    incarnation: int = 0
    """A run that goes back to a checkpoint counts versions again, in a new incarnation."""


SHARE = 32
"""How many batches are pickled together. Pickling all together would make every worker unpickle
hundreds; each alone takes the driver twice as long, and Ray's own pickling of records three times. They
go from the driver to its workers, and nowhere else."""


@dataclass(frozen=True)
class Work:
    """Batches to be generated with these weights (None: those that the workers have loaded)."""

    weights: PublishedWeights | None
    shares: tuple[bytes, ...]

    @classmethod
    def of(cls, batches: Sequence[GroupBatch], weights: PublishedWeights | None) -> "Work":
        starts = range(0, len(batches), SHARE)
        return cls(weights, tuple(pickle.dumps(batches[n : n + SHARE]) for n in starts))

    def batch(self, number: int) -> GroupBatch:
        return pickle.loads(self.shares[number // SHARE])[number % SHARE]

    def __iter__(self) -> Iterator[GroupBatch]:
        for share in self.shares:
            yield from pickle.loads(share)
