"""From each role's seconds to the seconds between two optimizer steps."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Seconds of one step by role, each with its parts. `score_s`: when the
    last expert is done. `publish`: the learner's sending of weights, for
    which a broadcast has the rollout actors wait; `pull`: what an actor takes from the object store
    before it draws, 0 where weights are broadcast."""

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
        """What the period cannot be shorter than, by name.

        With `max_staleness` S an order is placed S steps before it is learned from. By broadcast,
        actors draw an order and take part in the publishing in every period; scoring and learning have
        S periods. Through the store, drawing, pulling, scoring, learning and publishing have S + 1.
        """
        generate, score, learn = self.generate_s + self.pull, self.score_s, self.learn_s + self.publish
        if self.staleness == 0 or self.take_turns:
            return {"all roles in turns": generate + score + learn + self.driver}
        received = 0.0 if self.pull else self.publish
        if self.pull:
            latency = (generate + score + learn) / (self.staleness + 1)
        else:
            latency = (score + self.learn_s) / self.staleness
        bounds = {"generate": generate + received, "score": score, "learn": learn, "staleness": latency}
        return {name: seconds + self.driver for name, seconds in bounds.items()}

    @property
    def period_s(self) -> float:
        return max(self.bounds.values())

    @property
    def bottleneck(self) -> str:
        """The role that must become faster for the step to become faster."""
        if len(self.bounds) == 1:
            roles = {"generate": self.generate_s, "score": self.score_s, "learn": self.learn_s}
            return max(roles, key=roles.get)
        name = max(self.bounds, key=self.bounds.get)
        return "score and learn, one after the other" if name == "staleness" else name
