"""What comes of asking experts: judgements, or failures that say why."""

import math
from dataclasses import dataclass, field

from rewards.expert import Judgement


@dataclass(frozen=True)
class Failure:
    """An expert gave no answer after all tries; `reason` is the last failure, in words."""

    expert: str
    tries: int
    reason: str
    not_a_score: bool = False
    """The last failure was a score that is no finite number."""

    def __str__(self) -> str:
        return f"expert {self.expert} failed {self.tries} times, at last with: {self.reason}"


@dataclass(frozen=True)
class Opinion:
    """What came of asking one expert about a group: a judgement or a failure, after `retries`, in
    `seconds` with all of them. A judgement comes with the expert's pass mark."""

    said: Judgement | Failure
    seconds: float
    retries: int = 0
    pass_mark: float = math.nan

    @property
    def failed(self) -> bool:
        return isinstance(self.said, Failure)


@dataclass(frozen=True)
class Opinions:
    """Of all experts, by name, on the samples of one group."""

    sample_ids: tuple[str, ...]
    by_expert: dict[str, Opinion] = field(repr=False)
