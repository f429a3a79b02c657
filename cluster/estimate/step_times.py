"""Computes the seconds between two optimizer steps from each role's seconds."""

from collections.abc import Mapping
from dataclasses import dataclass

IN_TURNS = "all roles in turns"


@dataclass(frozen=True)
class Times:
    """Seconds of one step by role, each with its parts. `score_s`: until the last expert is done.
    `publish`: the learner sends weights; during a broadcast the rollout workers wait. `pull`: a worker
    fetches weights from the object store before it generates; 0 for a broadcast."""

    generate: Mapping[str, float]
    score: Mapping[str, float | None]
    score_s: float
    learn: Mapping[str, float]
    publish: float
    pull: float
    driver: float
    staleness: int
    take_turns: bool = False
    """Roles share GPUs or cores, so nothing overlaps."""

    @property
    def generate_s(self) -> float:
        return sum(self.generate.values())

    @property
    def learn_s(self) -> float:
        return sum(self.learn.values())

    @property
    def bounds(self) -> dict[str, float]:
        """Lower bounds of the period, by name.

        With `max_staleness` S a request is made S steps before it is learned from, so all work on it
        has S + 1 periods. By broadcast, the rollout workers generate one request and receive one
        version in every period, and then wait for the next request; through the store the next request
        is already waiting.
        """
        generate = self.generate_s + self.pull
        learn = self.learn_s + self.publish + self.driver
        if self.staleness == 0 or self.take_turns:
            return {IN_TURNS: generate + self.score_s + learn}
        return {
            "generate": generate + (0.0 if self.pull else self.publish + self.driver),
            "score": self.score_s,
            "learn": learn,
            "staleness": (generate + self.score_s + learn) / (self.staleness + 1),
        }

    @property
    def period_s(self) -> float:
        return max(self.bounds.values())

    @property
    def bottleneck(self) -> str:
        """The role that must become faster for the step to become faster."""
        if IN_TURNS in self.bounds:
            roles = {"generate": self.generate_s, "score": self.score_s, "learn": self.learn_s}
            return max(roles, key=lambda role: roles[role])
        name = max(self.bounds, key=lambda role: self.bounds[role])
        return "the way of one request (max_staleness)" if name == "staleness" else name
