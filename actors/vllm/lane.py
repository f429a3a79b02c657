"""What travels with a request through vLLM: whose row it is, and the stream its tokens come from."""

from dataclasses import dataclass
from typing import Literal

Phase = Literal["cot", "image"]

_KEY = "lane"


class LockstepError(RuntimeError):
    """The two rows of a pair are not at the same token. Going on would draw wrong images in silence."""


@dataclass(frozen=True)
class Lane:
    """One row of a sample. A guided sample is a pair of them: "cond" and "uncond"."""

    sample: int
    """The sample's number within the call; both rows of a pair share it."""
    role: Literal["cond", "uncond", "alone"]
    phase: Phase
    key: int
    """The noise stream (`actors.noise.stream_key`)."""

    def extra_args(self) -> dict[str, "Lane"]:
        """As vLLM's `SamplingParams` takes it."""
        return {_KEY: self}


@dataclass(frozen=True)
class Plan:
    """What all rows of one call have in common."""

    phase: Phase
    temperature: float
    guidance: float
    """Weight of a pair's guidance; a lane that is alone knows none."""
    max_tokens: int
    stop_id: int | None = None
    """The token that ends a row; None: a row ends at `max_tokens` only."""


def lane_of(params) -> Lane | None:
    """The lane in a request's `SamplingParams`; None for vLLM's own warm-up requests."""
    return ((params and params.extra_args) or {}).get(_KEY)
